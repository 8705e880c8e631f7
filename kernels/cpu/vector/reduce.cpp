// Sum, mean, max, min, any, all over any set of dimensions.
//
// Elements are reduced in their own type inside a block, blocks in `Total`, chunks (see ReductionPlan) in
// their order: short chains of f32 additions, f64 above them, and no dependence on the number of threads.

#include "kernels/cpu/vector/reduce.h"

#include "kernels/context.h"
#include "kernels/cpu/reduction_plan.h"
#include "kernels/cpu/vector/coordinates.h"
#include "kernels/cpu/vector/elementwise.h"
#include "kernels/cpu/vector/reduce_ops.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

/// totals[i] ← the reduction of elements [first, last) for each of the outputs of `outputs`, one after the
/// other.
template <class Op>
[[gnu::noinline]] void reduce_rows(const ReductionPlan& plan, const Tile& outputs, std::int64_t first_output,
                                   std::int64_t first, std::int64_t last, typename Op::Total* totals) {
  using T = typename Op::T;
  Loop elements = plan.reduced;
  char* const data = elements.operands[0].data;
  const std::int64_t element_size = static_cast<std::int64_t>(size_bytes(elements.operands[0].dtype));
  Walker walker(plan.kept, 1, first_output);
  for (std::int64_t i = 0; i < outputs.size; ++i, walker.next()) {
    elements.operands[0].data = data + walker.offset() * element_size;
    TileInput<T> input(elements, 0);
    typename Op::Total total = static_cast<typename Op::Total>(Op::start());
    for_each_tile(elements, first, last, [&](const Tile& tile) {
      total = Op::join(total, static_cast<typename Op::Total>(reduce_run<Op>(input.load(tile), tile.size)));
    });
    totals[i] = total;
  }
}

/// The same for all of them at once: one pass over the reduced elements, each step a vector of outputs.
template <class Op>
[[gnu::noinline]] void reduce_columns(const ReductionPlan& plan, const Tile& outputs, std::int64_t first,
                                      std::int64_t last, typename Op::Total* totals) {
  using T = typename Op::T;
  using Total = typename Op::Total;
  Loop kept = plan.kept;
  char* const data = kept.operands[1].data;
  const std::int64_t element_size = static_cast<std::int64_t>(size_bytes(kept.operands[1].dtype));
  TileInput<T> input(kept, 1);
  const std::int64_t n = outputs.size;
  alignas(64) T block[kTileSize];
  for (std::int64_t i = 0; i < n; ++i) totals[i] = static_cast<Total>(Op::start());
  Walker walker(plan.reduced, 0, first);
  for (std::int64_t element = first; element < last;) {
    const std::int64_t block_end = last - element < Op::kStepsPerTotal ? last : element + Op::kStepsPerTotal;
    for (std::int64_t i = 0; i < n; ++i) block[i] = Op::start();
    for (; element < block_end; ++element, walker.next()) {
      kept.operands[1].data = data + walker.offset() * element_size;
      const T* x = input.load_anew(outputs);
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) block[i] = Op::step(block[i], x[i]);
    }
    for (std::int64_t i = 0; i < n; ++i) totals[i] = Op::join(totals[i], static_cast<Total>(block[i]));
  }
}

/// Writes outputs from their totals; `divisor` is 1 but for a mean.
template <class Total>
[[gnu::noinline]] void write_outputs(const Tile& outputs, TileOutput<Total>& y, const Total* totals,
                                     double divisor) {
  Total* to = y.begin(outputs);
  for (std::int64_t i = 0; i < outputs.size; ++i) {
    to[i] = divisor == 1.0 ? totals[i] : static_cast<Total>(static_cast<double>(totals[i]) / divisor);
  }
  y.end(outputs, to);
}

template <class Op>
void reduce_outputs(const ReductionPlan& plan, const Tile& outputs, std::int64_t first_output,
                    std::int64_t first, std::int64_t last, typename Op::Total* totals) {
  if (plan.by_rows) {
    reduce_rows<Op>(plan, outputs, first_output, first, last, totals);
  } else {
    reduce_columns<Op>(plan, outputs, first, last, totals);
  }
}

/// What an operation does, as functions: the driver below is compiled once per type of total.
template <class Total>
struct Steps {
  void (*rows)(const ReductionPlan&, const Tile&, std::int64_t, std::int64_t, std::int64_t, Total*);
  void (*columns)(const ReductionPlan&, const Tile&, std::int64_t, std::int64_t, Total*);
  Total (*join)(Total, Total);
};

template <class Total>
void reduce_outputs(const ReductionPlan& plan, const Steps<Total>& steps, const Tile& outputs,
                    std::int64_t first_output, std::int64_t first, std::int64_t last, Total* totals) {
  if (plan.by_rows) {
    steps.rows(plan, outputs, first_output, first, last, totals);
  } else {
    steps.columns(plan, outputs, first, last, totals);
  }
}

template <class Total>
void reduce_whole(const ReductionPlan& plan, const Steps<Total>& steps, double divisor) {
  const std::int64_t grain = kGrain / (plan.reduced.size + 1) + 1;
  parallel_for(plan.kept.size, grain, [&](std::int64_t begin, std::int64_t end) {
    TileOutput<Total> y(plan.kept, 0);
    Total totals[kTileSize];
    std::int64_t output = begin;
    for_each_tile(plan.kept, begin, end, [&](const Tile& tile) {
      reduce_outputs(plan, steps, tile, output, 0, plan.reduced.size, totals);
      write_outputs(tile, y, totals, divisor);
      output += tile.size;
    });
  });
}

/// Few outputs: the chunks of all of them first, then their totals in order.
template <class Total>
void reduce_chunks(const ReductionPlan& plan, const Steps<Total>& steps, double divisor) {
  const std::int64_t num_outputs = plan.kept.size, num_elements = plan.reduced.size;
  const Workspace workspace(static_cast<std::size_t>(plan.num_chunks * num_outputs) * sizeof(Total));
  Total* partial = static_cast<Total*>(workspace.data());
  parallel_for(plan.num_chunks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      const std::int64_t first = chunk * plan.chunk_size;
      const std::int64_t last =
          first + plan.chunk_size < num_elements ? first + plan.chunk_size : num_elements;
      std::int64_t output = 0;
      for_each_tile(plan.kept, 0, num_outputs, [&](const Tile& tile) {
        reduce_outputs(plan, steps, tile, output, first, last, partial + chunk * num_outputs + output);
        output += tile.size;
      });
    }
  });
  for (std::int64_t chunk = 1; chunk < plan.num_chunks; ++chunk) {
    const Total* totals = partial + chunk * num_outputs;
    for (std::int64_t i = 0; i < num_outputs; ++i) partial[i] = steps.join(partial[i], totals[i]);
  }
  TileOutput<Total> y(plan.kept, 0);
  const Total* totals = partial;
  for_each_tile(plan.kept, 0, num_outputs, [&](const Tile& tile) {
    write_outputs(tile, y, totals, divisor);
    totals += tile.size;
  });
}

template <class Op>
void reduce_by(const ReductionPlan& plan, double divisor) {
  const Steps<typename Op::Total> steps = {
      reduce_rows<Op>, reduce_columns<Op>,
      [](typename Op::Total a, typename Op::Total b) { return Op::join(a, b); }};
  if (plan.num_chunks == 1) return reduce_whole(plan, steps, divisor);
  reduce_chunks(plan, steps, divisor);
}

template <class T>
void reduce_as(ReduceOp op, const ReductionPlan& plan) {
  switch (op) {
    case ReduceOp::kSum:
      return reduce_by<SumOp<T>>(plan, 1.0);
    case ReduceOp::kMean:
      return reduce_by<SumOp<T>>(plan, static_cast<double>(plan.reduced.size));
    case ReduceOp::kMax:
      return reduce_by<ExtremeOp<T, 1>>(plan, 1.0);
    case ReduceOp::kMin:
      return reduce_by<ExtremeOp<T, -1>>(plan, 1.0);
    default:
      break;
  }
  if constexpr (dtype_of<T> == DType::kI64) {
    op == ReduceOp::kAny ? reduce_by<AnyOp>(plan, 1.0) : reduce_by<AllOp>(plan, 1.0);
  }
}

}  // namespace

void reduce_elements(ReduceOp op, const ConstView& x, const View& y) {
  if ((op == ReduceOp::kAny || op == ReduceOp::kAll) && x.dtype != DType::kBool) {
    const Workspace workspace(static_cast<std::size_t>(x.num_elements()));
    View truth = y;
    truth.data = workspace.data();
    truth.dtype = DType::kBool;
    std::int64_t stride = 1;
    for (int d = x.dims - 1; d >= 0; --d) {
      truth.shape[d] = x.shape[d];
      truth.strides[d] = stride;
      stride *= x.shape[d];
    }
    copy_elements(x, truth);
    return reduce_elements(op, truth, y);
  }
  const ReductionPlan plan = make_reduction_plan(x, y);
  switch (compute_type(x.dtype)) {
    case ComputeType::kF32:
      return reduce_as<float>(op, plan);
    case ComputeType::kF64:
      return reduce_as<double>(op, plan);
    case ComputeType::kI64:
      return reduce_as<std::int64_t>(op, plan);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA

// Memory and traffic of a ZeroPlan, from shapes alone (Rajbhandari et al., 2020, sections 5 and 7).
// With Ψ elements, N data ranks and g micro-batches, elements that a rank sends, times (N−1)/N:
//
//     stage 0, 1   2Ψ          all-reduce, or reduce-scatter and all-gather, once a step
//     stage 2      (g+1)Ψ      a reduce-scatter for each micro-batch, one all-gather
//     stage 3      3gΨ         two all-gathers and a reduce-scatter for each micro-batch
//
// A tied weight is gathered for each of its units.

#include <algorithm>

#include "dist/zero_plan.h"

namespace tessera::dist {
namespace {

std::int64_t bytes(std::int64_t elements, DType dtype) {
  return elements * static_cast<std::int64_t>(size_bytes(dtype));
}

// Adds calls of one kind up; those of a group of one rank are not made.
class Ledger {
 public:
  void add(const std::string& group, Collective op, std::int64_t elements, DType dtype, int num_ranks,
           int rank, std::int64_t calls) {
    if (num_ranks == 1 || calls == 0) return;
    const auto found = std::ranges::find_if(
        rows_, [&](const ZeroTraffic& row) { return row.group == group && row.op == op; });
    ZeroTraffic& row =
        found != rows_.end() ? *found : rows_.emplace_back(ZeroTraffic{.group = group, .op = op});
    row.calls += calls;
    row.sent_bytes += calls * sent_bytes(op, elements, dtype, num_ranks, rank, -1);
  }
  [[nodiscard]] std::vector<ZeroTraffic> sorted() && {
    std::ranges::sort(rows_, {}, [](const ZeroTraffic& row) { return std::pair(row.group, row.op); });
    return std::move(rows_);
  }

 private:
  std::vector<ZeroTraffic> rows_;
};

// Whether the backward pass goes through the unit: to a trainable one at or before it in its stage, or to the
// input of a stage that is not the first.
bool is_gathered_backward(const ZeroPlan& plan, std::size_t unit) {
  const std::size_t stage = plan.units[unit].stage;
  if (plan.first_stage != stage) return true;
  for (std::size_t u = 0; u <= unit; ++u) {
    const bool trainable =
        std::ranges::any_of(plan.units[u].flats, [&plan](std::size_t f) { return plan.flats[f].trainable; });
    if (plan.units[u].stage == stage && trainable) return true;
  }
  return false;
}

// Times that a flat is gathered in one micro-batch.
std::int64_t gathers(const ZeroPlan& plan, const ZeroFlat& flat) {
  return static_cast<std::int64_t>(flat.units.size()) +
         std::ranges::count_if(flat.units, [&plan](std::size_t u) { return is_gathered_backward(plan, u); });
}

}  // namespace

ZeroGroupNames zero_group_names(const ZeroPlan& plan) {
  const int dp = plan.mesh[MeshAxis::kDp], cp = plan.mesh[MeshAxis::kCp];
  const std::string data = cp == 1 ? "dp" : dp == 1 ? "cp" : "dp+cp";
  return {.data = data,
          .inner = plan.ranks.outer == 1 ? data : data + ".inner",
          .gather = data + ".gather",
          .outer = data + ".outer"};
}

namespace {

std::int64_t elements_of(const ZeroPlan& plan, const ZeroUnit& unit) {
  std::int64_t elements = 0;
  for (const std::size_t f : unit.flats) elements += plan.flats[f].padded;
  return elements;
}

// What is gathered beside the unit in use: what prefetching takes, within both of its bounds; what persists;
// what is kept for a use that comes soon.
std::int64_t gathered_ahead(const ZeroPlan& plan, const ZeroOptions& options,
                            std::int64_t bytes_per_element) {
  std::int64_t all = 0, largest = 0, persistent = 0;
  for (const ZeroUnit& unit : plan.units) largest = std::max(largest, elements_of(plan, unit));
  for (const ZeroFlat& flat : plan.flats) {
    all += flat.padded;
    if (plan.is_persistent(flat)) persistent += flat.padded;
  }
  const std::int64_t wanted = options.prefetch_elements < 0 ? largest : options.prefetch_elements;
  const std::int64_t ahead =
      std::min(wanted, std::max<std::int64_t>(options.max_live_parameters - largest, 0));
  const std::int64_t reused = options.max_reuse_distance == 0 ? 0 : options.max_reuse_distance + largest;
  return std::min(ahead + persistent + reused, all - largest) * bytes_per_element;
}

// One that is being filled, those that wait for other ranks (see ZeroReduce), and those of tied weights,
// which are complete only with their last use. All of them where they are kept for the last micro-batch.
std::int64_t full_gradients(const ZeroPlan& plan) {
  std::int64_t all = 0, largest = 0, tied = 0;
  for (const ZeroFlat& flat : plan.flats) {
    if (!flat.trainable) continue;
    const std::int64_t size = bytes(flat.padded, flat.gradient_dtype);
    all += size;
    largest = std::max(largest, size);
    if (flat.units.size() > 1 || flat.is_shared) tied += size;
  }
  if (plan.placement.gradients == Spread::kWhole) return 0;
  if (plan.keep_full_gradients || plan.tree_sums) return all;
  const std::int64_t waiting = plan.placement.parameters == Spread::kWhole ? 2 : 1;
  return std::min((1 + waiting) * largest + tied, all);
}

}  // namespace

ZeroMemory predict_memory(const ZeroPlan& plan, const ZeroOptions& options, int data_rank,
                          std::int64_t optimizer_bytes_per_element) {
  const auto held = [&plan](const ZeroFlat& flat, Spread spread) {
    return flat.padded / plan.ranks.ways(spread);
  };
  ZeroMemory memory;
  for (const ZeroFlat& flat : plan.flats) {
    memory.parameters += bytes(held(flat, plan.placement.parameters), flat.dtype);
    if (!flat.trainable) continue;
    memory.gradients += bytes(held(flat, plan.placement.gradients), flat.gradient_dtype);
    // Padding has no optimizer state.
    const Spread spread = plan.placement.optimizer;
    const Range slice = flat.slice(plan.ranks.ways(spread), plan.ranks.part(spread, data_rank));
    memory.optimizer += (std::min(slice.end, flat.elements) - std::min(slice.begin, flat.elements)) *
                        optimizer_bytes_per_element;
  }
  memory.full_gradients = full_gradients(plan);
  if (plan.placement.parameters == Spread::kWhole) return memory;
  std::int64_t widest = 0;  // bytes of an element
  for (const ZeroFlat& flat : plan.flats) widest = std::max(widest, bytes(1, flat.dtype));
  memory.prefetched_parameters = gathered_ahead(plan, options, widest);
  for (const ZeroUnit& unit : plan.units) {
    std::int64_t gathered = 0;
    for (const std::size_t f : unit.flats) gathered += bytes(plan.flats[f].padded, plan.flats[f].dtype);
    memory.gathered_parameters = std::max(memory.gathered_parameters, gathered);
  }
  return memory;
}

std::vector<ZeroTraffic> predict_traffic(const ZeroPlan& plan, const MeshShape::Coordinate& coordinate,
                                         int accumulation) {
  const ZeroGroupNames names = zero_group_names(plan);
  const auto [inner, outer] = plan.ranks;
  const int data_rank = coordinate[MeshAxis::kDp] * plan.mesh[MeshAxis::kCp] + coordinate[MeshAxis::kCp];
  const int p = data_rank % inner, q = data_rank / inner;
  const auto [parameters, gradients, optimizer] = plan.placement;
  const bool every_time = !plan.keep_full_gradients;
  const std::int64_t nodes = longest_list(sample_owners(plan.mesh, accumulation * plan.mesh[MeshAxis::kDp]));
  Ledger ledger;
  for (const ZeroFlat& flat : plan.flats) {
    const std::int64_t slice = flat.padded / inner, piece = slice / outer;  // of a flat cut that far
    if (parameters != Spread::kWhole) {
      const std::int64_t times = plan.is_persistent(flat) ? 1 : gathers(plan, flat) * accumulation;
      ledger.add(names.gather, Collective::kAllGather, slice, flat.dtype, inner, p, times);
    }
    if (!flat.trainable) continue;
    const DType dtype = flat.gradient_dtype;
    // Where gradients are cut, a pass through a stage ends with the sum over ranks.
    const std::int64_t passes = accumulation * static_cast<std::int64_t>(plan.stages_using(flat));
    if (plan.tree_sums) {
      // Nodes of the tree go to whoever adds them up, and the sum from there to all: see dist/tree_sum.h. A
      // tree for each unit.
      const int ranks = inner * outer;
      const std::int64_t share = (flat.padded + ranks - 1) / ranks;
      const auto trees = static_cast<std::int64_t>(flat.units.size());
      ledger.add(names.data, Collective::kAllToAll, nodes * share, dtype, ranks, data_rank, trees);
      if (optimizer == Spread::kWhole || outer > 1)
        ledger.add(names.data, Collective::kAllGather, share, dtype, ranks, data_rank, trees);
      if (optimizer == Spread::kAll)
        ledger.add(names.outer, Collective::kAllGather, piece, flat.dtype, outer, q, 1);
      if (optimizer != Spread::kWhole && parameters == Spread::kWhole)
        ledger.add(names.inner, Collective::kAllGather, slice, flat.dtype, inner, p, 1);
    } else if (optimizer == Spread::kWhole) {
      ledger.add(names.data, Collective::kAllReduce, flat.padded, dtype, inner * outer, data_rank, 1);
    } else {
      ledger.add(names.inner, Collective::kReduceScatter, slice, dtype, inner, p,
                 gradients != Spread::kWhole && every_time ? passes : 1);
      if (optimizer == Spread::kAll) {
        ledger.add(names.outer, Collective::kReduceScatter, piece, dtype, outer, q,
                   gradients == Spread::kAll && every_time ? passes : 1);
        ledger.add(names.outer, Collective::kAllGather, piece, flat.dtype, outer, q, 1);
      } else {
        ledger.add(names.outer, Collective::kAllReduce, slice, dtype, outer, q, 1);
      }
      if (parameters == Spread::kWhole) {
        ledger.add(names.inner, Collective::kAllGather, slice, flat.dtype, inner, p, 1);
      }
    }
    if (flat.is_shared) {
      ledger.add(kSharingGroupName, Collective::kAllReduce, flat.padded / plan.ranks.ways(optimizer), dtype,
                 plan.num_sharing, 0, 1);
    }
    for (const MeshAxis axis : flat.sum_axes) {
      ledger.add(name(axis), Collective::kAllReduce, flat.padded / plan.ranks.ways(optimizer), dtype,
                 plan.mesh[axis], coordinate[axis], 1);
    }
  }
  return std::move(ledger).sorted();
}

}  // namespace tessera::dist

#include "kernels/cpu/reduction_plan.h"

#include <algorithm>

namespace tessera::kernels {
namespace {

ReductionPlan make_plan(const ConstView& x, const View& y, const bool (&is_reduced)[kMaxDims]) noexcept {
  // Two views of x, one per nest; the rest of the dimensions have size 1 there.
  ConstView kept_x = x, kept_y = y, reduced_x = x;
  for (int d = 0; d < x.dims; ++d) {
    if (is_reduced[d]) {
      kept_x.shape[d] = kept_y.shape[d] = 1;
    } else {
      reduced_x.shape[d] = 1;
    }
  }
  ReductionPlan plan;
  plan.kept = make_loop(LoopOrder::kFastest, kept_y, &kept_x);
  plan.reduced = make_loop(LoopOrder::kFastest, reduced_x);
  const std::int64_t outputs = plan.kept.size, elements = plan.reduced.size;
  const std::int64_t kept_step = plan.kept.operands[1].strides[plan.kept.dims - 1];
  const std::int64_t reduced_step = plan.reduced.operands[0].strides[plan.reduced.dims - 1];
  plan.by_rows = outputs == 1 || (reduced_step < kept_step && elements >= 16);
  plan.num_chunks = 1;
  plan.chunk_size = elements;
  return plan;
}

void cut_into_chunks(ReductionPlan& plan) noexcept {
  const std::int64_t outputs = plan.kept.size, elements = plan.reduced.size;
  constexpr std::int64_t kWork = 1 << 16;  // elements of x that are worth a thread
  constexpr std::int64_t kMaxChunks = 64;
  const std::int64_t enough_outputs = plan.by_rows ? 256 : 16384;
  if (outputs == 0 || outputs >= enough_outputs || outputs * elements < 2 * kWork) return;
  const std::int64_t smallest = std::max<std::int64_t>(kWork / outputs, 128);
  plan.chunk_size = std::max(smallest, (elements + kMaxChunks - 1) / kMaxChunks);
  plan.num_chunks = (elements + plan.chunk_size - 1) / plan.chunk_size;
}

}  // namespace

ReductionPlan make_reduction_plan(const ConstView& x, const View& y) noexcept {
  bool is_reduced[kMaxDims] = {};
  for (int d = 0; d < x.dims; ++d) is_reduced[d] = y.shape[d] == 1 && x.shape[d] != 1;
  ReductionPlan plan = make_plan(x, y, is_reduced);
  cut_into_chunks(plan);
  return plan;
}

ReductionPlan make_reduction_plan(const ConstView& x, const View& y, int dim) noexcept {
  bool is_reduced[kMaxDims] = {};
  is_reduced[dim] = true;
  return make_plan(x, y, is_reduced);
}

}  // namespace tessera::kernels

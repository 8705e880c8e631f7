#include "nn/token_positions.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::nn {
namespace {

bool is_cut_along_tokens(const AxisLayout& on_axis) { return on_axis.is_sharded() && on_axis.dim() == 1; }

// Without layouts (RankContext::check_layouts is false) the number of tokens must tell.
bool is_cut_on_tp(const Tensor& x) {
  const RankContext& context = RankContext::current();
  if (context.check_layouts) return is_cut_along_tokens(x.layout()[MeshAxis::kTp]);
  const std::int64_t tokens = tokens_of_tp_peers();
  return context.place(MeshAxis::kTp).size > 1 && tokens != 0 && x.dim(1) != tokens;
}

void refuse_unknown_cuts(const Tensor& x) {
  const RankContext& context = RankContext::current();
  for (const MeshAxis axis : kMeshAxes) {
    const AxisLayout on_axis = x.layout()[axis];
    if (!is_cut_along_tokens(on_axis)) continue;
    const bool on_tp = axis == MeshAxis::kTp;
    if (on_tp ? on_axis.in_order() : context.token_positions != nullptr) continue;
    throw LayoutError(fmt::format(
        "token positions: x {} is {} along its tokens{}", to_string(x.shape()), to_string(x.layout()),
        on_tp ? " in another order than one piece after the other"
              : ", and RankContext::token_positions does not say which of them this rank has"));
  }
}

std::vector<std::int64_t> count_from(std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

// This rank's piece on tp.
std::vector<std::int64_t> piece(const std::vector<std::int64_t>& all) {
  const MeshPlace place = RankContext::current().place(MeshAxis::kTp);
  const auto count = static_cast<std::int64_t>(all.size());
  const auto first = all.begin() + shard_begin(count, place.size, place.index);
  return {first, first + shard_size(count, place.size, place.index)};
}

}  // namespace

std::int64_t tokens_of_tp_peers() {
  const RankContext& context = RankContext::current();
  if (context.token_positions != nullptr) return static_cast<std::int64_t>(context.token_positions->size());
  return context.sequence_length;
}

bool holds_part_of_tokens(const Tensor& x) {
  refuse_unknown_cuts(x);
  return RankContext::current().token_positions != nullptr || is_cut_on_tp(x);
}

TokenIndices token_indices(const Tensor& x, std::int64_t first_position) {
  refuse_unknown_cuts(x);
  const RankContext& context = RankContext::current();
  const bool listed = context.token_positions != nullptr, cut = is_cut_on_tp(x);
  TokenIndices tokens;
  tokens.first_sample = context.sample_offset;
  tokens.sequence_length = context.sequence_length;
  if ((listed || cut) && context.sequence_length == 0) {
    throw LayoutError(fmt::format(
        "token positions: x {} holds a part of its sequences, and RankContext::sequence_length does not say "
        "how long they are",
        to_string(x.shape())));
  }
  if (listed) {
    tokens.positions = *context.token_positions;
  } else {
    tokens.positions = count_from(first_position, cut ? context.sequence_length : x.dim(1));
    if (!cut) tokens.sequence_length = std::max(context.sequence_length, first_position + x.dim(1));
  }
  if (cut) tokens.positions = piece(tokens.positions);
  if (static_cast<std::int64_t>(tokens.positions.size()) != x.dim(1)) {
    throw ShapeError(
        fmt::format("token positions: x {} ({}) has {} tokens, but this rank's part of the "
                    "sequences has {}",
                    to_string(x.shape()), to_string(x.layout()), x.dim(1), tokens.positions.size()));
  }
  return tokens;
}

Tensor position_ids(const Tensor& x, std::int64_t first_position) {
  Tensor ids;
  if (holds_part_of_tokens(x)) {
    ids = from_vector<std::int64_t>(token_indices(x, first_position).positions).to(x.device());
  } else {
    const auto first = static_cast<double>(first_position);
    ids = arange(first, first + static_cast<double>(x.dim(1)), 1.0, {.dtype = kI64, .device = x.device()});
  }
  Layout layout;
  for (const MeshAxis axis : kMeshAxes) {
    const AxisLayout on_axis = x.layout()[axis];
    if (is_cut_along_tokens(on_axis)) layout = layout.with(axis, on_axis.moved_to(0));
  }
  return ids.set_layout(layout);
}

}  // namespace tessera::nn

#include "dist/sequence_cut.h"

#include <fmt/format.h>

#include "autograd/attention.h"
#include "autograd/indexing.h"
#include "autograd/layout_rules.h"
#include "dist/collectives.h"
#include "kernels/error.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

void check_size(std::int64_t length, int num_ranks) {
  if (length >= 0 && num_ranks >= 1) return;
  throw ConfigError(fmt::format("sequence cut: {} tokens can't be cut over {} ranks", length, num_ranks));
}

}  // namespace

SequenceCut SequenceCut::balanced(std::int64_t length, int num_ranks) {
  check_size(length, num_ranks);
  return {length, num_ranks, true};
}

SequenceCut SequenceCut::contiguous(std::int64_t length, int num_ranks) {
  check_size(length, num_ranks);
  return {length, num_ranks, false};
}

std::vector<SequenceCut::Chunk> SequenceCut::chunks(int rank) const {
  std::vector<Chunk> result;
  const int count = is_balanced_ ? 2 * num_ranks_ : num_ranks_;
  for (const int c : {rank, 2 * num_ranks_ - 1 - rank}) {
    if (c >= count) continue;
    const Chunk chunk{shard_begin(length_, count, c), shard_size(length_, count, c)};
    if (chunk.size > 0) result.push_back(chunk);
  }
  return result;
}

std::int64_t SequenceCut::size(int rank) const {
  std::int64_t total = 0;
  for (const Chunk& chunk : chunks(rank)) total += chunk.size;
  return total;
}

std::shared_ptr<const std::vector<std::int64_t>> SequenceCut::positions(int rank) const {
  auto result = std::make_shared<std::vector<std::int64_t>>();
  for (const Chunk& chunk : chunks(rank)) {
    for (std::int64_t i = 0; i < chunk.size; ++i) result->push_back(chunk.begin + i);
  }
  return result;
}

Tensor SequenceCut::take(const Tensor& whole, int dim, int rank) const {
  if (whole.dim(dim) != length_) {
    throw ShapeError(
        fmt::format("sequence cut: a tensor of {} tokens along dimension {} is needed, but came {}", length_,
                    dim, describe(whole)));
  }
  std::vector<Tensor> parts;
  for (const Chunk& chunk : chunks(rank)) {
    parts.push_back(whole.slice(dim, chunk.begin, chunk.begin + chunk.size));
  }
  if (parts.empty()) return whole.slice(dim, 0, 0);
  return parts.size() == 1 ? parts.front() : concat(parts, dim);
}

void SequenceCut::check(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v,
                        const Communicator& group) const {
  if (num_ranks_ != group.size()) {
    throw ShapeError(fmt::format("{}: the sequence is cut over {} ranks, but the group '{}' has {}",
                                 operation, num_ranks_, group.name(), group.size()));
  }
  tessera::detail::check_attention(operation, q, k, v);
  const std::int64_t tokens = size(group.rank());
  if (q.dim(1) != tokens || k.dim(1) != tokens) {
    throw ShapeError(fmt::format("{}: of {} tokens over {} ranks rank {} has {}, but q is {} and k {}",
                                 operation, length_, num_ranks_, group.rank(), tokens, to_string(q.shape()),
                                 to_string(k.shape())));
  }
  check_device(operation, q, group);
}

Layout SequenceCut::layout_of_attention(const char* operation, const Tensor& q, const Tensor& k,
                                        const Tensor& v, MeshAxis axis) const {
  const Layout result = layout_rules::attention_over_ranks(operation, q, k, v, axis);
  if (RankContext::current().check_layouts && result[axis] != layout(1)) {
    throw LayoutError(fmt::format("{}: on {}, the sequence is cut as {}, but q, k and v are {}", operation,
                                  name(axis), to_string(layout(1)), to_string(result[axis])));
  }
  return result;
}

}  // namespace tessera::dist

#include "dist/tree_sum.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "autograd/grad_mode.h"
#include "dist/collectives.h"
#include "kernels/cpu/parallel.h"
#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

// Elements that are carried through the tree at a time: partial sums stay in the first-level cache.
constexpr std::int64_t kBlock = 1024;

// Where a node of two or more leaves falls apart.
std::int64_t split(LeafRange node) noexcept {
  return node.begin + static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(node.size() - 1)));
}

void collect_nodes(LeafRange node, LeafRange run, std::vector<LeafRange>& nodes) {
  if (node.end <= run.begin || run.end <= node.begin) return;
  if (run.begin <= node.begin && node.end <= run.end) {
    nodes.push_back(node);
    return;
  }
  const std::int64_t middle = split(node);
  collect_nodes({node.begin, middle}, run, nodes);
  collect_nodes({middle, node.end}, run, nodes);
}

}  // namespace

bool is_tree_node(LeafRange range, std::int64_t num_leaves) noexcept {
  LeafRange node{0, num_leaves};
  while (node.begin <= range.begin && range.end <= node.end && range.size() > 0) {
    if (node == range) return true;
    if (node.size() < 2) return false;
    const std::int64_t middle = split(node);
    node = range.begin < middle ? LeafRange{node.begin, middle} : LeafRange{middle, node.end};
  }
  return false;
}

std::vector<LeafRange> tree_nodes(LeafRange run, std::int64_t num_leaves) {
  std::vector<LeafRange> nodes;
  if (run.size() > 0) collect_nodes({0, num_leaves}, run, nodes);
  return nodes;
}

std::int64_t longest_list(const LeafOwners& owners) {
  std::size_t longest = 0;
  for (const LeafRange& run : owners.runs)
    longest = std::max(longest, tree_nodes(run, owners.num_leaves).size());
  return static_cast<std::int64_t>(longest);
}

// --- On one rank -------------------------------------------------------------------------------------------

bool TreeAccumulator::are_halves(LeafRange left, LeafRange right) const noexcept {
  return left.end == right.begin && is_tree_node({left.begin, right.end}, num_leaves_);
}

// Two neighbours that make a node are its halves: no other two nodes of the tree do. Which of them is added
// to which does not matter, for a + b is b + a.
TreeAccumulator::Place TreeAccumulator::add_to_neighbour(std::int64_t leaf, const Tensor& value) {
  const LeafRange single{leaf, leaf + 1};
  auto i = static_cast<std::size_t>(std::ranges::upper_bound(ranges_, leaf, {}, &LeafRange::begin) -
                                    ranges_.begin());
  if (leaf < run_.begin || leaf >= run_.end || (i > 0 && leaf < ranges_[i - 1].end)) {
    throw IndexError(fmt::format("tree sum: leaf {} {} of [{}, {})", leaf,
                                 leaf < run_.begin || leaf >= run_.end ? "is none" : "came twice, in a sum",
                                 run_.begin, run_.end));
  }
  if (i > 0 && are_halves(ranges_[i - 1], single)) {
    nodes_[--i].add_scaled(value);
    ranges_[i].end = single.end;
  } else if (i < ranges_.size() && are_halves(single, ranges_[i])) {
    nodes_[i].add_scaled(value);
    ranges_[i].begin = single.begin;
  } else {
    return {.index = i, .is_taken_in = false};
  }
  // As long as a neighbour is the other half of a node, the two become it.
  while (true) {
    if (i > 0 && are_halves(ranges_[i - 1], ranges_[i])) {
      --i;
    } else if (i + 1 == ranges_.size() || !are_halves(ranges_[i], ranges_[i + 1])) {
      return {.index = i, .is_taken_in = true};
    }
    nodes_[i].add_scaled(nodes_[i + 1]);
    ranges_[i].end = ranges_[i + 1].end;
    nodes_.erase(nodes_.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranges_.erase(ranges_.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
}

void TreeAccumulator::insert(std::size_t index, std::int64_t leaf, Tensor value) {
  ranges_.insert(ranges_.begin() + static_cast<std::ptrdiff_t>(index), {leaf, leaf + 1});
  nodes_.insert(nodes_.begin() + static_cast<std::ptrdiff_t>(index), std::move(value));
}

void TreeAccumulator::add_leaf(std::int64_t leaf, const Tensor& value) {
  const Place place = add_to_neighbour(leaf, value);
  if (!place.is_taken_in) insert(place.index, leaf, value.detach().clone());
}

void TreeAccumulator::add(Tensor&& value) {
  const Place place = add_to_neighbour(next_, value);
  if (!place.is_taken_in) insert(place.index, next_, std::move(value));
  ++next_;
}

// --- Over ranks --------------------------------------------------------------------------------------------

namespace {

/// A node that is there, with the memory of its sum; several of one range are added up.
template <class T>
struct Source {
  LeafRange range;
  const T* data;
};

/// Combines elements [offset, offset + n) below `node` into `result`. `sources` begins with the first of the
/// node and is moved behind its last.
template <class T>
void combine_tree(LeafRange node, const Source<T>*& source, std::int64_t offset, std::int64_t n, T* result) {
  if (source->range == node) {
    for (std::int64_t i = 0; i < n; ++i) result[i] = source->data[offset + i];
    for (++source; source->data != nullptr && source->range == node; ++source) {
      for (std::int64_t i = 0; i < n; ++i) result[i] += source->data[offset + i];
    }
    return;
  }
  const std::int64_t middle = split(node);
  combine_tree({node.begin, middle}, source, offset, n, result);
  alignas(64) T right[kBlock];
  combine_tree({middle, node.end}, source, offset, n, right);
  for (std::int64_t i = 0; i < n; ++i) result[i] += right[i];
}

/// The sum of all leaves. address(rank, i) is where the elements of that rank's i-th node are.
template <class T, class Address>
void combine(const LeafOwners& owners, const Address& address, std::int64_t count, void* result) {
  std::vector<Source<T>> sources;
  for (std::size_t rank = 0; rank < owners.runs.size(); ++rank) {
    std::size_t i = 0;
    for (const LeafRange& range : tree_nodes(owners.runs[rank], owners.num_leaves))
      sources.push_back({range, static_cast<const T*>(address(rank, i++))});
  }
  std::ranges::stable_sort(sources, {}, [](const Source<T>& source) { return source.range.begin; });
  sources.push_back({{}, nullptr});
  kernels::parallel_for(count, 64 * kBlock, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t offset = begin; offset < end; offset += kBlock) {
      const Source<T>* source = sources.data();
      alignas(64) T block[kBlock];
      const std::int64_t n = std::min(kBlock, end - offset);
      combine_tree<T>({0, owners.num_leaves}, source, offset, n, block);
      std::copy_n(block, n, static_cast<T*>(result) + offset);
    }
  });
}

template <class Address>
void combine(const LeafOwners& owners, const Address& address, Tensor& result) {
  if (result.device() == meta) return;
  const std::int64_t count = result.num_elements();
  void* out = result.mutable_view().data;
  switch (result.dtype()) {
    case kF32:
      return combine<float>(owners, address, count, out);
    case kF64:
      return combine<double>(owners, address, count, out);
    default:
      throw DTypeError(fmt::format("tree sum: partial sums are in f32 or f64, not {}", name(result.dtype())));
  }
}

void check(const LeafOwners& owners, std::span<const Tensor> nodes, const Communicator& group) {
  const auto size = static_cast<std::size_t>(group.size()), rank = static_cast<std::size_t>(group.rank());
  std::vector<LeafRange> runs = owners.runs;
  std::ranges::sort(runs, {}, [](const LeafRange& run) { return std::pair(run.begin, run.end); });
  std::int64_t covered = 0;
  for (const LeafRange& run : runs)
    if (run.begin <= covered) covered = std::max(covered, run.end);
  if (owners.num_leaves > 0 && covered == owners.num_leaves && runs.size() == size &&
      nodes.size() == tree_nodes(owners.runs[rank], owners.num_leaves).size())
    return;
  throw ShapeError(fmt::format(
      "tree sum: {} runs for {} ranks reach to {} of {} leaves, and rank {} gives {} partial sums",
      runs.size(), size, covered, owners.num_leaves, rank, nodes.size()));
}

/// Of nodes [R · count] (or less: then the last pieces are short), this rank's piece of the sum.
void exchange(std::span<const Tensor> nodes, const LeafOwners& owners, Communicator& group,
              std::int64_t count, Tensor& result) {
  check(owners, nodes, group);
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  const int ranks = group.size();
  if (ranks == 1)
    return combine(
        owners, [&](std::size_t, std::size_t i) { return nodes[i].view().data; }, result);

  const CategoryScope category(MemoryCategory::kCommunication);
  const std::int64_t slots = longest_list(owners);
  const TensorOptions like{.dtype = result.dtype(), .device = result.device()};
  // In the order of the wire: for each receiver the nodes, one behind the other.
  Tensor sent = zeros({ranks, slots, count}, like);
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const std::int64_t size = nodes[i].num_elements();
    const Tensor flat = nodes[i].detach().reshape({size});
    for (int r = 0; r < ranks; ++r) {
      const std::int64_t begin = std::min(r * count, size), end = std::min(begin + count, size);
      if (begin == end) continue;
      sent.select(0, r)
          .select(0, static_cast<std::int64_t>(i))
          .slice(0, 0, end - begin)
          .copy_from(flat.slice(0, begin, end));
    }
  }
  Tensor received = empty(sent.shape(), like);
  group.all_to_all(const_buffer_of(sent), buffer_of(received));
  const std::int64_t bytes = count * static_cast<std::int64_t>(size_bytes(result.dtype()));
  combine(
      owners,
      [&, data = static_cast<const std::byte*>(received.view().data)](std::size_t rank,
                                                                      std::size_t i) -> const void* {
        return data + (static_cast<std::int64_t>(rank) * slots + static_cast<std::int64_t>(i)) * bytes;
      },
      result);
}

}  // namespace

void tree_reduce_scatter(std::span<const Tensor> nodes, const LeafOwners& owners, Communicator& group,
                         Tensor& result) {
  exchange(nodes, owners, group, result.num_elements(), result);
}

void tree_all_reduce(std::span<const Tensor> nodes, const LeafOwners& owners, Communicator& group,
                     Tensor& result) {
  const int ranks = group.size();
  const std::int64_t size = result.num_elements(), count = (size + ranks - 1) / ranks;
  if (ranks == 1) return exchange(nodes, owners, group, size, result);
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  const CategoryScope category(MemoryCategory::kCommunication);
  const TensorOptions like{.dtype = result.dtype(), .device = result.device()};
  Tensor own = empty({count}, like), all = empty({ranks * count}, like);
  exchange(nodes, owners, group, count, own);
  group.all_gather(const_buffer_of(own), buffer_of(all));
  Tensor flat = result.detach().reshape({size});
  flat.copy_from(all.slice(0, 0, size));
}

}  // namespace tessera::dist

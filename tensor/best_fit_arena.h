#pragma once

// Private to tensor/memory.cpp and its test: where a pool's large blocks come from.

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace tessera::detail {

/// Large blocks out of a few long runs of memory. A request takes the smallest free range that holds it, of
/// equals the lowest, and leaves the rest; a freed block becomes one range with its free neighbours. So what
/// activations give back serves gradients of any other size, and equal requests in equal order get equal
/// addresses.
///
///     a region:   | block | free | block | block | free |        addresses without memory        | guard |
///                 |<------------ memory: `reserved` ---->| grows to the right, by what is missing
///
/// A region is a range of addresses, 16 GiB of them, of which a growing part has memory: what is added lies
/// next to what is there and merges with it. Memory is mapped for huge pages (a fault for each 4 KiB costs
/// more than the work on it), and the part of a free range that no block ever lay in is never touched.
///
/// Threads   None of its own: the pool holds its lock.
/// Cost      A few steps down a balanced tree of the free ranges.
/// Source    Best fit by address order: Wilson et al., "Dynamic storage allocation: a survey", 1995.
class BestFitArena {
 public:
  static constexpr std::size_t kGranule = 4096;  ///< blocks begin and end at its multiples

  BestFitArena() = default;
  ~BestFitArena();  ///< gives everything back; no block may be in use
  BestFitArena(const BestFitArena&) = delete;
  BestFitArena& operator=(const BestFitArena&) = delete;

  /// A block for `size_bytes` > 0, its contents undefined; null when the system has no memory left.
  [[nodiscard]] void* allocate(std::size_t size_bytes);
  /// Takes back a block of `allocate(size_bytes)`.
  void free(void* data, std::size_t size_bytes) noexcept;
  /// Gives the memory of all free ranges back to the system. Their addresses stay in use, and those that lie
  /// between blocks get memory again when they are used.
  void trim() noexcept;

  [[nodiscard]] std::size_t reserved_bytes() const noexcept { return reserved_bytes_; }
  /// Times that the system was asked for memory.
  [[nodiscard]] std::int64_t system_allocations() const noexcept { return system_allocations_; }
  [[nodiscard]] std::size_t num_free_ranges() const noexcept { return ranges_.size(); }

 private:
  struct Region {
    std::byte* mapping = nullptr;  // as mmap gave it; `begin` is its first address at a huge page
    std::size_t mapping_bytes = 0;
    std::byte* begin = nullptr;
    std::size_t address_bytes = 0;  // from `begin`, without the guard
    std::size_t memory_bytes = 0;   // of these, how many have memory
    [[nodiscard]] std::byte* top() const noexcept { return begin + memory_bytes; }
  };
  struct FreeRange {
    std::size_t size_bytes = 0;
    std::size_t trimmed_bytes = 0;  // of these, how many were given back and come again when they are touched
  };
  using Ranges = std::map<std::byte*, FreeRange>;

  [[nodiscard]] bool grow(std::size_t size_bytes);
  [[nodiscard]] bool grow(Region& region, std::size_t size_bytes);
  [[nodiscard]] bool map_region(std::size_t size_bytes);
  void unmap(const Region& region) noexcept;
  void add_range(std::byte* begin, FreeRange range) noexcept;
  FreeRange remove_range(Ranges::iterator range) noexcept;
  [[nodiscard]] Ranges::iterator range_below(std::byte* end) noexcept;

  std::vector<Region> regions_;
  Ranges ranges_;                                         // by address
  std::set<std::pair<std::size_t, std::byte*>> by_size_;  // the same, by size and then address
  std::size_t reserved_bytes_ = 0;
  std::int64_t system_allocations_ = 0;
};

}  // namespace tessera::detail

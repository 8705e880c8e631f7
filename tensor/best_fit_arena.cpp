#include "tensor/best_fit_arena.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <iterator>

namespace tessera::detail {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kRegionAddresses = std::size_t{16} << 30;
constexpr std::size_t kRegionAddressesIfLimited = std::size_t{64} << 20;

std::size_t round_up(std::size_t size_bytes, std::size_t multiple) {
  return (size_bytes + multiple - 1) / multiple * multiple;
}

// What a region grows to: whole huge pages, unless that were more than an eighth in vain.
std::size_t rounded_memory(std::size_t size_bytes) {
  return round_up(size_bytes, std::clamp(std::bit_floor(size_bytes) / 8, BestFitArena::kGranule, kHugePage));
}

// Addresses cost nothing, unless the process was given a limit of them (ulimit -v).
bool addresses_are_limited() {
  rlimit limit{};
  return getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

std::byte* map_addresses(void* where, std::size_t size_bytes, int flags) {
  void* mapped =
      mmap(where, size_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  madvise(mapped, size_bytes, MADV_HUGEPAGE);  // advice only: failure costs speed, nothing else
  return static_cast<std::byte*>(mapped);
}

}  // namespace

BestFitArena::~BestFitArena() {
  for (const Region& region : regions_) unmap(region);
}

void* BestFitArena::allocate(std::size_t size_bytes) {
  const std::size_t block_bytes = round_up(size_bytes, kGranule);
  if (block_bytes < size_bytes) return nullptr;  // within a page of all that a size can say
  const auto fit = [&] { return by_size_.lower_bound({block_bytes, nullptr}); };
  auto found = fit();
  if (found == by_size_.end()) {
    if (!grow(block_bytes)) return nullptr;
    found = fit();
  }
  std::byte* const block = found->second;
  const FreeRange range = remove_range(ranges_.find(block));
  if (range.trimmed_bytes > 0) {
    reserved_bytes_ += range.trimmed_bytes;
    ++system_allocations_;
  }
  if (range.size_bytes > block_bytes) add_range(block + block_bytes, {range.size_bytes - block_bytes});
  ASAN_UNPOISON_MEMORY_REGION(block, size_bytes);
  return block;
}

void BestFitArena::free(void* data, std::size_t size_bytes) noexcept {
  const std::size_t block_bytes = round_up(size_bytes, kGranule);
  ASAN_POISON_MEMORY_REGION(data, block_bytes);
  add_range(static_cast<std::byte*>(data), {block_bytes});
}

// Regions never touch (each ends with a guard), so neighbours are of one region.
void BestFitArena::add_range(std::byte* begin, FreeRange range) noexcept {
  const auto merge = [&range](const FreeRange& neighbour) {
    range.size_bytes += neighbour.size_bytes;
    range.trimmed_bytes += neighbour.trimmed_bytes;
  };
  if (const auto after = ranges_.find(begin + range.size_bytes); after != ranges_.end())
    merge(remove_range(after));
  if (const auto before = range_below(begin); before != ranges_.end()) {
    begin = before->first;
    merge(remove_range(before));
  }
  ranges_.emplace(begin, range);
  by_size_.emplace(range.size_bytes, begin);
}

BestFitArena::FreeRange BestFitArena::remove_range(Ranges::iterator range) noexcept {
  const FreeRange removed = range->second;
  by_size_.erase({removed.size_bytes, range->first});
  ranges_.erase(range);
  return removed;
}

// The free range that ends at `end`, if there is one.
BestFitArena::Ranges::iterator BestFitArena::range_below(std::byte* end) noexcept {
  const auto next = ranges_.lower_bound(end);
  if (next == ranges_.begin()) return ranges_.end();
  const auto below = std::prev(next);
  return below->first + below->second.size_bytes == end ? below : ranges_.end();
}

bool BestFitArena::grow(std::size_t size_bytes) {
  for (Region& region : regions_) {
    if (grow(region, size_bytes)) return true;
  }
  if (!map_region(size_bytes)) return false;
  if (grow(regions_.back(), size_bytes)) return true;
  unmap(regions_.back());
  regions_.pop_back();
  return false;
}

// What is free at the region's end counts: only what it lacks is asked for.
bool BestFitArena::grow(Region& region, std::size_t size_bytes) {
  const auto last = range_below(region.top());
  const std::size_t free_bytes = last == ranges_.end() ? 0 : last->second.size_bytes;
  if (size_bytes - free_bytes > region.address_bytes - region.memory_bytes) return false;
  const std::size_t memory_bytes = rounded_memory(region.memory_bytes + size_bytes - free_bytes);
  const std::size_t added_bytes = memory_bytes - region.memory_bytes;
  if (mprotect(region.top(), added_bytes, PROT_READ | PROT_WRITE) != 0) return false;
  std::byte* const added = region.top();
  ASAN_POISON_MEMORY_REGION(added, added_bytes);
  region.memory_bytes = memory_bytes;
  reserved_bytes_ += added_bytes;
  ++system_allocations_;
  add_range(added, {added_bytes});
  return true;
}

bool BestFitArena::map_region(std::size_t size_bytes) {
  if (size_bytes > SIZE_MAX / 2) return false;
  const std::size_t least = round_up(size_bytes, kHugePage);
  Region region;
  region.address_bytes =
      std::max(least, addresses_are_limited() ? kRegionAddressesIfLimited : kRegionAddresses);
  const std::size_t around = 2 * kHugePage;  // to begin at a huge page, and the guard
  region.mapping = map_addresses(nullptr, region.address_bytes + around, 0);
  if (region.mapping == nullptr && region.address_bytes > least) {
    region.address_bytes = least;
    region.mapping = map_addresses(nullptr, region.address_bytes + around, 0);
  }
  if (region.mapping == nullptr) return false;
  region.mapping_bytes = region.address_bytes + around;
  const auto address = reinterpret_cast<std::uintptr_t>(region.mapping);
  region.begin = region.mapping + (round_up(address, kHugePage) - address);
  regions_.push_back(region);
  return true;
}

void BestFitArena::unmap(const Region& region) noexcept {
  ASAN_UNPOISON_MEMORY_REGION(region.begin, region.memory_bytes);
  munmap(region.mapping, region.mapping_bytes);
}

void BestFitArena::trim() noexcept {
  for (Region& region : regions_) {
    const auto last = range_below(region.top());
    if (last == ranges_.end()) continue;
    std::byte* const begin = last->first;
    const FreeRange range = last->second;
    // New addresses in the place of the old: the system takes back the memory and its promise of it.
    if (map_addresses(begin, range.size_bytes, MAP_FIXED) == nullptr) continue;
    ASAN_UNPOISON_MEMORY_REGION(begin, range.size_bytes);
    remove_range(last);
    region.memory_bytes -= range.size_bytes;
    reserved_bytes_ -= range.size_bytes - range.trimmed_bytes;
  }
  std::erase_if(regions_, [this](const Region& region) {
    if (region.memory_bytes == 0) unmap(region);
    return region.memory_bytes == 0;
  });
  for (auto& [begin, range] : ranges_) {
    if (madvise(begin, range.size_bytes, MADV_DONTNEED) != 0) continue;
    reserved_bytes_ -= range.size_bytes - range.trimmed_bytes;
    range.trimmed_bytes = range.size_bytes;
  }
}

}  // namespace tessera::detail

#include "tensor/memory.h"

#include <fmt/format.h>

#include <bit>
#include <cstdlib>
#include <utility>

#include "kernels/error.h"

namespace tessera {
namespace {

constexpr std::size_t kLargeBlock = std::size_t{128} << 10;

// Size classes: multiples of 64 bytes up to 1 KiB, then eight steps for each power of two. At most an eighth
// is lost, and a step's requests, which repeat exactly, always find their block again.
std::size_t size_class(std::size_t size_bytes) {
  if (size_bytes <= 1024) return (size_bytes + 63) / 64 * 64;
  const std::size_t step = std::bit_floor(size_bytes - 1) / 8;
  return (size_bytes + step - 1) / step * step;
}

}  // namespace

const char* name(MemoryCategory category) noexcept {
  switch (category) {
    case MemoryCategory::kParameter:
      return "parameter";
    case MemoryCategory::kGradient:
      return "gradient";
    case MemoryCategory::kOptimizerState:
      return "optimizer_state";
    case MemoryCategory::kActivation:
      return "activation";
    case MemoryCategory::kCommunication:
      return "communication";
    case MemoryCategory::kWorkspace:
      return "workspace";
    case MemoryCategory::kHostActivation:
      return "host_activation";
  }
  return "?";
}

MemoryPool::~MemoryPool() { trim(); }

void* MemoryPool::allocate(std::size_t size_bytes, MemoryCategory category) {
  if (size_bytes == 0) return nullptr;
  const std::lock_guard lock(mutex_);
  void* data = nullptr;
  if (device_.type != DeviceType::kMeta) {
    data = allocate_block(size_bytes);
    if (data == nullptr) {
      trim_locked();
      data = allocate_block(size_bytes);
    }
    if (data == nullptr) throw StorageError(out_of_memory_message(size_bytes));
  }
  count(static_cast<std::int64_t>(size_bytes), category);
  return data;
}

void* MemoryPool::allocate_block(std::size_t size_bytes) {
  if (size_bytes >= kLargeBlock) return large_blocks_.allocate(size_bytes);
  const std::size_t block_bytes = size_class(size_bytes);
  auto& cached = small_blocks_[block_bytes];
  if (!cached.empty()) {
    void* data = cached.back();
    cached.pop_back();
    return data;
  }
  void* data = std::aligned_alloc(64, block_bytes);
  if (data == nullptr) return nullptr;
  report_.reserved += static_cast<std::int64_t>(block_bytes);
  ++report_.system_allocations;
  return data;
}

void MemoryPool::free(void* data, std::size_t size_bytes, MemoryCategory category) noexcept {
  if (size_bytes == 0) return;
  const std::lock_guard lock(mutex_);
  count(-static_cast<std::int64_t>(size_bytes), category);
  if (data == nullptr) return;
  if (size_bytes >= kLargeBlock) {
    large_blocks_.free(data, size_bytes);
  } else {
    small_blocks_[size_class(size_bytes)].push_back(data);
  }
}

void MemoryPool::recategorize(std::size_t size_bytes, MemoryCategory from, MemoryCategory to) noexcept {
  const std::lock_guard lock(mutex_);
  count(-static_cast<std::int64_t>(size_bytes), from);
  count(static_cast<std::int64_t>(size_bytes), to);
}

void MemoryPool::count(std::int64_t bytes, MemoryCategory category) noexcept {
  for (MemoryUse* use : {&report_.by_category[static_cast<std::size_t>(category)], &report_.total}) {
    use->current += bytes;
    if (use->current <= use->peak) continue;
    use->peak = use->current;
    if (use == &report_.total) note_peak();
  }
}

void MemoryPool::note_peak() noexcept {
  for (std::size_t c = 0; c < kNumMemoryCategories; ++c) report_.at_peak[c] = report_.by_category[c].current;
  report_.peak_moment = moment_;
  report_.peak_moment += place_;
}

MemoryReport MemoryPool::report() const {
  const std::lock_guard lock(mutex_);
  MemoryReport report = report_;
  report.reserved += static_cast<std::int64_t>(large_blocks_.reserved_bytes());
  report.system_allocations += large_blocks_.system_allocations();
  return report;
}

void MemoryPool::reset_peak() noexcept {
  const std::lock_guard lock(mutex_);
  for (MemoryUse& use : report_.by_category) use.peak = use.current;
  report_.total.peak = report_.total.current;
  note_peak();
}

void MemoryPool::set_moment(std::string moment) {
  const std::lock_guard lock(mutex_);
  moment_ = std::move(moment);
  place_.clear();
}

void MemoryPool::set_place(std::string_view preposition, std::string_view place) {
  const std::lock_guard lock(mutex_);
  place_ = ", ";
  place_ += preposition;
  place_ += ' ';
  place_ += place;
}

void MemoryPool::trim() noexcept {
  const std::lock_guard lock(mutex_);
  trim_locked();
}

void MemoryPool::trim_locked() noexcept {
  large_blocks_.trim();
  for (auto& [block_bytes, blocks] : small_blocks_) {
    for (void* block : blocks) std::free(block);
    report_.reserved -= static_cast<std::int64_t>(block_bytes * blocks.size());
    blocks.clear();
  }
}

std::string MemoryPool::out_of_memory_message(std::size_t size_bytes) const {
  std::string message =
      fmt::format("out of memory on {}: {} bytes were asked for; in use:", to_string(device_), size_bytes);
  for (int c = 0; c < kNumMemoryCategories; ++c) {
    const auto category = static_cast<MemoryCategory>(c);
    message += fmt::format(" {} {},", name(category), report_.of(category).current);
  }
  return message + fmt::format(" total {} bytes", report_.total.current);
}

}  // namespace tessera

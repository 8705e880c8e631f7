#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/context.h"
#include "tensor/best_fit_arena.h"
#include "tensor/device.h"

namespace tessera {

/// What a block of memory is for. Every storage has one; pools keep current and peak bytes for each.
enum class MemoryCategory : std::uint8_t {
  kParameter,
  kGradient,
  kOptimizerState,
  kActivation,
  kCommunication,
  kWorkspace,
  kHostActivation,  ///< kept in host memory until the backward pass; see autograd/checkpoint.h
};
inline constexpr int kNumMemoryCategories = 7;

/// "parameter", "gradient", "optimizer_state", "activation", "communication", "workspace", "host_activation".
[[nodiscard]] const char* name(MemoryCategory category) noexcept;

/// Bytes that tensors asked for (not rounded up), now and at most since the last `reset_peak`.
struct MemoryUse {
  std::int64_t current = 0;
  std::int64_t peak = 0;
};

struct MemoryReport {
  std::array<MemoryUse, kNumMemoryCategories> by_category;
  MemoryUse total;  ///< its peak is the peak of the sum, not the sum of the peaks
  /// Of the total's peak, by category: not the categories' own peaks, which come at different moments.
  std::array<std::int64_t, kNumMemoryCategories> at_peak{};
  std::string peak_moment;              ///< when the total was at its peak, as set_moment() said then
  std::int64_t reserved = 0;            ///< bytes held from the system, cached blocks included
  std::int64_t system_allocations = 0;  ///< times that the system was asked; constant in a steady step

  [[nodiscard]] const MemoryUse& of(MemoryCategory category) const {
    return by_category[static_cast<std::size_t>(category)];
  }
};

/// A rank's memory on one device: hands out 64-byte aligned blocks, keeps freed ones, and counts bytes by
/// category. A small block waits for the next request of its size class; large ones, from 128 KiB on, are
/// parts of long runs of memory, split and merged as they come (tensor/best_fit_arena.h). On the meta device
/// it counts and allocates nothing.
///
/// Threads   All members may be called from any thread: a storage may be freed by another rank than its
///           owner.
class MemoryPool final : public kernels::WorkspaceSource {
 public:
  explicit MemoryPool(Device device) : device_(device) {}
  ~MemoryPool() override;
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  [[nodiscard]] Device device() const noexcept { return device_; }

  /// Null on meta and for 0 bytes. Throws StorageError when the system has no memory left; the message holds
  /// the bytes in use by category.
  [[nodiscard]] void* allocate(std::size_t size_bytes, MemoryCategory category);
  void free(void* data, std::size_t size_bytes, MemoryCategory category) noexcept;
  /// Moves the count of a live block to another category.
  void recategorize(std::size_t size_bytes, MemoryCategory from, MemoryCategory to) noexcept;

  [[nodiscard]] MemoryReport report() const;
  /// Peaks start again from what is in use now.
  void reset_peak() noexcept;
  /// What the rank does from now on, "Forward of micro-batch 3", and then where in it, "in h.5": for
  /// MemoryReport::peak_moment.
  void set_moment(std::string moment);
  void set_place(std::string_view preposition, std::string_view place);
  /// Gives cached memory back to the system.
  void trim() noexcept;

  void* acquire(std::size_t size_bytes) override { return allocate(size_bytes, MemoryCategory::kWorkspace); }
  void release(void* data, std::size_t size_bytes) noexcept override {
    free(data, size_bytes, MemoryCategory::kWorkspace);
  }

 private:
  void count(std::int64_t bytes, MemoryCategory category) noexcept;
  void note_peak() noexcept;
  [[nodiscard]] void* allocate_block(std::size_t size_bytes);
  void trim_locked() noexcept;
  [[nodiscard]] std::string out_of_memory_message(std::size_t size_bytes) const;

  Device device_;
  mutable std::mutex mutex_;
  detail::BestFitArena large_blocks_;
  std::map<std::size_t, std::vector<void*>> small_blocks_;  // the free ones, by size class
  MemoryReport report_;  // reserved and system_allocations of small blocks alone
  std::string moment_, place_;
};

}  // namespace tessera

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "tensor/device.h"
#include "tensor/memory.h"

namespace tessera {

/// A block of memory that tensors share: a cheap handle with shared ownership.
///
/// It can be *dropped* (its memory goes, its handles stay) and *refilled* (memory comes back, with contents
/// to be written): a sharded parameter, and everything that autograd captured of it, is one storage whose
/// data comes and goes. Touching the data of a dropped storage throws StorageError with its name.
///
/// Threads   Handles may be copied and destroyed on any thread; one storage is used by one rank at a time.
class Storage {
 public:
  Storage() = default;
  /// Allocates from `pool`; contents are not initialised.
  Storage(std::shared_ptr<MemoryPool> pool, std::size_t size_bytes, MemoryCategory category);
  /// Borrows memory that its owner keeps alive longer than every handle. Not counted, cannot be dropped.
  [[nodiscard]] static Storage borrow(void* data, std::size_t size_bytes, Device device);

  [[nodiscard]] bool defined() const noexcept { return impl_ != nullptr; }
  [[nodiscard]] std::size_t size_bytes() const noexcept;
  [[nodiscard]] Device device() const noexcept;
  [[nodiscard]] MemoryCategory category() const noexcept;
  void set_category(MemoryCategory category) noexcept;
  /// For messages: the parameter that lives here.
  [[nodiscard]] const std::string& name() const noexcept;
  void set_name(std::string name);

  /// Null for 0 bytes. Throws StorageError if dropped, DeviceError on meta.
  ///
  /// Writing through it does not count as a change (see version()): it is how a dropped parameter gets the
  /// values back that it had, without making what autograd saved of it look stale.
  [[nodiscard]] void* data() const;
  /// Like data(), but null on meta: kernels of the meta device only look at shapes.
  [[nodiscard]] void* data_or_null() const;

  [[nodiscard]] bool is_dropped() const noexcept;
  /// Gives the memory back to the pool. Handles, shape and category stay. Dropping twice is allowed.
  void drop();
  /// Gets memory again, with undefined contents: the values that were dropped must be written back through
  /// data(), or new ones through a tensor. Without effect if not dropped.
  void refill();

  /// Counts changes in place; autograd compares it with the number it saw when it saved a value.
  [[nodiscard]] std::uint64_t version() const noexcept;
  void bump_version() noexcept;

  /// Number of handles: 1 means that nobody else can see the data.
  [[nodiscard]] long use_count() const noexcept { return impl_.use_count(); }
  friend bool operator==(const Storage& a, const Storage& b) noexcept { return a.impl_ == b.impl_; }

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tessera

#include "tensor/storage.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera {

struct Storage::Impl {
  std::shared_ptr<MemoryPool> pool;  // null: borrowed
  void* data = nullptr;
  std::size_t size_bytes = 0;
  Device device;
  MemoryCategory category = MemoryCategory::kActivation;
  bool dropped = false;
  std::uint64_t version = 0;
  std::string name;

  ~Impl() {
    if (pool != nullptr && !dropped) pool->free(data, size_bytes, category);
  }
};

Storage::Storage(std::shared_ptr<MemoryPool> pool, std::size_t size_bytes, MemoryCategory category)
    : impl_(std::make_shared<Impl>()) {
  impl_->dropped = true;  // nothing to free if the allocation throws
  impl_->device = pool->device();
  impl_->size_bytes = size_bytes;
  impl_->category = category;
  impl_->pool = std::move(pool);
  impl_->data = impl_->pool->allocate(size_bytes, category);
  impl_->dropped = false;
}

Storage Storage::borrow(void* data, std::size_t size_bytes, Device device) {
  Storage storage;
  storage.impl_ = std::make_shared<Impl>();
  storage.impl_->data = data;
  storage.impl_->size_bytes = size_bytes;
  storage.impl_->device = device;
  return storage;
}

std::size_t Storage::size_bytes() const noexcept { return impl_->size_bytes; }
Device Storage::device() const noexcept { return impl_->device; }
MemoryCategory Storage::category() const noexcept { return impl_->category; }
const std::string& Storage::name() const noexcept { return impl_->name; }
void Storage::set_name(std::string name) { impl_->name = std::move(name); }
bool Storage::is_dropped() const noexcept { return impl_->dropped; }
std::uint64_t Storage::version() const noexcept { return impl_->version; }
void Storage::bump_version() noexcept { ++impl_->version; }

void Storage::set_category(MemoryCategory category) noexcept {
  if (impl_->pool != nullptr && !impl_->dropped) {
    impl_->pool->recategorize(impl_->size_bytes, impl_->category, category);
  }
  impl_->category = category;
}

void* Storage::data_or_null() const {
  if (impl_->dropped) {
    throw StorageError(fmt::format("storage '{}' ({} bytes) was dropped: refill it before its data is used",
                                   impl_->name.empty() ? "unnamed" : impl_->name, impl_->size_bytes));
  }
  return impl_->data;
}

void* Storage::data() const {
  if (impl_->device.type == DeviceType::kMeta) {
    throw DeviceError(
        fmt::format("storage '{}' is on the meta device, which has shapes and no data; materialise it first",
                    impl_->name.empty() ? "unnamed" : impl_->name));
  }
  return data_or_null();
}

void Storage::drop() {
  if (impl_->pool == nullptr)
    throw StorageError("drop: the storage borrows its memory and cannot give it back");
  if (impl_->dropped) return;
  impl_->pool->free(impl_->data, impl_->size_bytes, impl_->category);
  impl_->data = nullptr;
  impl_->dropped = true;
}

void Storage::refill() {
  if (!impl_->dropped) return;
  impl_->data = impl_->pool->allocate(impl_->size_bytes, impl_->category);
  impl_->dropped = false;
}

}  // namespace tessera

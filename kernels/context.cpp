#include "kernels/context.h"

#include <cstdlib>

#include "kernels/error.h"

namespace tessera::kernels {
namespace {
thread_local KernelContext* current = nullptr;
}  // namespace

KernelContext& kernel_context() noexcept {
  static thread_local KernelContext thread_default;
  return current != nullptr ? *current : thread_default;
}

KernelContext* exchange_kernel_context(KernelContext* context) noexcept {
  KernelContext* previous = current;
  current = context;
  return previous;
}

Workspace::Workspace(std::size_t size_bytes)
    : size_bytes_((size_bytes + 63) / 64 * 64), source_(kernel_context().workspace_source) {
  if (size_bytes_ == 0) return;
  data_ = source_ != nullptr ? source_->acquire(size_bytes_) : std::aligned_alloc(64, size_bytes_);
  if (data_ == nullptr) throw StorageError("workspace: the system has no memory left for scratch space");
}

Workspace::~Workspace() {
  if (data_ == nullptr) return;
  if (source_ != nullptr) {
    source_->release(data_, size_bytes_);
  } else {
    std::free(data_);
  }
}

}  // namespace tessera::kernels

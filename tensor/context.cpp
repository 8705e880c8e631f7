#include "tensor/context.h"

#include <algorithm>
#include <thread>

namespace tessera {
namespace {
thread_local RankContext* installed = nullptr;
}  // namespace

RankContext::RankContext(const Options& options)
    : rank(options.rank),
      world_size(options.world_size),
      seed(options.seed),
      cpu_pool_(std::make_shared<MemoryPool>(cpu)),
      meta_pool_(std::make_shared<MemoryPool>(meta)) {
  kernels.num_threads = options.num_threads;
  kernels.workspace_source = cpu_pool_.get();
}

void RankContext::count_meta_from_zero() { meta_pool_ = std::make_shared<MemoryPool>(meta); }

RankContext& RankContext::current() noexcept {
  if (installed != nullptr) return *installed;
  // A thread's default is installed for good the first time, so that its kernels see it too.
  static thread_local RankContext thread_default(
      {.num_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()))});
  static thread_local Scope scope(thread_default);
  return thread_default;
}

RankContext::Scope::Scope(RankContext& context) noexcept
    : previous_(installed), previous_kernels_(kernels::exchange_kernel_context(&context.kernels)) {
  installed = &context;
}

RankContext::Scope::~Scope() {
  installed = previous_;
  kernels::exchange_kernel_context(previous_kernels_);
}

}  // namespace tessera

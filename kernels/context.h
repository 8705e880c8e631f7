#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tessera::kernels {

/// What the meta device counts: calls, floating-point operations, bytes read and written.
struct OpCounts {
  std::uint64_t calls = 0;
  std::uint64_t flops = 0;
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
};

/// Kernels that go about as fast as each other: what an operation or a byte costs depends on it.
enum class KernelKind : std::uint8_t {
  kOther,      ///< bound by memory, mostly
  kProduct,    ///< of matrices
  kAttention,  ///< products of small tiles, and exponentials
  kUpdate,     ///< of parameters by an optimizer
};
inline constexpr std::size_t kNumKernelKinds = 4;
using CountsByKind = std::array<OpCounts, kNumKernelKinds>;

/// Where kernels take scratch memory from: the rank's allocator, so that it is counted as workspace.
class WorkspaceSource {
 public:
  virtual ~WorkspaceSource() = default;
  /// 64-byte aligned; never null for size_bytes > 0.
  virtual void* acquire(std::size_t size_bytes) = 0;
  virtual void release(void* data, std::size_t size_bytes) noexcept = 0;
};

/// State that a device keeps between kernel calls of one rank (created matrix-product primitives, say).
class DeviceCache {
 public:
  virtual ~DeviceCache() = default;
};

/// The part of a rank's context that kernels see. One per rank; only that rank's thread touches it.
struct KernelContext {
  int num_threads = 1;                          ///< threads of one parallel loop of this rank
  OpCounts counts;                              ///< filled by the meta device
  CountsByKind counts_by_kind;                  ///< the same, by KernelKind
  WorkspaceSource* workspace_source = nullptr;  ///< null: the system's aligned allocation
  std::unique_ptr<DeviceCache> cpu_cache;
  /// Matrix products by Tessera's own loops for many rows alone: an element depends on its row of a, its
  /// column of b and K, not on the number of threads nor on how rows and columns are cut. False: those of few
  /// rows go through loops of their own and large ones through oneDNN, which is faster.
  bool invariant_products = false;
};

/// The calling thread's context; a thread that never set one has a default of its own with one thread.
[[nodiscard]] KernelContext& kernel_context() noexcept;

/// Makes `context` the calling thread's; null restores the thread's default. Returns the one replaced.
KernelContext* exchange_kernel_context(KernelContext* context) noexcept;

/// Scratch memory for the length of a scope, from the calling rank's source. 64-byte aligned, not cleared.
class Workspace {
 public:
  explicit Workspace(std::size_t size_bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  [[nodiscard]] void* data() const noexcept { return data_; }
  template <class T>
  [[nodiscard]] T* as() const noexcept {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_bytes_ = 0;
  WorkspaceSource* source_ = nullptr;
};

}  // namespace tessera::kernels

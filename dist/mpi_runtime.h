#pragma once

#include <memory>

#include "dist/communicator.h"

namespace tessera::dist {

/// MPI, from initialisation to finalisation, without its header. mpi_runtime.cpp implements it; in a build
/// without MPI, communicator_no_mpi.cpp does, whose constructor throws ConfigError.
///
/// Made once per process, before any other use of MPI, and destroyed after every communicator.
class MpiRuntime {
 public:
  [[nodiscard]] static bool available() noexcept;

  MpiRuntime();
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  [[nodiscard]] int rank() const noexcept;
  [[nodiscard]] int size() const noexcept;
  /// Cores that this rank may use ÷ ranks of this host that may use the same; at least 1.
  [[nodiscard]] int threads_per_rank() const noexcept;

  /// The world of all processes.
  [[nodiscard]] std::shared_ptr<Communicator> world(std::shared_ptr<Tape> tape,
                                                    const CommOptions& options) const;

  /// True for the first rank of the host that asks: the one that reports the job's first cause.
  [[nodiscard]] bool claim_report() noexcept;
  /// Ends every process of the job with status `code`.
  [[noreturn]] void abort(int code) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

namespace detail {
/// The communicator over all processes: communicator_mpi.cpp. MPI has been initialised.
[[nodiscard]] std::shared_ptr<Communicator> make_mpi_world(std::shared_ptr<Tape> tape,
                                                           const CommOptions& options);
}  // namespace detail

}  // namespace tessera::dist

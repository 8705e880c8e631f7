// Stands in for communicator_mpi.cpp where TESSERA_WITH_MPI is off.

#include <cstdlib>

#include "dist/mpi_runtime.h"
#include "kernels/error.h"

namespace tessera::dist {

struct MpiRuntime::Impl {};

bool MpiRuntime::available() noexcept { return false; }

MpiRuntime::MpiRuntime() {
  throw ConfigError(
      "mpi: this program was started by mpiexec, but Tessera was built without MPI; build with "
      "-DTESSERA_WITH_MPI=ON, or run ranks as threads with --ranks N");
}

// Never reached: there is no object.
MpiRuntime::~MpiRuntime() = default;
int MpiRuntime::rank() const noexcept { return 0; }
int MpiRuntime::size() const noexcept { return 1; }
int MpiRuntime::threads_per_rank() const noexcept { return 1; }
std::shared_ptr<Communicator> MpiRuntime::world(std::shared_ptr<Tape> tape,
                                                const CommOptions& options) const {
  return make_self_communicator(std::move(tape), options);
}
bool MpiRuntime::claim_report() noexcept { return true; }
void MpiRuntime::abort(int code) noexcept { std::_Exit(code); }

}  // namespace tessera::dist

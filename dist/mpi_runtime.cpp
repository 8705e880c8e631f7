#include "dist/mpi_runtime.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "dist/mpi_requests.h"

namespace tessera::dist {
namespace {

/// What each process tells the others at the start.
struct Introduction {
  char host[MPI_MAX_PROCESSOR_NAME];
  cpu_set_t cores;
  std::int64_t job_id;  // rank 0's counts
};

// MPI_Finalize of MPICH 4.0 over UCX closes this rank's connections, then waits for all others without
// looking at the network. A rank that is still in its last call and sees a connection close opens it again,
// to close it in its turn, and nobody answers: the job stands for ever, one in five on two hosts
// (docs/cluster.md). MPICH's repair, of 2023, is github.com/pmodels/mpich/pull/6596. Until it is everywhere:
// no rank closes before all are through with their last call, and none looks at the network in between.
constexpr std::chrono::milliseconds kQuietBeforeFinalize{250};

bool share_a_core(const cpu_set_t& a, const cpu_set_t& b) {
  cpu_set_t both;
  CPU_AND(&both, &a, &b);
  return CPU_COUNT(&both) > 0;
}

}  // namespace

struct MpiRuntime::Impl {
  int rank = 0;
  int size = 1;
  int threads_per_rank = 1;
  int num_hosts = 1;
  int host_index = 0;  // hosts in order of their first rank
  std::int64_t job_id = 0;
};

bool MpiRuntime::available() noexcept { return true; }

MpiRuntime::MpiRuntime() : impl_(std::make_unique<Impl>()) {
  int provided = 0;
  detail::check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_SERIALIZED) {
    throw ConfigError("mpi: this MPI library was built without support for threads (MPI_THREAD_SERIALIZED)");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &impl_->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &impl_->size);

  Introduction mine{};
  int length = 0;
  MPI_Get_processor_name(mine.host, &length);
  sched_getaffinity(0, sizeof(mine.cores), &mine.cores);
  mine.job_id = (static_cast<std::int64_t>(getpid()) << 32) ^
                std::chrono::system_clock::now().time_since_epoch().count();
  std::vector<Introduction> all(static_cast<std::size_t>(impl_->size));
  detail::Requests requests;
  detail::check_mpi(MPI_Iallgather(&mine, sizeof(mine), MPI_BYTE, all.data(), sizeof(mine), MPI_BYTE,
                                   MPI_COMM_WORLD, requests.add()),
                    "MPI_Iallgather");
  for (detail::PollingWait wait; !requests.test();) wait.pause();

  impl_->job_id = all[0].job_id;
  int ranks_on_my_cores = 0;
  std::vector<std::string> hosts;
  for (const Introduction& other : all) {
    const bool same_host = std::strcmp(other.host, mine.host) == 0;
    if (same_host && share_a_core(other.cores, mine.cores)) ++ranks_on_my_cores;
    if (std::find(hosts.begin(), hosts.end(), other.host) == hosts.end()) hosts.emplace_back(other.host);
  }
  impl_->num_hosts = static_cast<int>(hosts.size());
  impl_->host_index = static_cast<int>(std::find(hosts.begin(), hosts.end(), mine.host) - hosts.begin());
  impl_->threads_per_rank = std::max(1, CPU_COUNT(&mine.cores) / std::max(1, ranks_on_my_cores));
}

MpiRuntime::~MpiRuntime() {
  if (impl_->num_hosts > 1) std::this_thread::sleep_for(kQuietBeforeFinalize);
  MPI_Finalize();
}

int MpiRuntime::rank() const noexcept { return impl_->rank; }
int MpiRuntime::size() const noexcept { return impl_->size; }
int MpiRuntime::threads_per_rank() const noexcept { return impl_->threads_per_rank; }

std::shared_ptr<Communicator> MpiRuntime::world(std::shared_ptr<Tape> tape,
                                                const CommOptions& options) const {
  return detail::make_mpi_world(std::move(tape), options);
}

bool MpiRuntime::claim_report() noexcept {
  // An address that only one process of a host can have: taken by the first, given back by the system when it
  // ends. Several hosts would each have a first; the later ones wait to be ended by the earlier.
  std::this_thread::sleep_for(std::chrono::milliseconds(std::min(200 * impl_->host_index, 2000)));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;  // sun_path[0] = 0: a name without a file
  const int length = std::snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "tessera-%llx",
                                   static_cast<unsigned long long>(impl_->job_id));
  const int socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return true;
  const auto address_size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<std::size_t>(length));
  return bind(socket_fd, reinterpret_cast<const sockaddr*>(&address), address_size) ==
         0;  // held until the end
}

void MpiRuntime::abort(int code) noexcept {
  // Ranks that fail at the same moment find the claim taken before this process gives it back.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  // The cause has been told; MPICH's own line about the abort would only bury it.
  if (const int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC); null_fd >= 0) dup2(null_fd, STDERR_FILENO);
  MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

}  // namespace tessera::dist

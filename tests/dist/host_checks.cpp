// What ranks on several hosts must see, whoever deals them out and however. Expectations come from the
// system (gethostname, sched_getaffinity) and from the command line, not from the library.

#include "tests/dist/host_checks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>

#include "dist/mesh.h"
#include "kernels/error.h"
#include "tests/dist/behaviours.h"
#include "tests/dist/tree_reference.h"

namespace tessera::dist::testing {
namespace {

constexpr auto kPp = MeshAxis::kPp, kDp = MeshAxis::kDp, kTp = MeshAxis::kTp;

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// The host of each rank, as the ranks themselves say.
std::vector<std::string> hosts_of_ranks(Communicator& world) {
  const std::string name = host_name();
  std::vector<std::uint8_t> mine(256), all(256 * static_cast<std::size_t>(world.size()));
  std::copy(name.begin(), name.end(), mine.begin());
  world.all_gather(buffer_of(std::as_const(mine)), buffer_of(all));
  std::vector<std::string> hosts;
  for (std::size_t r = 0; r < all.size(); r += 256) hosts.emplace_back(reinterpret_cast<char*>(&all[r]));
  return hosts;
}

/// World ranks of a group.
std::vector<std::int64_t> members(Communicator& group, int world_rank) {
  const std::int64_t mine[1] = {world_rank};
  std::vector<std::int64_t> all(static_cast<std::size_t>(group.size()));
  group.all_gather(buffer_of(mine), buffer_of(all));
  return all;
}

class HostChecks {
 public:
  HostChecks(Job& job, std::string_view expected) : job_(job), hosts_(hosts_of_ranks(job.world())) {
    std::string listed;
    for (const std::string& host : hosts_) listed += (listed.empty() ? "" : ",") + host;
    require(listed == expected, fmt::format("ranks stand on {}, expected {}", listed, expected));
    names_ = std::set<std::string>(hosts_.begin(), hosts_.end());
    per_host_ = job.size() / static_cast<int>(names_.size());
  }

  void threads_share_the_cores_of_their_host() {
    cpu_set_t cores;
    sched_getaffinity(0, sizeof(cores), &cores);
    const int expected = std::max(1, CPU_COUNT(&cores) / per_host_);
    require(job_.threads_per_rank() == expected,
            fmt::format("{} threads for a rank of {} on {} with {} cores", job_.threads_per_rank(), per_host_,
                        host_name(), CPU_COUNT(&cores)));
  }

  /// tp as wide as a host: no other ranks than a host's in a tp group, and one of each host in a dp group.
  void tensor_ranks_share_a_host() {
    MeshShape shape;
    shape.set(kDp, static_cast<int>(names_.size()));
    shape.set(kTp, per_host_);
    const Mesh mesh(shape, job_.shared_world());
    require(hosts_among(mesh.group(kTp)) == std::set{host_name()}, "tp stays on this rank's host");
    require(hosts_among(mesh.group(kDp)) == names_, "dp has all hosts");
    require(mesh.group(kTp).num_hosts() == 1, "tp says so");
    require(mesh.group(kDp).num_hosts() == static_cast<int>(names_.size()), "dp says so");
    require(mesh.picture().find(fmt::format("{} ranks on {} hosts", job_.size(), names_.size())) !=
                std::string::npos,
            mesh.picture());
    job_.log(mesh.picture());
  }

  /// Neighbouring data ranks are a host's: shard groups of hpZ and MiCS, which are made of neighbours, are.
  void neighbouring_data_ranks_share_a_host() {
    MeshShape shape;
    shape.set(kDp, job_.size());
    const Mesh mesh(shape, job_.shared_world());
    Communicator& dp = mesh.group(kDp);
    const int first = dp.rank() / per_host_ * per_host_;
    std::vector<int> neighbours;
    for (int i = 0; i < per_host_; ++i) neighbours.push_back(first + i);
    require(hosts_among(*dp.group_of(neighbours, "shard group")) == std::set{host_name()}, "neighbours");
  }

  /// A pipeline has each stage on one host.
  void stages_share_a_host() {
    MeshShape shape;
    shape.set(kPp, static_cast<int>(names_.size()));
    shape.set(kDp, per_host_);
    const Mesh mesh(shape, job_.shared_world());
    require(hosts_among(mesh.group(kDp)) == std::set{host_name()}, "the data ranks of a stage");
    require(hosts_among(mesh.group(kPp)) == names_, "stages go from host to host");
  }

  void tp_over_hosts_is_refused_unless_asked() {
    MeshShape shape;
    shape.set(kTp, job_.size());
    std::string message;
    try {
      const Mesh mesh(shape, job_.shared_world());
    } catch (const ConfigError& error) {
      message = error.what();
    }
    for (const std::string& name : names_) require(message.find(name) != std::string::npos, message);
    const Mesh mesh(shape, job_.shared_world(), {.host = {}, .allow_tp_across_hosts = true});
    require(hosts_among(mesh.group(kTp)) == names_, "the tp group has all hosts");
  }

  /// 4 MB, far above what is sent eagerly: the bits of the sum that this rank takes alone, of all inputs.
  void large_sums_are_those_of_one_process() {
    constexpr std::int64_t kCount = 1 << 20;
    std::vector<std::vector<float>> inputs;
    for (int r = 0; r < job_.size(); ++r) inputs.push_back(sample_vector<float>(77, r, kCount));
    std::vector<float> expected, summands(inputs.size());
    for (std::size_t i = 0; i < static_cast<std::size_t>(kCount); ++i) {
      for (std::size_t r = 0; r < inputs.size(); ++r) summands[r] = inputs[r][i];
      expected.push_back(tree_reference(summands, ReduceOp::kSum));
    }
    std::vector<float>& x = inputs[static_cast<std::size_t>(job_.rank())];
    job_.world().all_reduce(buffer_of(x));
    require_equal(x, expected, "the sum over hosts");
  }

 private:
  std::set<std::string> hosts_among(Communicator& group) {
    std::set<std::string> result;
    for (const std::int64_t rank : members(group, job_.rank()))
      result.insert(hosts_[static_cast<std::size_t>(rank)]);
    return result;
  }

  Job& job_;
  std::vector<std::string> hosts_;  // of world ranks
  std::set<std::string> names_;
  int per_host_ = 1;
};

}  // namespace

void check_hosts(Job& job, std::string_view hosts_of_ranks) {
  HostChecks checks(job, hosts_of_ranks);
  checks.threads_share_the_cores_of_their_host();
  checks.tensor_ranks_share_a_host();
  checks.neighbouring_data_ranks_share_a_host();
  checks.stages_share_a_host();
  checks.tp_over_hosts_is_refused_unless_asked();
  checks.large_sums_are_those_of_one_process();
  job.log(fmt::format("ranks on {}: meshes and sums hold, {} thread{} a rank", hosts_of_ranks,
                      job.threads_per_rank(), job.threads_per_rank() == 1 ? "" : "s"));
}

}  // namespace tessera::dist::testing

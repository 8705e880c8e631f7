#include "dist/host_memory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <vector>

#include "dist/gather_texts.h"
#include "kernels/error.h"
#include "kernels/readable.h"

namespace tessera::dist {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kUnknown = HostMemory::kUnknown;

// The number behind `name` in a file of lines "name number" or "name: number kB".
std::int64_t number_after(const fs::path& file, const std::string& name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word, unit;
    std::int64_t value = 0;
    if (words >> word >> value && (word == name || word == name + ":"))
      return words >> unit && unit == "kB" ? value * 1024 : value;
  }
  return kUnknown;
}

// All that is in the file, as one number; a limit that is "max" is none.
std::int64_t number_in(const fs::path& file) {
  std::ifstream in(file);
  std::int64_t value = 0;
  return in >> value ? value : kUnknown;
}

// Of one group. Pages of files that nobody has used for long are given back before the limit is felt.
std::int64_t room_in(const fs::path& group) {
  const std::int64_t limit = number_in(group / "memory.max"), used = number_in(group / "memory.current");
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  const std::int64_t reclaimable =
      std::max<std::int64_t>(number_after(group / "memory.stat", "inactive_file"), 0);
  return std::max<std::int64_t>(limit - used + reclaimable, 0);
}

std::string own_cgroup(const fs::path& file) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("0::")) return line.substr(3);  // version 2 has number 0 and no controllers here
  }
  return "/";
}

struct RankNeed {
  std::int64_t needed = 0;
  HostMemory memory;
};

std::string to_text(const RankNeed& rank) {
  return fmt::format("{} {} {}\n{}\n{}", rank.needed, rank.memory.available_bytes, rank.memory.limit_bytes,
                     rank.memory.host, rank.memory.cgroup);
}

RankNeed from_text(const std::string& text) {
  RankNeed rank;
  std::istringstream in(text);
  in >> rank.needed >> rank.memory.available_bytes >> rank.memory.limit_bytes;
  in.ignore(1);
  std::getline(in, rank.memory.host);
  std::getline(in, rank.memory.cgroup);
  return rank;
}

// The ranks that share what `first` has, and what they have to share: the least that one of them saw, for
// others may have taken some meanwhile.
struct Sharing {
  int num_ranks = 0;
  std::int64_t needed = 0, room = kUnknown;
};
template <class Shares, class Room>
Sharing add_up(const std::vector<RankNeed>& ranks, Shares shares, Room room) {
  Sharing sum;
  for (const RankNeed& rank : ranks) {
    if (!shares(rank.memory)) continue;
    ++sum.num_ranks;
    sum.needed += rank.needed;
    const std::int64_t seen = room(rank.memory);
    if (seen != kUnknown) sum.room = sum.room == kUnknown ? seen : std::min(sum.room, seen);
  }
  return sum;
}

void refuse_if_short(const Sharing& sharing, const std::string& host, const char* source) {
  if (sharing.room == kUnknown || sharing.needed <= sharing.room) return;
  const auto exact = [](std::int64_t bytes) {
    return fmt::format("{} bytes ({})", with_commas(bytes), with_byte_unit(bytes));
  };
  throw ConfigError(fmt::format(
      "memory: the {} on {} will hold {} of parameters, gradients and optimizer state, activations not "
      "counted, but {} are left there ({}); a higher ZeRO stage over more ranks, tp or pp over more hosts, "
      "16-bit parameters or a smaller model take less; \"memory_check\": false (gpt2_train: "
      "--no-memory-check) goes on all the same",
      sharing.num_ranks == 1 ? "rank" : fmt::format("{} ranks", sharing.num_ranks), host,
      exact(sharing.needed), exact(sharing.room), source));
}

}  // namespace

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown host";
}

HostMemory HostMemory::read(const fs::path& root) {
  HostMemory memory;
  memory.host = host_name();
  memory.available_bytes = number_after(root / "proc/meminfo", "MemAvailable");
  memory.cgroup = own_cgroup(root / "proc/self/cgroup");
  const fs::path top = root / "sys/fs/cgroup";
  // Each group around this one has a limit of its own. In a container they may be out of sight.
  for (fs::path group = fs::path(memory.cgroup).relative_path();; group = group.parent_path()) {
    const std::int64_t room = room_in(group.empty() ? top : top / group);
    if (room != kUnknown)
      memory.limit_bytes = memory.limit_bytes == kUnknown ? room : std::min(memory.limit_bytes, room);
    if (group.empty()) break;
  }
  return memory;
}

void require_memory(std::int64_t needed_bytes, const HostMemory& memory, Communicator& world) {
  std::vector<RankNeed> ranks;
  for (const std::string& text : gather_texts(to_text({needed_bytes, memory}), world))
    ranks.push_back(from_text(text));
  for (const RankNeed& rank : ranks) {
    const auto on_host = [&](const HostMemory& other) { return other.host == rank.memory.host; };
    refuse_if_short(add_up(ranks, on_host, [](const HostMemory& m) { return m.available_bytes; }),
                    rank.memory.host, "MemAvailable of /proc/meminfo");
    const auto in_group = [&](const HostMemory& other) {
      return on_host(other) && other.cgroup == rank.memory.cgroup;
    };
    refuse_if_short(add_up(ranks, in_group, [](const HostMemory& m) { return m.limit_bytes; }),
                    rank.memory.host, "memory.max of the cgroup");
  }
}

}  // namespace tessera::dist

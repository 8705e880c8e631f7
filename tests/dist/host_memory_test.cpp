// A model that the hosts cannot hold is refused before anything is allocated.

#include "dist/host_memory.h"

#include <gtest/gtest.h>

#include "dist/engine.h"
#include "dist/job.h"
#include "nn/gpt2.h"
#include "tensor/context.h"
#include "tests/data/temporary_folder.h"
#include "tests/dist/config_reading.h"

namespace tessera::dist {
namespace {

constexpr std::int64_t kKiB = 1024;

TEST(HostMemory, IsWhatTheKernelSays) {
  const data::TemporaryFolder root;
  const auto write = [&root](const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root / file).parent_path());
    data::write_file(root / file, text);
  };
  HostMemory memory = HostMemory::read(root.path());
  EXPECT_EQ(memory.available_bytes, HostMemory::kUnknown);
  EXPECT_EQ(memory.limit_bytes, HostMemory::kUnknown);

  write("proc/meminfo", "MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:   40 kB\nBuffers: 1 kB\n");
  write("proc/self/cgroup", "4:memory:/old\n0::/outer/inner\n");
  write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  write("sys/fs/cgroup/outer/inner/memory.current", "500\n");
  memory = HostMemory::read(root.path());
  EXPECT_EQ(memory.available_bytes, 40 * kKiB);
  EXPECT_EQ(memory.cgroup, "/outer/inner");
  EXPECT_EQ(memory.limit_bytes, HostMemory::kUnknown) << "\"max\" is no limit";

  write("sys/fs/cgroup/outer/memory.max", "9000\n");
  write("sys/fs/cgroup/outer/memory.current", "4000\n");
  write("sys/fs/cgroup/outer/memory.stat", "anon 3000\ninactive_file 700\nactive_file 300\n");
  EXPECT_EQ(HostMemory::read(root.path()).limit_bytes, 9000 - 4000 + 700);
  write("sys/fs/cgroup/outer/inner/memory.max", "1500\n");
  EXPECT_EQ(HostMemory::read(root.path()).limit_bytes, 1000) << "the tightest of all";
  write("sys/fs/cgroup/outer/inner/memory.current", "1501\n");
  EXPECT_EQ(HostMemory::read(root.path()).limit_bytes, 0);
}

TEST(HostMemory, OfThisMachineIsKnown) {
  const HostMemory memory = HostMemory::read();
  EXPECT_GT(memory.available_bytes, 0);
  EXPECT_FALSE(memory.host.empty());
}

struct Rank {
  std::int64_t needed;
  HostMemory memory;
};

// What every rank is told; "" if all may go on.
std::string check(const std::vector<Rank>& ranks) {
  std::vector<std::string> messages(ranks.size());
  run_thread_ranks(static_cast<int>(ranks.size()), [&](Job& job) {
    const auto rank = static_cast<std::size_t>(job.rank());
    try {
      require_memory(ranks[rank].needed, ranks[rank].memory, job.world());
    } catch (const ConfigError& error) {
      messages[rank] = error.what();
    }
  });
  for (const std::string& message : messages) EXPECT_EQ(message, messages[0]) << "on all ranks, or on none";
  return messages[0];
}

TEST(HostMemory, IsSharedByTheRanksOfAHost) {
  const HostMemory a{.host = "a", .available_bytes = 100}, b{.host = "b", .available_bytes = 1000};
  EXPECT_EQ(check({{50, a}, {50, a}}), "");
  EXPECT_EQ(check({{90, a}, {900, b}, {100, b}}), "") << "each host by itself";
  expect_parts(check({{50, b}, {50, a}, {51, a}}),
               {"the 2 ranks on a will hold 101 bytes", "but 100 bytes", "MemAvailable", "memory_check"});
  HostMemory later = a;  // one that saw less: another program began meanwhile
  later.available_bytes = 60;
  expect_parts(check({{50, a}, {50, later}}), {"the 2 ranks on a", "but 60 bytes"});
  EXPECT_EQ(check({{std::int64_t{1} << 50, {.host = "unknown system"}}}), "");
}

TEST(HostMemory, IsBoundByTheLimitOfEachCgroup) {
  const HostMemory x{.host = "a", .available_bytes = 1000, .cgroup = "/x", .limit_bytes = 60};
  HostMemory y = x;
  y.cgroup = "/y";
  EXPECT_EQ(check({{50, x}, {50, y}}), "");
  expect_parts(check({{50, x}, {50, x}}),
               {"the 2 ranks on a will hold 100 bytes", "but 60 bytes", "memory.max"});
}

// 16 bytes an element: f32 parameters, gradients and two moments of AdamW.
TEST(HostMemory, IsAskedOfAnEnginesRanksToTheByte) {
  const auto build = [](std::int64_t spare, bool memory_check) {
    run_thread_ranks(2, [&](Job& job) {
      nn::Gpt2 model = [] {
        const DeviceScope scope(meta);
        return nn::Gpt2({.vocab = 11, .context = 4, .layers = 1, .heads = 1, .width = 4});
      }();
      const std::int64_t needed = 2 * 16 * model.num_parameters();
      Config config;
      config.memory_check = memory_check;
      const Mesh mesh(resolve_mesh(config, job.size()), job.shared_world());
      EngineOptions options;
      options.host_memory = {.host = "here", .available_bytes = needed + spare};
      const Engine engine(model, config, mesh, options);
      EXPECT_GT(RankContext::current().pool(cpu)->report().total.current, 0);
    });
  };
  build(0, true);
  expect_parts(error_of([&] { build(-1, true); }), {"the 2 ranks on here will hold"});
  build(-1, false);
}

}  // namespace
}  // namespace tessera::dist

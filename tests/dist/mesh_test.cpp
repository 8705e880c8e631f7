#include "dist/mesh.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "dist/job.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

constexpr auto kPp = MeshAxis::kPp, kDp = MeshAxis::kDp, kCp = MeshAxis::kCp, kTp = MeshAxis::kTp;

TEST(MeshShape, SaysWhichAxesATextNames) {
  std::set<MeshAxis> named;
  static_cast<void>(MeshShape::parse("tp=2,dp=1", &named));
  EXPECT_EQ(named, (std::set{MeshAxis::kDp, MeshAxis::kTp}));
  static_cast<void>(MeshShape::parse("", &named));
  EXPECT_TRUE(named.empty());
}

TEST(MeshShape, IsTheSameInWhateverOrderItIsSpelled) {
  const MeshShape shape = MeshShape::parse("tp=2,pp=3,dp=4");
  EXPECT_EQ(shape, MeshShape::parse("pp=3,dp=4,tp=2"));
  EXPECT_EQ(shape.to_string(), "pp=3,dp=4,tp=2");
  EXPECT_EQ(shape.num_ranks(), 24);
  EXPECT_EQ(shape[kCp], 1);
  EXPECT_EQ(MeshShape::parse("").to_string(), "dp=1");
  EXPECT_EQ(MeshShape::parse(" pp=3, dp = 4 ,tp=\t2"), shape) << "blanks say nothing";
}

TEST(MeshShape, CountsPositionsThroughTheInnermostAxisFirst) {
  const MeshShape shape = MeshShape::parse("pp=2,dp=3,cp=2,tp=4");
  // ((1 · 3 + 2) · 2 + 1) · 4 + 3 = 47
  MeshShape::Coordinate last;
  last[kPp] = 1, last[kDp] = 2, last[kCp] = 1, last[kTp] = 3;
  EXPECT_EQ(shape.position(last), 47);
  std::set<int> seen;
  for (int p = 0; p < shape.num_ranks(); ++p) seen.insert(shape.position(shape.coordinate(p)));
  EXPECT_EQ(seen.size(), 48u);
  EXPECT_EQ(shape.coordinate(5)[kTp], 1);
  EXPECT_EQ(shape.coordinate(5)[kCp], 1);
}

TEST(MeshShape, RefusesWhatItCannotMean) {
  const struct {
    const char* name;
    const char* text;
    const char* message;
  } cases[] = {
      {"unknown axis", "dp=2,tq=2", "did you mean 'tp'"},
      {"twice", "dp=2,dp=2", "dp is given twice"},
      {"no size", "dp", "expected axis=size"},
      {"not a number", "dp=two", "expected axis=size"},
      {"trailing", "dp=2x", "expected axis=size"},
      {"zero", "tp=0", "size 1 or more, got 0"},
      {"empty part", "dp=2,,tp=2", "expected axis=size"},
      {"too large", "dp=99999999999", "expected axis=size"},
  };
  for (const auto& c : cases) {
    try {
      static_cast<void>(MeshShape::parse(c.text));
      ADD_FAILURE() << c.name;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(c.message), std::string::npos)
          << c.name << ": " << error.what();
    }
  }
}

// Every group adds up the world ranks of its members: each line through the grid, worked out here from
// coordinates.
TEST(Mesh, GroupsAreTheLinesThroughTheGrid) {
  const MeshShape shape = MeshShape::parse("pp=2,dp=3,tp=2");
  run_thread_ranks(12, [&](Job& job) {
    const Mesh mesh(shape, job.shared_world());
    const auto expected_sum = [&](MeshAxis a, MeshAxis b) {
      int sum = 0;
      for (int p = 0; p < shape.num_ranks(); ++p) {
        const auto other = shape.coordinate(p);
        bool on_line = true;
        for (const MeshAxis axis : kMeshAxes) {
          if (axis != a && axis != b) on_line = on_line && other[axis] == mesh.coordinate()[axis];
        }
        if (on_line) sum += p;
      }
      return sum;
    };
    for (const MeshAxis a : kMeshAxes) {
      for (const MeshAxis b : kMeshAxes) {
        std::vector<std::int64_t> sum{job.rank()};
        Communicator& group = a == b ? mesh.group(a) : mesh.group(a, b);
        group.all_reduce(buffer_of(sum));
        EXPECT_EQ(sum[0], expected_sum(a, b)) << name(a) << " " << name(b) << " rank " << job.rank();
        EXPECT_EQ(group.size(), a == b ? shape[a] : shape[a] * shape[b]);
      }
    }
    EXPECT_EQ(mesh.group(kTp).rank(), mesh.index(kTp));
    EXPECT_EQ(mesh.group(kPp, kDp).rank(), mesh.index(kPp) * 3 + mesh.index(kDp));
    EXPECT_EQ(mesh.group(kDp, kPp).name(), "pp+dp");
    EXPECT_EQ(mesh.group(kTp).name(), "tp");
    EXPECT_EQ(mesh.world_rank_at(mesh.coordinate()), job.rank());
  });
}

// Ranks alternate between two hosts, as a launcher that goes round them places them.
std::string alternating_host(int rank) { return rank % 2 == 0 ? "alpha" : "beta"; }

TEST(Mesh, PutsTensorParallelRanksOnOneHost) {
  run_thread_ranks(8, [](Job& job) {
    const Mesh mesh(MeshShape::parse("dp=2,tp=4"), job.shared_world(),
                    {.host = alternating_host(job.rank())});
    EXPECT_EQ(mesh.index(kDp), job.rank() % 2);  // the host
    EXPECT_EQ(mesh.index(kTp), job.rank() / 2);
    EXPECT_EQ(mesh.picture(),
              "mesh dp=2,tp=4: 8 ranks on 2 hosts\n"
              "        tp 0  tp 1  tp 2  tp 3\n"
              "dp 0       0     2     4     6   alpha\n"
              "dp 1       1     3     5     7   beta\n");
  });
}

TEST(Mesh, RefusesATensorParallelGroupThatReachesOverHostsUnlessAsked) {
  run_thread_ranks(6, [](Job& job) {
    MeshOptions options{.host = alternating_host(job.rank())};
    const auto make = [&] { const Mesh mesh(MeshShape::parse("tp=2,dp=3"), job.shared_world(), options); };
    EXPECT_THROW(make(), ConfigError);
    options.allow_tp_across_hosts = true;
    EXPECT_NO_THROW(make());
  });
}

TEST(Mesh, TellsItsGroupsOnHowManyHostsTheyStand) {
  run_thread_ranks(8, [](Job& job) {
    const auto before = job.world().split(0, job.rank(), "before");
    const Mesh mesh(MeshShape::parse("pp=2,dp=2,tp=2"), job.shared_world(),
                    {.host = alternating_host(job.rank())});
    EXPECT_EQ(before->num_hosts(), 1) << "made before anybody had asked for hosts";
    EXPECT_EQ(mesh.world().num_hosts(), 2);
    EXPECT_EQ(mesh.group(kTp).num_hosts(), 1);
    EXPECT_EQ(mesh.group(kDp).num_hosts(), 1);
    EXPECT_EQ(mesh.group(kDp, kTp).num_hosts(), 1);
    EXPECT_EQ(mesh.group(kPp).num_hosts(), 2);
    EXPECT_EQ(mesh.group(kCp).num_hosts(), 1) << "of one rank";
    // Groups of groups: pairs of neighbours, as shard groups are, and one rank of each host.
    Communicator& pp_dp = mesh.group(kPp, kDp);
    const int pair = pp_dp.rank() / 2 * 2, place = pp_dp.rank() % 2;
    EXPECT_EQ(pp_dp.group_of({pair, pair + 1}, "pair")->num_hosts(), 1);
    EXPECT_EQ(pp_dp.group_of({place, place + 2}, "place")->num_hosts(), 2);
    EXPECT_EQ(pp_dp.group_of({place, place + 2}, "place")->split(pp_dp.rank() / 2, 0, "one")->num_hosts(), 1);

    // Another mesh over the same ranks, all on one host.
    const Mesh other(MeshShape::parse("dp=8"), job.shared_world(), {.host = "gamma"});
    EXPECT_EQ(other.group(kDp).num_hosts(), 1);
    EXPECT_EQ(mesh.group(kPp).num_hosts(), 2) << "of a mesh that was there before";
  });
}

TEST(Mesh, ShowsTheEquationWhenTheShapeHasAnotherNumberOfRanks) {
  run_thread_ranks(4, [](Job& job) {
    try {
      const Mesh mesh(MeshShape::parse("dp=3,tp=2"), job.shared_world());
      ADD_FAILURE();
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "mesh dp=3,tp=2: dp 3 x tp 2 = 6 ranks, but this job has 4");
    }
  });
}

TEST(Mesh, OfOneRankSendsNothing) {
  run_thread_ranks(1, [](Job& job) {
    const Mesh mesh(MeshShape(), job.shared_world());
    std::vector<float> x{3};
    mesh.group(kTp).all_reduce(buffer_of(x));
    mesh.group(kDp, kTp).all_reduce(buffer_of(x));
    EXPECT_EQ(x[0], 3);
    EXPECT_EQ(job.tape().total_sent_bytes(), 0);
  });
}

}  // namespace
}  // namespace tessera::dist

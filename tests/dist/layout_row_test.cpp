#include "tests/layout_row.h"

#include <gtest/gtest.h>

#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

TEST(LayoutRow, SetsWhatItsWordsSay) {
  const Config config = read_layout("dp=2,tp=3 hpz=2 schedule=zb-v recompute=selective pass=4 bf16 Muon sp");
  EXPECT_EQ(config.mesh[MeshAxis::kDp], 2);
  EXPECT_EQ(config.mesh[MeshAxis::kTp], 3);
  EXPECT_EQ(config.zero.stage, 3);
  EXPECT_EQ(config.zero.hpz_partition_size, 2);
  EXPECT_EQ(config.pipeline.schedule, "zb-v");
  EXPECT_EQ(config.recompute.mode, Config::Recompute::Mode::kSelective);
  EXPECT_EQ(config.batch.micro_batch, 4);
  EXPECT_EQ(config.dtype, kBF16);
  EXPECT_EQ(config.optimizer.type, "Muon");
  EXPECT_EQ(config.optimizer.momentum, 0.9);
  EXPECT_TRUE(config.sequence_parallel);
}

TEST(LayoutRow, LeavesWhatItDoesNotName) {
  Config config;
  config.dtype = kF64;
  config.batch.micro_batch = 3;
  const Config read = read_layout("dp=2", config);
  EXPECT_EQ(read.dtype, kF64);
  EXPECT_EQ(read.batch.micro_batch, 3);
}

TEST(LayoutRow, AsksItsReaderFirst) {
  std::string seen;
  const Config config =
      read_layout("dp=2 threads=4 odd", {}, [&](const std::string& key, const std::string& value) {
        if (key != "threads" && key != "odd") return false;
        seen += key + ":" + value + ";";
        return true;
      });
  EXPECT_EQ(seen, "threads:4;odd:;");
  EXPECT_EQ(config.mesh[MeshAxis::kDp], 2);
}

// A word that is passed over would leave a table's row without what it is there for.
TEST(LayoutRow, RefusesWordsThatNobodyKnows) {
  for (const char* row : {"dp=2 zerro=3", "dp=2 Adamw", "dp=2 zero=4", "dp=2 zero=", "dp=2 chunks=2x",
                          "dp=2 recompute=some", "dp=2 scale=14", "dp=2 threads=2"}) {
    SCOPED_TRACE(row);
    expect_error<ConfigError>([&] { static_cast<void>(read_layout(row)); }, {"row '", "word '"});
  }
}

}  // namespace
}  // namespace tessera::dist

// Settings become a mesh, a cut of the batch, and words.

#include <gtest/gtest.h>

#include "tests/dist/config_reading.h"

namespace tessera::dist {
namespace {

// --- Axes --------------------------------------------------------------------------------------------------

TEST(ConfigMesh, TakesEachAxisFromEitherOfItsKeys) {
  for (const char* json : {
           R"({"mesh": "cp=2,tp=4"})",
           R"({"tensor_parallel": {"autotp_size": 4}, "mesh": "cp=2"})",
           R"({"tensor_parallel": {"autotp_size": 4}, "mesh": "tp=4,cp=2"})",
           R"({"tensor_parallel": {"autotp_size": 4}, "sequence_parallel_size": 2})",
       }) {
    const Config config = read(json);
    EXPECT_EQ(config.mesh, MeshShape::parse("cp=2,tp=4")) << json;
    EXPECT_FALSE(config.dp_given) << json;
  }
  // As DeepSpeed's users switch it off.
  EXPECT_EQ(read(R"({"tensor_parallel": {"autotp_size": 0}, "sequence_parallel_size": 1})").mesh,
            MeshShape());
  EXPECT_EQ(read(R"({"tensor_parallel": {"autotp_size": 0}, "mesh": "tp=2"})").mesh,
            MeshShape::parse("tp=2"));
  EXPECT_EQ(read(R"({"mesh": "auto"})").mesh, MeshShape());
}

TEST(ConfigMesh, RefusesContradictions) {
  struct Row {
    const char* name;
    const char* json;
    std::vector<std::string> parts;
  };
  const Row rows[] = {
      {"tp",
       R"({"mesh": "tp=2", "tensor_parallel": {"autotp_size": 4}})",
       {"config.json: tensor_parallel: 'autotp_size' is 4", "\"mesh\" has tp=2", "leave one of them out"}},
      {"tp given as 1", R"({"mesh": "tp=1", "tensor_parallel": {"autotp_size": 4}})", {"\"mesh\" has tp=1"}},
      {"tp without", R"({"mesh": "tp=2", "tensor_parallel": {"autotp_size": 1}})", {"\"mesh\" has tp=2"}},
      {"cp",
       R"({"mesh": "cp=4", "sequence_parallel_size": 2})",
       {"config.json: 'sequence_parallel_size' is 2", "\"mesh\" has cp=4"}},
      {"ring",
       R"({"sequence_parallel_size": 2, "context_parallel": {"method": "ring"}})",
       {"context_parallel: 'method' is \"ring\"", "means Ulysses", "\"mesh\": \"cp=2\""}},
      {"method", R"({"context_parallel": {"method": "rings"}})", {"did you mean 'ring'?"}},
      {"stages",
       R"({"mesh": "pp=2,tp=2", "pipeline": {"stages": 4}})",
       {"config.json: pipeline: 'stages' is 4", "\"mesh\" has pp=2", "leave one of them out"}},
      {"schedule", R"({"pipeline": {"schedule": "1f2b"}})", {"pipeline.schedule", "did you mean '1f1b'?"}},
      {"partition", R"({"pipeline": {"partition": "unifrom"}})", {"did you mean 'uniform'?"}},
      {"chunks", R"({"pipeline": {"chunks": -1}})", {"'chunks' is -1", "a number of stages"}},
      {"ep", R"({"mesh": "ep=2"})", {"expert parallelism", "not supported yet"}},
      {"axis", R"({"mesh": "td=2"})", {"unknown axis 'td'; did you mean 'tp'?"}},
      {"negative",
       R"({"tensor_parallel": {"autotp_size": -2}})",
       {"'autotp_size' is -2", "a number of ranks"}},
      {"too many",
       R"({"sequence_parallel_size": 1e10})",
       {"'sequence_parallel_size' is", "a number of ranks"}},
      {"stage 4",
       R"({"zero_optimization": {"stage": 4}})",
       {"config.json: zero_optimization: 'stage' is 4", "0 (nothing is cut)", "3 (and parameters)"}},
      {"stage -1", R"({"zero_optimization": {"stage": -1}})", {"'stage' is -1"}},
      {"MiCS -2",
       R"({"zero_optimization": {"stage": 3, "mics_shard_size": -2}})",
       {"'mics_shard_size' is -2"}},
      {"bucket",
       R"({"zero_optimization": {"stage3_max_live_parameters": -1}})",
       {"a number of elements, from 0"}},
      {"fp16 sums",
       R"({"fp16": {"enabled": true}, "data_types": {"grad_accum_dtype": "fp16"}})",
       {"config.json: data_types: 'grad_accum_dtype' is \"fp16\"", "\"fp32\" works"}},
      {"unknown sums", R"({"data_types": {"grad_accum_dtype": "fp23"}})", {"did you mean 'fp32'?"}},
      {"checkpoints", R"({"activation_checkpointing": {"number_checkpoints": -1}})", {"a number from 0"}},
      {"recompute", R"({"recompute": "ful"})", {"recompute 'ful' is unknown; did you mean 'full'?"}},
      {"recompute type", R"({"recompute": 1})", {"'recompute' must be a string"}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    expect_parts(error_of(row.json), row.parts);
  }
  // What only sounds like one.
  const Config off =
      read(R"({"zero_optimization": {"stage": 1, "zero_hpz_partition_size": 1, "mics_shard_size": -1},
      "pipeline": {"stages": 1}, "data_types": {"grad_accum_dtype": "fp32"}, "mesh": "pp=1,ep=1",
      "activation_checkpointing": {"partition_activations": false}, "recompute": "none"})");
  EXPECT_EQ(off.zero.mics_shard_size, 0);
  EXPECT_EQ(off.grad_accum_dtype, kF32);
}

TEST(ConfigMesh, SettingsThatContradictEachOtherAreRefusedWhoeverMadeThem) {
  struct Row {
    const char* name;
    const char* json;
    std::vector<std::string> parts;
  };
  const Row rows[] = {
      {"hpZ and MiCS",
       R"({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2, "mics_shard_size": 4}})",
       {"zero_optimization.zero_hpz_partition_size is 2", "hpZ and MiCS", "mics_shard_size is 4"}},
      {"hpZ",
       R"({"zero_optimization": {"stage": 2, "zero_hpz_partition_size": 2}})",
       {"zero_hpz_partition_size is 2", "hpZ cuts parameters, which stage 2 does not", "set stage to 3"}},
      {"MiCS",
       R"({"zero_optimization": {"mics_shard_size": 2}})",
       {"zero_optimization.mics_shard_size is 2", "MiCS cuts parameters, which stage 0 does not"}},
      {"no recompute",
       R"({"recompute": "none", "activation_checkpointing": {"partition_activations": true}})",
       {"activation_checkpointing.partition_activations", "\"recompute\" is \"none\"", "\"full\" works"}},
      {"selective",
       R"({"recompute": "selective", "activation_checkpointing": {"cpu_checkpointing": true}})",
       {"cpu_checkpointing", "\"recompute\" is \"selective\""}},
      {"false",
       R"({"recompute": false, "activation_checkpointing": {"number_checkpoints": 2}})",
       {"number_checkpoints", "\"recompute\" is \"none\""}},
      {"bf16 state of f32 parameters",
       R"({"bf16": {"bf16_optimizer_states": true}})",
       {"bf16.bf16_optimizer_states is true", "they are f32", R"("bf16": {"enabled": true} works)"}},
      {"bf16 state of f16 parameters",
       R"({"bf16": {"bf16_optimizer_states": true}, "fp16": {"enabled": true}})",
       {"they are f16"}},
      {"bf16 state of Lion",
       R"({"bf16": {"enabled": true, "bf16_optimizer_states": true}, "optimizer": {"type": "Lion"}})",
       {"Lion has no state in bf16", "AdamW and Adam"}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    const Config config = read(row.json);  // a flag may still change it
    expect_parts(error_of([&] { check(config); }), row.parts);
    expect_parts(error_of([&] { static_cast<void>(resolve_mesh(config, 8)); }), row.parts);
  }
  // What a flag does after the file was read: away from what works, and towards it.
  Config lowered = read(R"({"zero_optimization": {"stage": 3, "mics_shard_size": 2}})");
  EXPECT_NO_THROW(check(lowered));
  lowered.zero.stage = 1;
  expect_parts(error_of([&] { static_cast<void>(resolve_mesh(lowered, 8)); }), {"which stage 1 does not"});
  Config raised = read(R"({"zero_optimization": {"stage": 1, "zero_hpz_partition_size": 2}})");
  raised.zero.stage = 3;
  EXPECT_NO_THROW(static_cast<void>(resolve_mesh(raised, 8)));
}

TEST(ConfigMesh, TurnsANumberOfRecomputedBlocksIntoTheirDistance) {
  const auto every = [](std::int64_t number, std::int64_t blocks) {
    return Config::Recompute{.number_checkpoints = number}.every(blocks);
  };
  EXPECT_EQ(every(0, 12), 1);
  EXPECT_EQ(every(12, 12), 1);
  EXPECT_EQ(every(100, 12), 1);
  EXPECT_EQ(every(4, 12), 3);
  EXPECT_EQ(every(5, 12), 3);  // blocks 0, 3, 6, 9: no more than asked for
  EXPECT_EQ(every(1, 12), 12);
}

// --- Ranks -------------------------------------------------------------------------------------------------

TEST(ConfigMesh, FillsDpUp) {
  struct Row {
    const char* mesh;
    int ranks;
    const char* expected;
  };
  for (const Row& row : {Row{"", 1, "dp=1"}, Row{"", 6, "dp=6"}, Row{"tp=2", 2, "tp=2"},
                         Row{"tp=2", 8, "dp=4,tp=2"}, Row{"cp=3,tp=2", 12, "dp=2,cp=3,tp=2"},
                         Row{"dp=2,tp=4", 8, "dp=2,tp=4"}, Row{"dp=1,tp=2", 2, "tp=2"}}) {
    const Config config = read(std::string(R"({"mesh": ")") + row.mesh + "\"}");
    EXPECT_EQ(resolve_mesh(config, row.ranks).to_string(), row.expected) << row.mesh << " on " << row.ranks;
  }
  Config config;  // as a program writes it
  config.mesh = MeshShape::parse("dp=2,tp=2");
  EXPECT_EQ(resolve_mesh(config, 4), config.mesh);
  EXPECT_THROW(static_cast<void>(resolve_mesh(config, 8)), ConfigError) << "dp is given, and not filled up";
}

TEST(ConfigMesh, AnImpossibleProductShowsTheEquationAndMeshesThatWork) {
  const auto error = [](const std::string& mesh, int ranks) {
    return error_of([&] { static_cast<void>(resolve_mesh(read(R"({"mesh": ")" + mesh + "\"}"), ranks)); });
  };
  expect_parts(error("dp=3,tp=2", 8), {"config: ranks = dp x tp does not hold: 8 != 3 x 2 = 6",
                                       "mesh dp=4,tp=2 or dp=2,tp=4 works, or 6 ranks"});
  expect_parts(error("tp=3", 8),
               {"config: ranks = dp x tp does not hold for any dp: 8 is not a multiple of 3",
                "mesh dp=2,tp=4 or dp=4,tp=2 works, or 9 ranks"});
  expect_parts(error("pp=2", 1), {"1 is not a multiple of 2; mesh dp=1 works, or 2 ranks"});
  expect_parts(error("dp=1,tp=2", 4), {"4 != 1 x 2 = 2", "or 2 ranks"});
  expect_parts(error("dp=1", 2), {"ranks = dp does not hold: 2 != 1", "mesh dp=2 works, or 1 rank"});
  expect_parts(error("cp=2,tp=2", 6), {"6 is not a multiple of 2 x 2 = 4"});
  expect_parts(error("tp=8", 4), {"4 is not a multiple of 8", "mesh tp=4 or dp=2,tp=2 works"});
  expect_parts(error_of([] { static_cast<void>(resolve_mesh(Config(), 0)); }), {"1 rank or more"});
  // The product of the axes does not fit 32 bits.
  EXPECT_THROW(static_cast<void>(resolve_mesh(read(R"({"mesh": "dp=65536,tp=65536"})"), 2)), ConfigError);
  // What is proposed does work.
  EXPECT_EQ(resolve_mesh(read(R"({"mesh": "dp=2,tp=4"})"), 8).num_ranks(), 8);
}

TEST(ConfigMesh, ShardGroupsDivideTheDataRanks) {
  const auto config = [](const char* key, const std::string& mesh) {
    return read(std::string(R"({"zero_optimization": {"stage": 3, ")") + key + R"(": 4}, "mesh": ")" + mesh +
                "\"}");
  };
  for (const char* key : {"zero_hpz_partition_size", "mics_shard_size"}) {
    EXPECT_NO_THROW(static_cast<void>(resolve_mesh(config(key, ""), 8)));
    EXPECT_NO_THROW(static_cast<void>(resolve_mesh(config(key, "cp=2"), 4)));  // dp x cp
    const std::string error = error_of([&] { static_cast<void>(resolve_mesh(config(key, "tp=2"), 12)); });
    expect_parts(error,
                 {key, "must divide the data ranks dp x cp = 6 x 1 = 6, but it is 4; 1, 2, 3, 6 work"});
  }
}

// --- In words ----------------------------------------------------------------------------------------------

TEST(ConfigMesh, IsDescribedInALineForEachSubject) {
  const Config plain;
  EXPECT_EQ(
      describe(plain, resolve_mesh(plain, 1), {.global = 1, .micro_batch = 1, .accumulation = 1}),
      "mesh        dp=1: 1 rank\n"
      "batch       1 sequence = 1 micro_batch x 1 accumulation x 1 dp\n"
      "precision   f32 parameters and activations; f32 gradients\n"
      "optimizer   AdamW: lr 0.001, betas 0.9 0.95, eps 1e-08, weight decay 0.1; gradient norm up to 1\n");
  const Config config = read(R"({"mesh": "cp=2,tp=2", "tensor_parallel": {"sequence_parallel": true},
      "fp16": {"enabled": true}, "gradient_clipping": 0, "activation_checkpointing": {"partition_activations": true},
      "optimizer": {"type": "Muon", "params": {"adjust_lr_fn": "match_rms_adamw"}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 20}},
      "zero_optimization": {"stage": 3, "mics_shard_size": 2, "keep_full_gradients": true}})");
  const MeshShape mesh = resolve_mesh(config, 8);
  EXPECT_EQ(
      describe(config, mesh, resolve_batch_sizes({.global = 24, .accumulation = 3}, mesh[MeshAxis::kDp])),
      "mesh        dp=2,cp=2,tp=2: 8 ranks; sequence parallel over tp; ring attention over cp\n"
      "batch       24 sequences = 4 micro_batch x 3 accumulation x 2 dp\n"
      "precision   f16 parameters and activations; f32 gradients and masters; dynamic loss scale from 2^16\n"
      "optimizer   Muon: lr 0.02, momentum 0.95 (Nesterov), weight decay 0, steps scaled by match_rms_adamw, "
      "5 Newton-Schulz steps; AdamW for the rest: lr 0.0003, betas 0.9 0.95, eps 1e-10\n"
      "schedule    WarmupLR: warmup_num_steps 20\n"
      "ZeRO        stage 3 over 4 data ranks: parameters, gradients, optimizer state; MiCS, groups of 2; "
      "gradients whole until the last micro-batch\n"
      "recompute   full: blocks, inputs cut over tp\n");
}

TEST(ConfigMesh, IsDescribedWithTheStateOfItsOptimizer) {
  const Config config = read(R"({"bf16": {"enabled": true, "bf16_optimizer_states": true}})");
  const std::string text = describe(config, MeshShape(), {.global = 1, .micro_batch = 1, .accumulation = 1});
  EXPECT_NE(
      text.find("precision   bf16 parameters and activations; f32 gradients and masters; bf16 moments\n"),
      std::string::npos)
      << text;
}

// --- Batch sizes -------------------------------------------------------------------------------------------

TEST(BatchSizes, AnyTwoGiveTheThird) {
  struct Row {
    BatchSizes given;
    std::int64_t dp;
    BatchSizes expected;
  };
  const Row rows[] = {{{24, 3, 0}, 4, {24, 3, 2}},  {{24, 0, 2}, 4, {24, 3, 2}}, {{0, 3, 2}, 4, {24, 3, 2}},
                      {{24, 3, 2}, 4, {24, 3, 2}},  {{24, 0, 0}, 1, {24, 8, 3}}, {{24, 0, 0}, 4, {24, 6, 1}},
                      {{26, 0, 0}, 1, {26, 2, 13}}, {{7, 0, 0}, 7, {7, 1, 1}},   {{0, 0, 0}, 3, {3, 1, 1}},
                      {{0, 5, 0}, 2, {10, 5, 1}},   {{0, 0, 4}, 2, {8, 1, 4}}};
  for (const Row& row : rows) {
    const BatchSizes sizes = resolve_batch_sizes(row.given, row.dp);
    EXPECT_EQ(sizes.global, row.expected.global);
    EXPECT_EQ(sizes.micro_batch, row.expected.micro_batch) << row.given.global << " on " << row.dp;
    EXPECT_EQ(sizes.accumulation, row.expected.accumulation) << row.given.global << " on " << row.dp;
  }
  EXPECT_EQ(resolve_batch_sizes({24, 0, 0}, 1, 100).micro_batch, 24);
}

TEST(BatchSizes, ImpossibleOnesSayWhereEachNumberComesFrom) {
  const auto error = [](const BatchSizes& given, const char* mesh) {
    return error_of([&] { static_cast<void>(resolve_batch_sizes(given, MeshShape::parse(mesh))); });
  };
  expect_parts(error({.global = 10, .micro_batch = 4, .global_from = "--batch"}, "dp=2,tp=2"),
               {"train_batch_size 10 is --batch, micro_batch 4 is \"train_micro_batch_size_per_gpu\", "
                "accumulation 1 follows, dp 2 is that of mesh dp=2,tp=2 on 4 ranks"});
  expect_parts(error({.global = 10, .accumulation = 3}, "dp=2"),
               {"micro_batch 1 follows, accumulation 3 is \"gradient_accumulation_steps\", dp 2 is the "
                "number of ranks"});
  expect_parts(error({.global = 1, .global_from = "--batch"}, "dp=2"),
               {"(--batch, dp 2 is the number of ranks)"});
}

TEST(BatchSizes, ImpossibleOnesShowTheEquationAndWhatWorks) {
  const auto error = [](const BatchSizes& given, std::int64_t dp) {
    return error_of([&] { static_cast<void>(resolve_batch_sizes(given, dp)); });
  };
  const std::string equation = "train_batch_size = micro_batch x accumulation x dp does not hold: ";
  expect_parts(error({10, 4, 0}, 1), {equation + "10 != 4 x 2 x 1 = 8", "a batch of 8 or 12 works"});
  expect_parts(error({10, 0, 3}, 1), {"10 != 3 x 3 x 1 = 9", "a batch of 9 or 12 works"});
  expect_parts(error({10, 0, 0}, 3), {"10 != 3 x 1 x 3 = 9", "a batch of 9 or 12 works"});
  expect_parts(error({10, 2, 3}, 1), {"10 != 2 x 3 x 1 = 6", "a batch of 6 works"});
  expect_parts(error({10, 20, 0}, 1), {"10 != 20 x 0 x 1 = 0", "a batch of 20 works"});
  expect_parts(error({3, 0, 0}, 4), {"dp 4 needs at least 4 sequences", "train_batch_size is 3"});
  expect_parts(error({-3, 0, 0}, 4), {"train_batch_size must be from 1"});
  expect_parts(error({0, std::int64_t{1} << 60, 0}, 4), {"train_micro_batch_size_per_gpu must be from 1"});
  // What is proposed does work.
  for (const std::int64_t batch : {8, 12})
    EXPECT_NO_THROW(static_cast<void>(resolve_batch_sizes({batch, 4, 0}, 1)));
}

}  // namespace
}  // namespace tessera::dist

// Settings in JSON: each key is read, each mistake is named. docs/config.md lists the same keys.

#include "dist/config.h"

#include <gtest/gtest.h>

#include <functional>

#include "dist/same_settings.h"
#include "tests/data/temporary_folder.h"
#include "tests/dist/config_reading.h"

namespace tessera::dist {
namespace {

// --- Every key ---------------------------------------------------------------------------------------------

struct KeyRow {
  const char* key;                           // as docs/config.md names it
  const char* json;                          // another value than the default
  std::function<bool(const Config&)> holds;  // of that value
};

double param(const Config& config, const char* key) {
  const auto found = config.scheduler.params.find(key);
  return found == config.scheduler.params.end() ? -1.0 : found->second;
}

std::string scheduler(const std::string& type, const std::string& params) {
  return R"({"scheduler": {"type": ")" + type + R"(", "params": {)" + params + "}}}";
}

const std::vector<KeyRow>& keys() {
  using C = const Config&;
  static const std::vector<KeyRow> kKeys{
      {"train_batch_size", R"({"train_batch_size": 24})", [](C c) { return c.batch.global == 24; }},
      {"train_micro_batch_size_per_gpu", R"({"train_micro_batch_size_per_gpu": 3})",
       [](C c) { return c.batch.micro_batch == 3; }},
      {"gradient_accumulation_steps", R"({"gradient_accumulation_steps": 5})",
       [](C c) { return c.batch.accumulation == 5; }},
      {"gradient_clipping", R"({"gradient_clipping": 0.25})",
       [](C c) { return c.gradient_clipping == 0.25; }},
      {"memory_check", R"({"memory_check": false})", [](C c) { return !c.memory_check; }},
      {"steps_per_print", R"({"steps_per_print": 7})", [](C c) { return c.steps_per_print == 7; }},
      {"optimizer.type", R"({"optimizer": {"type": "SGD"}})", [](C c) { return c.optimizer.type == "SGD"; }},
      {"optimizer.params.lr", R"({"optimizer": {"params": {"lr": 6e-4}}})",
       [](C c) { return c.optimizer.lr == 6e-4; }},
      {"optimizer.params.betas", R"({"optimizer": {"params": {"betas": [0.8, 0.99]}}})",
       [](C c) { return c.optimizer.beta1 == 0.8 && c.optimizer.beta2 == 0.99; }},
      {"optimizer.params.eps", R"({"optimizer": {"params": {"eps": 1e-6}}})",
       [](C c) { return c.optimizer.epsilon == 1e-6; }},
      {"optimizer.params.weight_decay", R"({"optimizer": {"params": {"weight_decay": 0.3}}})",
       [](C c) { return c.optimizer.weight_decay == 0.3; }},
      {"optimizer.params.adam_w_mode", R"({"optimizer": {"type": "Adam", "params": {"adam_w_mode": false}}})",
       [](C c) { return !c.optimizer.decoupled_decay; }},
      {"optimizer.params.momentum", R"({"optimizer": {"type": "SGD", "params": {"momentum": 0.9}}})",
       [](C c) { return c.optimizer.momentum == 0.9; }},
      {"optimizer.params.nesterov", R"({"optimizer": {"type": "SGD", "params": {"nesterov": true}}})",
       [](C c) { return c.optimizer.nesterov; }},
      {"optimizer.params.dampening", R"({"optimizer": {"type": "SGD", "params": {"dampening": 0.5}}})",
       [](C c) { return c.optimizer.dampening == 0.5; }},
      {"optimizer.params.max_coeff", R"({"optimizer": {"type": "Lamb", "params": {"max_coeff": 4}}})",
       [](C c) { return c.optimizer.max_coeff == 4; }},
      {"optimizer.params.min_coeff", R"({"optimizer": {"type": "lamb", "params": {"min_coeff": 0.5}}})",
       [](C c) { return c.optimizer.type == "Lamb" && c.optimizer.min_coeff == 0.5; }},
      {"optimizer.params.lr_decay", R"({"optimizer": {"type": "Adagrad", "params": {"lr_decay": 0.25}}})",
       [](C c) { return c.optimizer.lr_decay == 0.25; }},
      {"optimizer.params.initial_accumulator_value",
       R"({"optimizer": {"type": "Adagrad", "params": {"initial_accumulator_value": 0.125}}})",
       [](C c) { return c.optimizer.initial_accumulator_value == 0.125; }},
      {"optimizer.params.muon_lr",
       R"({"optimizer": {"type": "Muon", "params": {"muon_lr": 0.5, "lr": 0.25}}})",
       [](C c) { return c.optimizer.lr == 0.5 && c.optimizer.adam_lr == 0.25; }},
      {"optimizer.params.adam_lr",
       R"({"optimizer": {"type": "Muon", "params": {"adam_lr": 0.5, "lr": 0.25}}})",
       [](C c) { return c.optimizer.lr == 0.25 && c.optimizer.adam_lr == 0.5; }},
      {"optimizer.params.ns_steps", R"({"optimizer": {"type": "Muon", "params": {"ns_steps": 3}}})",
       [](C c) { return c.optimizer.ns_steps == 3; }},
      {"optimizer.params.adjust_lr_fn",
       R"({"optimizer": {"type": "Muon", "params": {"adjust_lr_fn": "match_rms_adamw"}}})",
       [](C c) { return c.optimizer.adjust_lr_fn == "match_rms_adamw"; }},
      {"numerics", R"({"numerics": "invariant"})",
       [](C c) { return c.numerics == Config::Numerics::kInvariant; }},
      {"bf16.enabled", R"({"bf16": {"enabled": true}})", [](C c) { return c.dtype == kBF16; }},
      {"bf16.bf16_optimizer_states", R"({"bf16": {"enabled": true, "bf16_optimizer_states": true}})",
       [](C c) { return c.optimizer.state_dtype == kBF16; }},
      {"fp16.enabled", R"({"fp16": {"enabled": true}})", [](C c) { return c.dtype == kF16; }},
      {"fp16.loss_scale", R"({"fp16": {"loss_scale": 128}})", [](C c) { return c.fp16.loss_scale == 128; }},
      {"fp16.initial_scale_power", R"({"fp16": {"initial_scale_power": 8}})",
       [](C c) { return c.fp16.initial_scale_power == 8; }},
      {"fp16.loss_scale_window", R"({"fp16": {"loss_scale_window": 20}})",
       [](C c) { return c.fp16.loss_scale_window == 20; }},
      {"fp16.hysteresis", R"({"fp16": {"hysteresis": 4}})", [](C c) { return c.fp16.hysteresis == 4; }},
      {"fp16.min_loss_scale", R"({"fp16": {"min_loss_scale": 0.5}})",
       [](C c) { return c.fp16.min_loss_scale == 0.5; }},
      {"scheduler.type", R"({"scheduler": {"type": "WarmupLR"}})",
       [](C c) { return c.scheduler.type == "WarmupLR"; }},
      {"scheduler.params.warmup_type",
       R"({"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_type": "linear"}}})",
       [](C c) { return c.scheduler.warmup_type == "linear"; }},
      {"mesh", R"({"mesh": "tp=2,dp=4"})",
       [](C c) { return c.mesh == MeshShape::parse("dp=4,tp=2") && c.dp_given; }},
      {"tensor_parallel.autotp_size", R"({"tensor_parallel": {"autotp_size": 4}})",
       [](C c) { return c.mesh == MeshShape::parse("tp=4"); }},
      {"tensor_parallel.sequence_parallel", R"({"tensor_parallel": {"sequence_parallel": true}})",
       [](C c) { return c.sequence_parallel; }},
      {"sequence_parallel_size", R"({"sequence_parallel_size": 2})",
       [](C c) {
         return c.mesh == MeshShape::parse("cp=2") && c.context_parallel == Config::ContextParallel::kUlysses;
       }},
      {"context_parallel.method", R"({"context_parallel": {"method": "ulysses"}})",
       [](C c) { return c.context_parallel == Config::ContextParallel::kUlysses; }},
      {"zero_optimization.stage", R"({"zero_optimization": {"stage": 2}})",
       [](C c) { return c.zero.stage == 2; }},
      {"zero_optimization.stage3_prefetch_bucket_size",
       R"({"zero_optimization": {"stage3_prefetch_bucket_size": 1e7}})",
       [](C c) { return c.zero.prefetch_bucket_size == 10'000'000; }},
      {"zero_optimization.stage3_param_persistence_threshold",
       R"({"zero_optimization": {"stage3_param_persistence_threshold": 1e5}})",
       [](C c) { return c.zero.param_persistence_threshold == 100'000; }},
      {"zero_optimization.stage3_max_live_parameters",
       R"({"zero_optimization": {"stage3_max_live_parameters": 1e8}})",
       [](C c) { return c.zero.max_live_parameters == 100'000'000; }},
      {"zero_optimization.stage3_max_reuse_distance",
       R"({"zero_optimization": {"stage3_max_reuse_distance": 1e9}})",
       [](C c) { return c.zero.max_reuse_distance == 1'000'000'000; }},
      {"zero_optimization.zero_hpz_partition_size",
       R"({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}})",
       [](C c) { return c.zero.hpz_partition_size == 2; }},
      {"zero_optimization.mics_shard_size", R"({"zero_optimization": {"stage": 3, "mics_shard_size": 2}})",
       [](C c) { return c.zero.mics_shard_size == 2; }},
      {"zero_optimization.keep_full_gradients",
       R"({"zero_optimization": {"stage": 2, "keep_full_gradients": true}})",
       [](C c) { return c.zero.keep_full_gradients; }},
      {"recompute", R"({"recompute": "selective"})",
       [](C c) { return c.recompute.mode == Config::Recompute::Mode::kSelective; }},
      {"activation_checkpointing.partition_activations",
       R"({"activation_checkpointing": {"partition_activations": true}})",
       [](C c) {
         return c.recompute.partition_activations && c.recompute.mode == Config::Recompute::Mode::kFull;
       }},
      {"activation_checkpointing.cpu_checkpointing",
       R"({"activation_checkpointing": {"cpu_checkpointing": true}, "recompute": "full"})",
       [](C c) { return c.recompute.cpu_checkpointing; }},
      {"activation_checkpointing.number_checkpoints",
       R"({"activation_checkpointing": {"number_checkpoints": 4}, "recompute": true})",
       [](C c) {
         return c.recompute.number_checkpoints == 4 && c.recompute.mode == Config::Recompute::Mode::kFull;
       }},
  };
  return kKeys;
}

TEST(Config, ReadsEveryKey) {
  for (const KeyRow& row : keys()) {
    EXPECT_TRUE(row.holds(read(row.json))) << row.json;
    EXPECT_FALSE(row.holds(Config())) << row.key << ": the value is to differ from the default";
  }
}

struct ScheduleRow {
  const char* type;
  std::vector<const char*> numbers, flags;
  bool has_warmup_type;
};

const ScheduleRow kSchedules[] = {
    {"LRRangeTest",
     {"lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate"},
     {"lr_range_test_staircase"},
     false},
    {"OneCycle",
     {"cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size",
      "cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_min_mom",
      "cycle_max_mom", "decay_mom_rate"},
     {"cycle_momentum"},
     false},
    {"WarmupLR", {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}, {}, true},
    {"WarmupDecayLR", {"total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"}, {}, true},
    {"WarmupCosineLR",
     {"total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio"},
     {},
     true},
};

TEST(Config, ComparesEveryKeyBetweenRanks) {
  const Settings defaults = settings_of(Config{});
  for (const KeyRow& row : keys()) EXPECT_NE(settings_of(read(row.json)), defaults) << row.key;
}

TEST(Config, ReadsEveryParameterOfEverySchedule) {
  for (const ScheduleRow& row : kSchedules) {
    EXPECT_EQ(read(scheduler(row.type, "")).scheduler.type, row.type);
    for (const std::string key : row.numbers) {
      EXPECT_EQ(param(read(scheduler(row.type, '"' + key + "\": 12.5")), key.c_str()), 12.5) << key;
    }
    for (const std::string key : row.flags) {
      EXPECT_EQ(param(read(scheduler(row.type, '"' + key + "\": true")), key.c_str()), 1.0) << key;
      EXPECT_EQ(param(read(scheduler(row.type, '"' + key + "\": false")), key.c_str()), 0.0) << key;
    }
    const std::string warmup = scheduler(row.type, R"("warmup_type": "linear")");
    if (row.has_warmup_type) {
      EXPECT_EQ(read(warmup).scheduler.warmup_type, "linear");
    } else {
      expect_parts(error_of(warmup), {"config.json: scheduler.params: unknown key 'warmup_type'"});
    }
  }
}

TEST(Config, StandsInTheDocumentation) {
  const std::string page = data::read_file(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs" / "config.md");
  ASSERT_FALSE(page.empty());
  for (const KeyRow& row : keys()) {
    EXPECT_NE(page.find('`' + std::string(row.key) + '`'), std::string::npos) << row.key;
  }
  for (const ScheduleRow& row : kSchedules) {
    EXPECT_NE(page.find('`' + std::string(row.type) + '`'), std::string::npos) << row.type;
    for (const auto& list : {row.numbers, row.flags}) {
      for (const std::string key : list) EXPECT_NE(page.find('`' + key + '`'), std::string::npos) << key;
    }
  }
}

// --- Mistakes ----------------------------------------------------------------------------------------------

TEST(Config, NamesTheNearestKeyAtEveryLevel) {
  expect_parts(error_of(R"({"train_bacth_size": 8})"),
               {"config.json: unknown key 'train_bacth_size'; did you mean 'train_batch_size'?"});
  expect_parts(error_of(R"({"optimizer": {"typ": "SGD"}})"),
               {"config.json: optimizer: unknown key 'typ'; did you mean 'type'?"});
  expect_parts(error_of(R"({"optimizer": {"params": {"weight_decy": 0}}})"),
               {"config.json: optimizer.params: unknown key 'weight_decy'; did you mean 'weight_decay'?"});
  expect_parts(error_of(R"({"fp16": {"hysterisis": 2}})"),
               {"fp16: unknown key 'hysterisis'; did you mean 'hysteresis'?"});
  expect_parts(error_of(R"({"bf16": {"enable": true}})"),
               {"bf16: unknown key 'enable'; did you mean 'enabled'?"});
  expect_parts(error_of(scheduler("WarmupLR", R"("warmup_num_step": 3)")),
               {"scheduler.params: unknown key 'warmup_num_step'; did you mean 'warmup_num_steps'?"});
  // A key that another optimizer has.
  expect_parts(error_of(R"({"optimizer": {"type": "SGD", "params": {"betas": [0.9, 0.9]}}})"),
               {"unknown key 'betas'"});
  expect_parts(error_of(R"({"optimizer": {"params": {"momentum": 0.9}}})"), {"unknown key 'momentum'"});
  expect_parts(error_of(R"({"optimizer": {"type": "Lion", "params": {"eps": 1e-8}}})"),
               {"unknown key 'eps'"});
  expect_parts(error_of(R"({"optimizer": {"type": "Adagrad", "params": {"betas": [0, 0]}}})"),
               {"unknown key 'betas'"});
  // In sections that several readers share.
  expect_parts(error_of(R"({"zero_optimization": {"stag": 2}})"),
               {"config.json: zero_optimization: unknown key 'stag'; did you mean 'stage'?"});
  expect_parts(
      error_of(R"({"zero_optimization": {"offload_param": {"pin_memoy": true}}})"),
      {"config.json: zero_optimization.offload_param: unknown key 'pin_memoy'; did you mean 'pin_memory'?"});
  expect_parts(error_of(R"({"zero_optimisation": {}})"), {"did you mean 'zero_optimization'?"});
}

TEST(Config, NamesTheSectionThatAKeyBelongsToAndGuessesNothingFarOff) {
  expect_parts(error_of(R"({"autotp_size": 2})"),
               {"unknown key 'autotp_size'; there is tensor_parallel.autotp_size; did you mean that?"});
  expect_parts(error_of(R"({"zero_optimization": {"gradient_clipping": 1}})"),
               {"there is gradient_clipping;"});
  expect_parts(error_of(R"({"optimizer": {"lr": 1}})"), {"there is optimizer.params.lr;"});
  for (const char* json : {R"({"wibble": 1})", R"({"enabled": true})", R"({"flash": 2})"}) {
    const std::string message = error_of(json);
    EXPECT_EQ(message.find("did you mean"), std::string::npos) << message;
    expect_parts(message, {"docs/config.md has all keys"});
  }
  expect_parts(error_of(R"({"recompute": "attention"})"),
               {"'attention' is unknown; there are none, selective, full"});
}

TEST(Config, GivesEachOptimizerItsOwnDefaults) {
  const auto optimizer = [](const std::string& type) {
    return read(R"({"optimizer": {"type": ")" + type + "\"}}").optimizer;
  };
  EXPECT_EQ(optimizer("AdamW").beta2, 0.95);
  EXPECT_EQ(optimizer("AdamW").weight_decay, 0.1);
  EXPECT_EQ(optimizer("adam").type, "Adam");  // DeepSpeed's spelling is free
  EXPECT_EQ(optimizer("Lamb").beta2, 0.999);
  EXPECT_EQ(optimizer("Lamb").max_coeff, 10.0);
  EXPECT_EQ(optimizer("Lion").beta2, 0.99);
  EXPECT_EQ(optimizer("Adagrad").epsilon, 1e-10);
  EXPECT_EQ(optimizer("Adagrad").weight_decay, 0.0);
  EXPECT_EQ(optimizer("Muon").momentum, 0.95);
  EXPECT_EQ(optimizer("Muon").lr, 0.02);
  EXPECT_EQ(optimizer("Muon").adam_lr, 3e-4);
  // One learning rate means both parts of Muon.
  EXPECT_EQ(read(R"({"optimizer": {"type": "Muon", "params": {"lr": 0.25}}})").optimizer.adam_lr, 0.25);
}

TEST(Config, RefusesWhatAnOptimizerCannotDo) {
  const auto error = [](const std::string& type, const std::string& params) {
    return error_of(R"({"optimizer": {"type": ")" + type + R"(", "params": {)" + params + "}}}");
  };
  expect_parts(error("OneBitAdam", ""),
               {"config.json: optimizer: 'type' is \"OneBitAdam\": not supported yet",
                "AdamW, Adam, SGD, Adagrad, Lion, Lamb, Muon"});
  expect_parts(error("Adam", R"("amsgrad": true)"), {"optimizer.params: 'amsgrad' is true", "leave it out"});
  expect_parts(error("Lamb", R"("bias_correction": false)"), {"'bias_correction' is false"});
  expect_parts(error("SGD", R"("max_grad_norm": 1.0)"), {"'max_grad_norm' is 1.0: write gradient_clipping"});
  expect_parts(error("Lamb", R"("max_coeff": 0.001)"), {"0 <= min_coeff <= max_coeff must hold"});
  expect_parts(error("Muon", R"("ns_steps": 0)"), {"'ns_steps' is 0: must be at least 1"});
  expect_parts(error("Muon", R"("adam_lr": -1)"), {"'adam_lr' is -1", "negative"});
  EXPECT_NO_THROW(static_cast<void>(read(R"({"optimizer": {"type": "Adam", "params": {"torch_adam": true,
      "amsgrad": false, "bias_correction": true, "max_grad_norm": 0.0}}})")));
}

TEST(Config, NamesTheNearestTypeOfOptimizerAndSchedule) {
  expect_parts(error_of(R"({"optimizer": {"type": "AdmW"}})"),
               {"optimizer 'AdmW' is unknown; did you mean 'AdamW'?"});
  expect_parts(
      error_of(R"({"optimizer": {"type": "Muon", "params": {"adjust_lr_fn": "match_rms_adam"}}})"),
      {"optimizer.params.adjust_lr_fn 'match_rms_adam' is unknown; did you mean 'match_rms_adamw'?"});
  expect_parts(error_of(scheduler("WarmupCosine", "")),
               {"'WarmupCosine' is unknown; did you mean 'WarmupCosineLR'?"});
  expect_parts(error_of(scheduler("WarmupLR", R"("warmup_type": "liner")")), {"did you mean 'linear'?"});
  expect_parts(error_of(R"({"scheduler": {"params": {"warmup_num_steps": 5}}})"),
               {"scheduler.type", "missing"});
}

TEST(Config, SaysWhatAValueShouldBe) {
  expect_parts(error_of(R"({"train_batch_size": "many"})"),
               {"'train_batch_size' must be an integer", "\"many\""});
  expect_parts(error_of(R"({"train_batch_size": 2.5})"), {"must be an integer", "2.5"});
  expect_parts(error_of(R"({"train_batch_size": 18446744073709551615})"), {"an integer below 2^63"});
  expect_parts(error_of(R"({"gradient_clipping": true})"), {"must be a number", "true"});
  expect_parts(error_of(R"({"bf16": {"enabled": 1}})"),
               {"config.json: bf16: 'enabled' must be true or false"});
  expect_parts(error_of(R"({"numerics": "invariable"})"), {"numerics", "did you mean 'invariant'"});
  expect_parts(error_of(R"({"bf16": true})"), {"'bf16' must be an object"});
  expect_parts(error_of(R"({"optimizer": {"type": 3}})"), {"'type' must be a string"});
  expect_parts(error_of(R"({"optimizer": {"params": {"betas": 0.9}}})"), {"must be an array of numbers"});
  expect_parts(error_of(R"({"optimizer": {"params": {"betas": [0.9]}}})"), {"must be two numbers"});
  expect_parts(error_of(scheduler("OneCycle", R"("cycle_momentum": 1)")),
               {"'cycle_momentum' must be true or false"});
  for (const char* key :
       {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}) {
    for (const char* value : {"0", "-4"}) {
      expect_parts(error_of(std::string("{\"") + key + "\": " + value + "}"), {key, "at least 1", value});
    }
  }
  expect_parts(error_of(R"({"gradient_clipping": -1})"), {"gradient_clipping", "negative"});
  expect_parts(error_of(R"({"steps_per_print": 0})"), {"steps_per_print", "at least 1"});
  expect_parts(error_of(R"({"optimizer": {"params": {"lr": -1}}})"), {"lr", "negative"});
  expect_parts(error_of(R"({"bf16": {"enabled": true}, "fp16": {"enabled": true}})"), {"exclude each other"});
}

TEST(Config, RefusesWhatIsNotJson) {
  for (const char* json :
       {"", "{", R"({"a" 1})", R"({"train_batch_size": 1,})", "{'a': 1}", R"({"a": 1e999})"}) {
    expect_parts(error_of(json), {"config.json: is not valid JSON"});
  }
  for (const char* json : {"[]", "3", "null", "\"text\""}) {
    expect_parts(error_of(json), {"config.json: must be a JSON object"});
  }
  expect_parts(error_of(R"({"steps_per_print": 1, "steps_per_print": 2})"),
               {"\"steps_per_print\" is given twice"});
  expect_parts(error_of(R"({"bf16": {"enabled": true, "enabled": false}})"), {"\"enabled\" is given twice"});
  EXPECT_NO_THROW(static_cast<void>(read(R"({"bf16": {"enabled": true}, "fp16": {"enabled": false}})")));
  // Closed brackets are JSON, but a message about such a value took the stack.
  const std::string deep = std::string(300000, '[') + std::string(300000, ']');
  expect_parts(error_of("{\"steps_per_print\": " + deep + "}"), {"stand in more than 100 others"});
}

TEST(Config, TakesCommentsAutoAndIntegersWithAnExponent) {
  const Config config = read(R"({
    // two to the tenth
    "train_batch_size": 1.024e3, "gradient_clipping": "auto", "optimizer": "auto",
    "train_micro_batch_size_per_gpu": null, "activation_checkpointing": {"number_checkpoints": null},
    "scheduler": {"type": "auto"}, /* the program's */ "fp16": {"enabled": "auto", "loss_scale_window": 5e8}
  })");
  EXPECT_EQ(config.batch.global, 1024);
  EXPECT_EQ(config.gradient_clipping, Config().gradient_clipping);
  EXPECT_EQ(config.optimizer.type, "AdamW");
  EXPECT_EQ(config.scheduler.type, "");
  EXPECT_EQ(config.dtype, kF32);
  EXPECT_EQ(config.fp16.loss_scale_window, 500000000);
}

TEST(Config, ComesFromAFileThatIsNamedInErrors) {
  const data::TemporaryFolder folder;
  data::write_file(folder / "run.json", R"({"steps_per_print": 3})");
  ConfigFile file = ConfigFile::load(folder / "run.json");
  EXPECT_EQ(Config::read(file).steps_per_print, 3);
  expect_parts(error_of([&] { static_cast<void>(ConfigFile::load(folder / "none.json")); }),
               {"none.json", "cannot be opened"});
  expect_parts(error_of([&] { static_cast<void>(ConfigFile::load(folder.path())); }), {"cannot be opened"});
  data::write_file(folder / "run.json", R"({"steps_per_prin": 3})");
  ConfigFile wrong = ConfigFile::load(folder / "run.json");
  static_cast<void>(Config::read(wrong));
  expect_parts(error_of([&] { wrong.refuse_unknown(); }), {"run.json: unknown key 'steps_per_prin'"});
}

}  // namespace
}  // namespace tessera::dist

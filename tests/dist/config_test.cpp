// Settings in JSON: each key is read, each mistake is named. docs/config.md lists the same keys.

#include "dist/config.h"

#include <gtest/gtest.h>

#include <functional>

#include "kernels/error.h"
#include "tests/data/temporary_folder.h"

namespace tessera::dist {
namespace {

Config read(const std::string& json) {
  ConfigFile file = ConfigFile::parse(json, "config.json");
  Config config = Config::read(file);
  file.refuse_unknown();
  return config;
}

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.exit_code(), 2);
    return error.what();
  }
  ADD_FAILURE() << "no ConfigError";
  return {};
}

std::string error_of(const std::string& json) {
  SCOPED_TRACE(json);
  return error_of([&] { static_cast<void>(read(json)); });
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
}

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
      {"bf16.enabled", R"({"bf16": {"enabled": true}})", [](C c) { return c.dtype == kBF16; }},
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
}

TEST(Config, NamesTheNearestTypeOfOptimizerAndSchedule) {
  expect_parts(error_of(R"({"optimizer": {"type": "AdmW"}})"),
               {"optimizer 'AdmW' is unknown; did you mean 'AdamW'?"});
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
}

TEST(Config, TakesCommentsAutoAndIntegersWithAnExponent) {
  const Config config = read(R"({
    // two to the tenth
    "train_batch_size": 1.024e3, "gradient_clipping": "auto", "optimizer": "auto",
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

// --- Batch sizes -------------------------------------------------------------------------------------------

TEST(BatchSizes, AnyTwoGiveTheThird) {
  struct Row {
    BatchSizes given;
    std::int64_t ranks;
    BatchSizes expected;
  };
  const Row rows[] = {{{24, 3, 0}, 4, {24, 3, 2}},  {{24, 0, 2}, 4, {24, 3, 2}}, {{0, 3, 2}, 4, {24, 3, 2}},
                      {{24, 3, 2}, 4, {24, 3, 2}},  {{24, 0, 0}, 1, {24, 8, 3}}, {{24, 0, 0}, 4, {24, 6, 1}},
                      {{26, 0, 0}, 1, {26, 2, 13}}, {{7, 0, 0}, 7, {7, 1, 1}},   {{0, 0, 0}, 3, {3, 1, 1}},
                      {{0, 5, 0}, 2, {10, 5, 1}},   {{0, 0, 4}, 2, {8, 1, 4}}};
  for (const Row& row : rows) {
    const BatchSizes sizes = resolve_batch_sizes(row.given, row.ranks);
    EXPECT_EQ(sizes.global, row.expected.global);
    EXPECT_EQ(sizes.micro_batch, row.expected.micro_batch) << row.given.global << " on " << row.ranks;
    EXPECT_EQ(sizes.accumulation, row.expected.accumulation) << row.given.global << " on " << row.ranks;
  }
  EXPECT_EQ(resolve_batch_sizes({24, 0, 0}, 1, 100).micro_batch, 24);
}

TEST(BatchSizes, ImpossibleOnesShowTheEquationAndWhatWorks) {
  const auto error = [](const BatchSizes& given, std::int64_t ranks) {
    return error_of([&] { static_cast<void>(resolve_batch_sizes(given, ranks)); });
  };
  const std::string equation = "train_batch_size = micro_batch x accumulation x ranks does not hold: ";
  expect_parts(error({10, 4, 0}, 1), {equation + "10 != 4 x 2 x 1 = 8", "a batch of 8 or 12 works"});
  expect_parts(error({10, 0, 3}, 1), {"10 != 3 x 3 x 1 = 9", "a batch of 9 or 12 works"});
  expect_parts(error({10, 0, 0}, 3), {"10 != 3 x 1 x 3 = 9", "a batch of 9 or 12 works"});
  expect_parts(error({10, 2, 3}, 1), {"10 != 2 x 3 x 1 = 6", "a batch of 6 works"});
  expect_parts(error({10, 20, 0}, 1), {"10 != 20 x 0 x 1 = 0", "a batch of 20 works"});
  expect_parts(error({3, 0, 0}, 4), {"4 ranks need at least 4 sequences", "train_batch_size is 3"});
  expect_parts(error({-3, 0, 0}, 4), {"train_batch_size must be from 1"});
  expect_parts(error({0, std::int64_t{1} << 60, 0}, 4), {"train_micro_batch_size_per_gpu must be from 1"});
  // What is proposed does work.
  for (const std::int64_t batch : {8, 12})
    EXPECT_NO_THROW(static_cast<void>(resolve_batch_sizes({batch, 4, 0}, 1)));
}

}  // namespace
}  // namespace tessera::dist

// DeepSpeed's keys that are no settings here: what asks for nothing is accepted, the rest refused with a
// reason.

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>

#include "dist/config_sections.h"
#include "tests/data/temporary_folder.h"
#include "tests/dist/config_reading.h"

namespace tessera::dist {
namespace {

using detail::AcceptedKey;
using detail::AcceptedSection;

// {"a": {"b": {"key": value}}} of section "a.b".
std::string json_of(std::string_view section, const std::string& key, const std::string& value) {
  std::string open = "{", close = "}";
  for (std::string_view rest = section; !rest.empty();) {
    const std::string_view name = rest.substr(0, rest.find('.'));
    open += '"' + std::string(name) + "\": {";
    close += '}';
    rest.remove_prefix(std::min(name.size() + 1, rest.size()));
  }
  return open + '"' + key + "\": " + value + close;
}

// Values of each type, the first of which is accepted where the type is.
const std::map<std::string, std::vector<std::string>> kValues{{"boolean", {"true", "false"}},
                                                              {"integer", {"7", "5e8", "0"}},
                                                              {"number", {"0.5", "3"}},
                                                              {"numbers", {"[1, 2]", "[]"}},
                                                              {"text", {"\"words\"", "\"\""}}};

TEST(ConfigAccepted, AsksForNothingWithEachValueThatIsAccepted) {
  for (const AcceptedKey& row : detail::accepted_keys()) {
    SCOPED_TRACE(std::string(row.section) + ' ' + row.key);
    const auto type = kValues.find(row.accepted);
    const std::vector<std::string> values =
        type != kValues.end() ? type->second : std::vector<std::string>{row.accepted};
    for (const std::string& value : values) {
      if (value.empty()) continue;
      Config config;
      EXPECT_NO_THROW(config = read(json_of(row.section, row.key, value))) << value;
      EXPECT_EQ(describe(config, MeshShape(), {1, 1, 1}), describe(Config(), MeshShape(), {1, 1, 1}));
    }
    for (const char* absent : {"\"auto\"", "null"}) {
      EXPECT_NO_THROW(static_cast<void>(read(json_of(row.section, row.key, absent)))) << absent;
    }
  }
}

TEST(ConfigAccepted, GivesTheReasonForWhichAnotherValueIsRefused) {
  for (const AcceptedKey& row : detail::accepted_keys()) {
    SCOPED_TRACE(std::string(row.section) + ' ' + row.key);
    const bool is_type = kValues.contains(row.accepted);
    // An object is of no type, and no accepted value.
    const std::string message = error_of(json_of(row.section, row.key, R"({"a": 1})"));
    expect_parts(message, {"config.json", row.section, '\'' + std::string(row.key) + '\'', R"({"a":1})",
                           is_type ? "must be" : row.reason});
    EXPECT_EQ(std::string(row.reason).empty(), is_type) << "a reason is for what may be refused";
    if (std::string(row.accepted) == "false") {
      expect_parts(error_of(json_of(row.section, row.key, "true")), {"is true", row.reason});
      // Text is no truth value.
      expect_parts(error_of(json_of(row.section, row.key, "\"false\"")), {row.reason});
    }
  }
}

TEST(ConfigAccepted, LeavesOutWholeSectionsThatAreNotEnabled) {
  for (const AcceptedSection& row : detail::accepted_sections()) {
    const std::string section = '"' + std::string(row.section) + "\": {";
    EXPECT_NO_THROW(static_cast<void>(read('{' + section + R"("enabled": false, "whatever": {"a": 1}}})")));
    EXPECT_NO_THROW(static_cast<void>(read('{' + section + R"("whatever": 3}})")));
    expect_parts(error_of('{' + section + R"("enabled": true, "whatever": 1}})"),
                 {"config.json: " + std::string(row.section) + ": 'enabled' is true", row.reason});
  }
}

TEST(ConfigAccepted, ComparesNumbersByValue) {
  EXPECT_NO_THROW(static_cast<void>(read(R"({"gradient_predivide_factor": 1.0})")));
  EXPECT_NO_THROW(static_cast<void>(read(R"({"gradient_predivide_factor": 1})")));
  expect_parts(error_of(R"({"gradient_predivide_factor": 2})"), {"'gradient_predivide_factor' is 2"});
}

// Written down from DeepSpeed's documentation, not from our tables: a key that is missing there shows up
// here.
TEST(ConfigAccepted, KnowsTheKeysOfDeepSpeedsFiles) {
  for (const char* json : {
           // As its page on configuration shows each section.
           R"({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 8,
               "gradient_clipping": 1.0, "steps_per_print": 10, "wall_clock_breakdown": false, "dump_state": false,
               "prescale_gradients": false, "gradient_predivide_factor": 1.0, "sparse_gradients": false,
               "communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}})",
           R"({"fp16": {"enabled": "auto", "auto_cast": false, "loss_scale": 0, "initial_scale_power": 16,
               "loss_scale_window": 1000, "hysteresis": 2, "consecutive_hysteresis": false, "min_loss_scale": 1},
               "bf16": {"enabled": true}, "amp": {"enabled": false, "opt_level": "O1"}})",
           R"({"zero_optimization": {"stage": 3, "allgather_partitions": true, "allgather_bucket_size": 5e8,
               "overlap_comm": false, "reduce_scatter": true, "reduce_bucket_size": 5e8,
               "contiguous_gradients": true, "sub_group_size": 1e9,
               "offload_param": {"device": "none", "nvme_path": "/local_nvme", "pin_memory": false,
                                 "buffer_count": 5, "buffer_size": 1e8, "max_in_cpu": 1e9},
               "offload_optimizer": {"device": "none", "nvme_path": "/local_nvme", "pin_memory": false, "ratio": 0.3,
                                     "buffer_count": 4, "fast_init": false, "pipeline_read": false,
                                     "pipeline_write": false},
               "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
               "stage3_prefetch_bucket_size": 5e8, "stage3_param_persistence_threshold": 1e6,
               "stage3_gather_16bit_weights_on_model_save": false, "ignore_unused_parameters": true,
               "round_robin_gradients": false, "zero_hpz_partition_size": 1, "zero_quantized_weights": false,
               "zero_quantized_gradients": false}})",
           R"({"aio": {"block_size": 1048576, "queue_depth": 8, "thread_count": 1, "single_submit": false,
               "overlap_events": true},
               "activation_checkpointing": {"partition_activations": false, "cpu_checkpointing": false,
                 "contiguous_memory_optimization": false, "number_checkpoints": null,
                 "synchronize_checkpoint_boundary": false, "profile": false},
               "checkpoint": {"tag_validation": "Warn", "load_universal": false, "use_node_local_storage": false,
                 "parallel_write": {"pipeline_stage": false}}})",
           R"({"flops_profiler": {"enabled": false, "profile_step": 1, "module_depth": -1, "top_modules": 1,
                 "detailed": true, "output_file": null},
               "tensorboard": {"enabled": false, "output_path": "output/", "job_name": "train"},
               "wandb": {"enabled": false, "group": "g", "team": "t", "project": "p"},
               "csv_monitor": {"enabled": false, "output_path": "output/", "job_name": "train"},
               "comms_logger": {"enabled": false, "verbose": false, "prof_all": true, "debug": false}})",
           R"({"elasticity": {"enabled": false, "max_train_batch_size": 2000, "micro_batch_sizes": [2, 4, 6],
                 "min_gpus": 1, "max_gpus": 10000, "min_time": 20, "prefer_larger_batch": true,
                 "ignore_non_elastic_batch_info": false, "version": 0.1},
               "autotuning": {"enabled": false, "results_dir": null, "exps_dir": null, "overwrite": false,
                 "metric": "throughput", "start_profile_step": 3, "end_profile_step": 5, "fast": true,
                 "max_train_batch_size": null, "mp_size": 1, "num_tuning_micro_batch_sizes": 3,
                 "tuner_type": "model_based", "tuner_early_stopping": 5, "tuner_num_trials": 50,
                 "arg_mappings": null}})",
           R"({"tensor_parallel": {"autotp_size": 2}, "sequence_parallel_size": 2,
               "pipeline": {"stages": 1, "partition": "best", "seed_layers": false,
                 "activation_checkpoint_interval": 0, "schedule": "1f1b", "chunks": 1}})",
       }) {
    EXPECT_NO_THROW(static_cast<void>(read(json))) << json;
  }
}

TEST(ConfigAccepted, RefusesWhatIsNotSupportedAndSaysWhatWorks) {
  expect_parts(error_of(R"({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})"),
               {"config.json: zero_optimization.offload_optimizer: 'device' is \"cpu\"", "not supported yet",
                "\"none\" works"});
  expect_parts(error_of(R"({"zero_optimization": {"zero_quantized_weights": true}})"),
               {"'zero_quantized_weights' is true", "not supported yet", "zero_hpz_partition_size"});
  expect_parts(error_of(R"({"communication_data_type": "fp16"})"),
               {"'communication_data_type' is \"fp16\"", "fp32"});
  expect_parts(error_of(R"({"tensorboard": {"enabled": true}})"),
               {"tensorboard: 'enabled' is true", "\"csv\""});
  expect_parts(error_of(R"({"bfloat16": {"enabled": true}})"), {"write bf16"});
  expect_parts(error_of(R"({"aio": {"block_sise": 1}})"),
               {"aio: unknown key 'block_sise'; did you mean 'block_size'?"});
}

// A row of the page names the section and, behind it, its keys.
TEST(ConfigAccepted, StandsInTheDocumentation) {
  const std::string page = data::read_file(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs" / "config.md");
  std::map<std::string, std::string> rows;  // by section
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| ")) continue;
    const std::string section = line.substr(2, line.find(" |", 2) - 2);
    rows[section] += line;
  }
  for (const AcceptedKey& row : detail::accepted_keys()) {
    const std::string section = row.section[0] == '\0' ? "top level" : '`' + std::string(row.section) + '`';
    EXPECT_NE(rows[section].find('`' + std::string(row.key) + '`'), std::string::npos)
        << section << ' ' << row.key;
  }
  for (const AcceptedSection& row : detail::accepted_sections()) {
    EXPECT_NE(page.find('`' + std::string(row.section) + ".enabled`"), std::string::npos) << row.section;
  }
}

}  // namespace
}  // namespace tessera::dist

// What is cut over ranks, and what is computed twice: mesh, zero_optimization, activation_checkpointing.

#include <fmt/format.h>

#include <array>
#include <limits>
#include <set>

#include "dist/config_sections.h"
#include "dist/pipeline_generators.h"
#include "kernels/error.h"

namespace tessera::dist::detail {
namespace {

constexpr std::int64_t kMostRanks = std::int64_t{1} << 20;

// The number of ranks under `key`, 1 if it says none: absent, 0 or 1 (some say −1).
int read_ranks(ConfigFile& section, const char* key) {
  const auto value = section.integer(key);
  if (!value || *value == 0 || *value == -1) return 1;
  if (*value < 0 || *value > kMostRanks) section.refuse(key, "expected a number of ranks, from 1 to 2^20");
  return static_cast<int>(*value);
}

// Sets an axis that the mesh may name, too.
void set_axis(ConfigFile& section, const char* key, MeshAxis axis, bool named, MeshShape& mesh) {
  const int size = read_ranks(section, key);
  if (!section.integer(key) || *section.integer(key) == 0) return;
  if (named && mesh[axis] != size) {
    section.refuse(key, fmt::format("but \"mesh\" has {}={}; leave one of them out", name(axis), mesh[axis]));
  }
  mesh.set(axis, size);
}

void check_axes(const ConfigFile& file, const MeshShape& mesh) {
  for (const MeshAxis axis : kMeshAxes) {  // products of three such sizes do not overflow
    if (mesh[axis] > kMostRanks) file.refuse("mesh", "no axis is longer than 2^20 ranks");
  }
  if (mesh[MeshAxis::kEp] > 1) {
    file.refuse(
        "mesh",
        "expert parallelism (ep) is not supported yet, nor are mixtures of experts; dp, cp and tp work");
  }
}

std::int64_t read_elements(ConfigFile& section, const char* key, std::int64_t otherwise) {
  const auto given = section.integer(key);
  if (given && *given < 0) section.refuse(key, "expected a number of elements, from 0");
  return given.value_or(otherwise);
}

void read_pipeline(ConfigFile& section, Config::Pipeline& pipeline) {
  static const std::vector<std::string> kSchedules = schedule_names();
  static const std::array<std::string, 3> kPartitions{"uniform", "parameters", "time"};
  pipeline.schedule = section.text("schedule").value_or(pipeline.schedule);
  check_name("pipeline.schedule", pipeline.schedule, kSchedules);
  pipeline.partition = section.text("partition").value_or(pipeline.partition);
  if (pipeline.partition == "best") pipeline.partition = "parameters";  // DeepSpeed's word for its choice
  check_name("pipeline.partition", pipeline.partition, kPartitions);
  pipeline.chunks = section.integer("chunks").value_or(0);
  if (pipeline.chunks < 0 || pipeline.chunks > kMostRanks)
    section.refuse("chunks", "expected a number of stages on each rank, from 1; 0: what the schedule has");
}

}  // namespace

void read_mesh(ConfigFile& file, Config& config) {
  const std::string text = file.text("mesh").value_or("");
  std::set<MeshAxis> named;
  config.mesh = MeshShape::parse(text, &named);
  check_axes(file, config.mesh);
  config.dp_given = named.contains(MeshAxis::kDp);

  ConfigFile tensor = file.section("tensor_parallel");
  set_axis(tensor, "autotp_size", MeshAxis::kTp, named.contains(MeshAxis::kTp), config.mesh);
  config.sequence_parallel = tensor.boolean("sequence_parallel").value_or(false);

  set_axis(file, "sequence_parallel_size", MeshAxis::kCp, named.contains(MeshAxis::kCp), config.mesh);
  ConfigFile context = file.section("context_parallel");
  static const std::array<std::string, 2> kMethods{"ring", "ulysses"};
  const bool is_deepspeeds = file.integer("sequence_parallel_size").value_or(0) > 1;
  const std::string method = context.text("method").value_or(is_deepspeeds ? "ulysses" : "ring");
  check_name("context_parallel.method", method, kMethods);
  config.context_parallel =
      method == "ring" ? Config::ContextParallel::kRing : Config::ContextParallel::kUlysses;
  if (is_deepspeeds && method == "ring") {
    context.refuse("method",
                   fmt::format("but sequence_parallel_size, as in DeepSpeed, means Ulysses; for a ring write "
                               "\"mesh\": \"cp={}\" in its place",
                               config.mesh[MeshAxis::kCp]));
  }

  ConfigFile pipeline = file.section("pipeline");
  set_axis(pipeline, "stages", MeshAxis::kPp, named.contains(MeshAxis::kPp), config.mesh);
  read_pipeline(pipeline, config.pipeline);
}

void read_zero(ConfigFile section, Config::Zero& zero) {
  const std::int64_t stage = section.integer("stage").value_or(0);
  if (stage < 0 || stage > 3) {
    section.refuse("stage",
                   "ZeRO's stages are 0 (nothing is cut), 1 (optimizer state), 2 (and gradients), 3 (and "
                   "parameters)");
  }
  zero.stage = static_cast<int>(stage);
  const auto elements = [&section](const char* key, std::int64_t& target) {
    target = read_elements(section, key, target);
  };
  elements("stage3_prefetch_bucket_size", zero.prefetch_bucket_size);
  elements("stage3_param_persistence_threshold", zero.param_persistence_threshold);
  elements("stage3_max_live_parameters", zero.max_live_parameters);
  elements("stage3_max_reuse_distance", zero.max_reuse_distance);
  zero.hpz_partition_size = read_ranks(section, "zero_hpz_partition_size");
  const std::int64_t mics = section.integer("mics_shard_size").value_or(0);
  zero.mics_shard_size = mics > 0 ? read_ranks(section, "mics_shard_size") : 0;
  if (mics < -1) section.refuse("mics_shard_size", "expected a number of ranks; 0 and -1 mean no MiCS");
  zero.keep_full_gradients = section.boolean("keep_full_gradients").value_or(false);
}

void read_recompute(ConfigFile& file, Config::Recompute& recompute) {
  using Mode = Config::Recompute::Mode;
  ConfigFile section = file.section("activation_checkpointing");
  recompute.partition_activations = section.boolean("partition_activations").value_or(false);
  recompute.cpu_checkpointing = section.boolean("cpu_checkpointing").value_or(false);
  recompute.number_checkpoints = section.integer("number_checkpoints").value_or(0);
  if (recompute.number_checkpoints < 0) section.refuse("number_checkpoints", "expected a number from 0");

  const auto given = file.json("recompute");
  if (!given) {  // whoever says how blocks run again wants it
    const bool asked =
        recompute.partition_activations || recompute.cpu_checkpointing || recompute.number_checkpoints > 0;
    recompute.mode = asked ? Mode::kFull : Mode::kNone;
    return;
  }
  if (*given == "true" || *given == "false") {
    recompute.mode = *given == "true" ? Mode::kFull : Mode::kNone;
  } else {
    static const std::array<std::string, 3> kModes{"none", "selective", "full"};
    const std::string word = file.text("recompute").value();
    check_name("recompute", word, kModes);
    recompute.mode = word == "full" ? Mode::kFull : word == "selective" ? Mode::kSelective : Mode::kNone;
  }
}

}  // namespace tessera::dist::detail

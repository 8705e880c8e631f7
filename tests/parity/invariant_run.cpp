#include "tests/parity/invariant_run.h"

#include <fmt/format.h>

#include <cctype>
#include <map>
#include <sstream>

#include "dist/checkpoint.h"
#include "dist/collectives.h"
#include "dist/parameter_hash.h"
#include "kernels/random_key.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

namespace tessera::dist::parity {
namespace {

constexpr double kMaxNorm = 0.05;  // below every norm of these runs

std::int64_t token(const InvariantRun& run, std::int64_t step, std::int64_t sample, std::int64_t t) {
  const auto stream = static_cast<std::uint64_t>((step * run.batch + sample) * (run.time + 1) + t);
  const std::uint64_t bits = kernels::random_key_bits({.seed = 5, .stream = stream});
  return static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(run.vocab));
}

// All of a sample's targets count, or three of them, or (one sample of each batch) none.
std::int64_t num_targets(const InvariantRun& run, std::int64_t sample) {
  return sample == 7 ? 0 : sample % 5 == 0 ? 3 : run.time;
}

}  // namespace

std::vector<std::string> bits_of(const InvariantRun& run, Job& job) {
  RankContext context({.rank = job.rank(), .world_size = job.size(), .num_threads = run.threads, .seed = 17});
  const RankContext::Scope scope(context);
  const Mesh mesh(run.config.mesh, job.shared_world());
  const auto model = [&] {
    const DeviceScope on_meta(meta);
    return nn::make_language_model(run.model, run.vocab);
  }();
  Config config = run.config;
  // A batch that dp does not divide is one that ends early: the last step of an epoch.
  const std::int64_t share = shard_size(run.batch, mesh.size(MeshAxis::kDp), 0);
  if (config.batch.micro_batch == 0) config.batch.micro_batch = share;
  config.batch.accumulation = (share + config.batch.micro_batch - 1) / config.batch.micro_batch;
  config.gradient_clipping = kMaxNorm;
  Engine engine(*model, config, mesh, run.options);
  if (!run.load.empty()) engine.load(CheckpointReader(run.load));
  if (run.spoil) run.spoil(engine);
  const SampleSource source = [&run](std::int64_t step, std::int64_t first, std::int64_t count, auto inputs,
                                     auto targets) {
    for (std::int64_t i = 0; i < count * run.time; ++i) {
      const std::int64_t sample = first + i / run.time, t = i % run.time;
      inputs[static_cast<std::size_t>(i)] = token(run, step, sample, t);
      targets[static_cast<std::size_t>(i)] =
          t < num_targets(run, sample) ? token(run, step, sample, t + 1) : std::int64_t{-100};
    }
  };
  std::vector<std::string> lines;
  for (int step = 0; step < run.steps; ++step) {
    const StepReport report = engine.train_step(source, run.batch);
    lines.push_back(fmt::format("step {}: loss {:a} norm {:a}", report.step, report.loss, report.grad_norm));
  }
  if (run.inspect) run.inspect(engine, job);
  if (!run.save.empty()) save_checkpoint(run.save, engine.checkpoint_sources(), job.world());
  for (const auto& [name, hash] : parameter_hashes(engine))
    lines.push_back(fmt::format("{} {:016x}", name, hash));
  return lines;
}

std::vector<std::string> bits_of(const InvariantRun& run) {
  std::vector<std::string> lines;
  run_thread_ranks(run.config.mesh.num_ranks(), [&](Job& job) {
    std::vector<std::string> own = bits_of(run, job);
    if (job.is_root()) lines = std::move(own);
  });
  return lines;
}

const std::vector<std::string>& bits_of_one_rank(const InvariantRun& run) {
  static std::map<std::string, std::vector<std::string>> known;
  const std::string key =
      fmt::format("{} {} {} {}", run.model, name(run.config.dtype), run.config.optimizer.type, run.batch);
  if (!known.contains(key)) {
    InvariantRun alone = invariant_run(run.model, "dp=1");
    alone.config.dtype = run.config.dtype;
    alone.config.optimizer = run.config.optimizer;
    alone.batch = run.batch;
    known[key] = bits_of(alone);
  }
  return known[key];
}

std::string test_name(const std::string& layout) {
  std::string result;
  for (const char c : layout) result += std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return result;
}

InvariantRun invariant_run(const std::string& model, const std::string& layout) {
  InvariantRun run{.model = model, .config = {}};
  Config& config = run.config;
  config.numerics = Config::Numerics::kInvariant;
  std::istringstream words(layout);
  for (std::string word; words >> word;) {
    const std::string value = word.substr(word.find('=') + 1);
    if (word == "fast") {
      config.numerics = Config::Numerics::kFast;
    } else if (word == "sp") {
      config.sequence_parallel = true;
    } else if (word == "SGD" || word == "Adagrad" || word == "Lion" || word == "Lamb" || word == "Muon") {
      config.optimizer.type = word;
      if (word == "SGD" || word == "Muon") config.optimizer.momentum = 0.9;
    } else if (word == "ulysses") {
      config.context_parallel = Config::ContextParallel::kUlysses;
    } else if (word == "f64" || word == "bf16" || word == "f16") {
      config.dtype = word == "f64" ? kF64 : word == "f16" ? kF16 : kBF16;
    } else if (word == "full-gradients") {
      config.zero.keep_full_gradients = true;
    } else if (word == "partitioned") {
      config.recompute.partition_activations = true;
    } else if (word.starts_with("zero=")) {
      config.zero.stage = std::stoi(value);
    } else if (word.starts_with("mics=")) {
      config.zero.stage = 3, config.zero.mics_shard_size = std::stoi(value);
    } else if (word.starts_with("hpz=")) {
      config.zero.stage = 3, config.zero.hpz_partition_size = std::stoi(value);
    } else if (word.starts_with("pass=")) {
      config.batch.micro_batch = std::stoi(value);
    } else if (word.starts_with("schedule=")) {
      config.pipeline.schedule = value;
    } else if (word.starts_with("chunks=")) {
      config.pipeline.chunks = std::stoi(value);
    } else if (word == "uniform") {
      config.pipeline.partition = word;
    } else if (word.starts_with("batch=")) {
      run.batch = std::stoi(value);
    } else if (word.starts_with("threads=")) {
      run.threads = std::stoi(value);
    } else if (word == "recompute=full") {
      config.recompute.mode = Config::Recompute::Mode::kFull;
    } else if (word == "recompute=selective") {
      config.recompute.mode = Config::Recompute::Mode::kSelective;
    } else {
      config.mesh = MeshShape::parse(word);
    }
  }
  return run;
}

}  // namespace tessera::dist::parity

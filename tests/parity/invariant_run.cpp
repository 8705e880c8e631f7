#include "tests/parity/invariant_run.h"

#include <fmt/format.h>

#include <cctype>
#include <map>

#include "dist/checkpoint.h"
#include "dist/collectives.h"
#include "dist/parameter_hash.h"
#include "nn/model_factory.h"
#include "tensor/context.h"
#include "tests/layout_row.h"
#include "tests/parity/samples.h"

namespace tessera::dist::parity {
namespace {

constexpr double kMaxNorm = 0.05;  // below every norm of these runs

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
  const Samples samples{.vocab = run.vocab, .time = run.time, .batch = run.batch};
  const SampleSource source = [&samples](std::int64_t step, std::int64_t first, std::int64_t count,
                                         auto inputs,
                                         auto targets) { samples.fill(step, first, count, inputs, targets); };
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
      fmt::format("{} {} {} {} {}", run.model, name(run.config.dtype), run.config.optimizer.type,
                  name(run.config.optimizer.state_dtype), run.batch);
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
  run.config.numerics = Config::Numerics::kInvariant;
  run.config = read_layout(layout, run.config, [&run](const std::string& key, const std::string& value) {
    if (key == "batch") run.batch = std::stoi(value);
    if (key == "threads") run.threads = std::stoi(value);
    return key == "batch" || key == "threads";
  });
  return run;
}

}  // namespace tessera::dist::parity

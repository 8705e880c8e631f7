#include "dist/dry_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "dist/optimizer_factory.h"
#include "dist/pipeline.h"
#include "dist/pipeline_drawing.h"
#include "dist/pipeline_simulation.h"
#include "dist/zero.h"
#include "kernels/error.h"
#include "kernels/readable.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kPp = MeshAxis::kPp;

kernels::OpCounts difference(const kernels::OpCounts& after, const kernels::OpCounts& before) {
  return {.calls = after.calls - before.calls,
          .flops = after.flops - before.flops,
          .bytes_read = after.bytes_read - before.bytes_read,
          .bytes_written = after.bytes_written - before.bytes_written};
}

kernels::CountsByKind difference(const kernels::CountsByKind& after, const kernels::CountsByKind& before) {
  kernels::CountsByKind result;
  for (std::size_t kind = 0; kind < result.size(); ++kind)
    result[kind] = difference(after[kind], before[kind]);
  return result;
}

// One rank with all that it needs. The engine goes before the model and the mesh, all before the context.
class Rank {
 public:
  Rank(const DryRunOptions& options, int rank)
      : context_({.rank = rank, .world_size = options.mesh.num_ranks(), .num_threads = 1}),
        scope_(context_),
        on_meta_(meta),
        // All on one host: whether tp may reach over hosts is for the real mesh to say.
        mesh_(options.mesh, make_fake_communicator(options.mesh.num_ranks(), rank, std::make_shared<Tape>()),
              {.host = "planned"}),
        model_(options.make_model()) {
    num_parameters_ = model_->num_parameters();
    EngineOptions engine = options.engine;
    engine.device = meta;
    engine_ = std::make_unique<Engine>(*model_, options.config, mesh_, engine);
  }

  RankStep run(const DryRunOptions& options) {
    RankStep step;
    step.rank = context_.rank;
    for (int i = 0; i < options.steps; ++i) {
      const kernels::OpCounts before = context_.kernels.counts;
      const kernels::CountsByKind before_by_kind = context_.kernels.counts_by_kind;
      StepReport report = engine_->train_step(nullptr, options.num_samples);
      step.counts = difference(context_.kernels.counts, before);
      step.counts_by_kind = difference(context_.kernels.counts_by_kind, before_by_kind);
      step.traffic = std::move(report.traffic);
    }
    step.memory = engine_->memory();
    step.predicted = engine_->zero().predicted_memory(
        optimizer_bytes_per_element(options.config.optimizer, options.config.dtype));
    for (const ZeroFlat& flat : engine_->zero().plan().flats) step.num_elements += flat.elements;
    return step;
  }

  [[nodiscard]] Engine& engine() { return *engine_; }
  [[nodiscard]] std::int64_t num_parameters() const { return num_parameters_; }

 private:
  RankContext context_;
  RankContext::Scope scope_;
  DeviceScope on_meta_;
  Mesh mesh_;
  std::unique_ptr<nn::LanguageModel> model_;
  std::int64_t num_parameters_ = 0;
  std::unique_ptr<Engine> engine_;
};

// The few bytes that the world shares are cut unevenly, and rank 0 counts norms for others: no difference to
// a reader.
bool are_alike(const RankStep& a, const RankStep& b) {
  const auto without_world = [](std::vector<TapeTotal> rows) {
    std::erase_if(rows, [](const TapeTotal& row) { return row.group == "world"; });
    return rows;
  };
  const auto same_use = [](const MemoryUse& x, const MemoryUse& y) {
    return x.current == y.current && x.peak == y.peak;
  };
  const auto same_row = [](const TapeTotal& x, const TapeTotal& y) {
    return x.group == y.group && x.op == y.op && x.calls == y.calls && x.sent_bytes == y.sent_bytes;
  };
  return std::ranges::equal(a.memory.by_category, b.memory.by_category, same_use) &&
         same_use(a.memory.total, b.memory.total) &&
         std::ranges::equal(without_world(a.traffic), without_world(b.traffic), same_row);
}

}  // namespace

RankStep dry_run_rank(const DryRunOptions& options, int rank) { return Rank(options, rank).run(options); }

DryRun dry_run(const DryRunOptions& options) {
  DryRun result;
  result.mesh = options.mesh;
  const Config::Zero& zero = options.config.zero;
  result.gathers_in_passes = zero.stage == 3;
  result.reduces_in_passes = zero.stage >= 2 && !zero.keep_full_gradients;
  const int stride = options.mesh.num_ranks() / options.mesh[kPp];
  for (int first = 0; first < options.mesh.num_ranks(); first += stride) {
    RankClass ranks{.first_rank = first, .last_rank = first + stride - 1, .first = {}, .last = {}};
    {
      Rank rank(options, first);
      ranks.first = rank.run(options);
      result.num_parameters = rank.num_parameters();
      Engine& engine = rank.engine();
      result.batch = engine.batch();
      result.seq = engine.seq();
      result.num_samples = options.num_samples == 0 ? engine.batch().global : options.num_samples;
      if (Pipeline* pipeline = engine.pipeline(); pipeline != nullptr && !result.schedule)
        result.schedule = pipeline->schedule(engine.num_passes(result.num_samples));
    }
    if (ranks.last_rank != first) {
      RankStep last = dry_run_rank(options, ranks.last_rank);
      if (!are_alike(ranks.first, last)) ranks.last = std::move(last);
    }
    result.classes.push_back(std::move(ranks));
  }
  return result;
}

// --- For a person ------------------------------------------------------------------------------------------

namespace {

std::string exact(std::int64_t bytes) {
  return fmt::format("{:>22}  {:>8}", with_commas(bytes), with_byte_unit(bytes));
}

// 3.12e15 → "3.12e15": counts beyond what has a name.
std::string count_of(std::uint64_t count) { return fmt::format("{:.4g}", static_cast<double>(count)); }

std::string describe(const RankStep& step) {
  const MemoryReport& memory = step.memory;
  std::string text =
      fmt::format("  rank {} holds {} elements of the model\n", step.rank, with_commas(step.num_elements));
  text += fmt::format("    memory                at the peak                    most of the category\n");
  for (std::size_t c = 0; c < kNumMemoryCategories; ++c) {
    const MemoryUse& use = memory.by_category[c];
    if (use.peak == 0) continue;
    text += fmt::format("      {:<15}{}{}\n", name(static_cast<MemoryCategory>(c)), exact(memory.at_peak[c]),
                        exact(use.peak));
  }
  text += fmt::format("      {:<15}{}    in: {}\n", "total", exact(memory.total.peak), memory.peak_moment);
  text += fmt::format("      {:<15}{}    between steps\n", "", exact(memory.total.current));
  text += fmt::format("    {:<17}{:<16}{:>11}\n", "sent in a step", "operation", "calls");
  std::int64_t sent = 0;
  for (const TapeTotal& row : step.traffic) {
    text += fmt::format("      {:<15}{:<16}{:>11}{}\n", row.group, name(row.op), with_commas(row.calls),
                        exact(row.sent_bytes));
    sent += row.sent_bytes;
  }
  text += fmt::format("      {:<42}{}\n", "all", exact(sent));
  text += fmt::format("    operations        {} floating-point, {} bytes read, {} written, in {} kernels\n",
                      count_of(step.counts.flops), count_of(step.counts.bytes_read),
                      count_of(step.counts.bytes_written),
                      with_commas(static_cast<std::int64_t>(step.counts.calls)));
  return text;
}

std::string names_of(const RankClass& ranks, int num_places) {
  const std::string place =
      num_places == 1 ? ""
                      : fmt::format("pp {}: ", ranks.first.rank / (ranks.last_rank - ranks.first_rank + 1));
  if (ranks.first_rank == ranks.last_rank) return fmt::format("{}rank {}", place, ranks.first_rank);
  return fmt::format(
      "{}ranks {} to {}: {}", place, ranks.first_rank, ranks.last_rank,
      ranks.last ? "the first and the last one; the others are like them, but for what does not divide"
                 : "the first one; the last one does the same");
}

}  // namespace

std::string describe(const DryRun& run) {
  std::string text;
  for (const RankClass& ranks : run.classes) {
    text += names_of(ranks, run.mesh[kPp]) + '\n' + describe(ranks.first);
    if (ranks.last) text += describe(*ranks.last);
  }
  if (!run.schedule) return text;
  const Schedule& schedule = *run.schedule;
  const Simulation simulation = simulate(schedule, StageCost{}.per_chunk(schedule.num_chunks));
  text += fmt::format(
      "schedule    {}: {} stages, {} micro-batches, bubble {:.1f} % where all passes of a stage "
      "take equally long\n",
      schedule.name, schedule.num_stages(), schedule.num_micro_batches, 100 * simulation.bubble());
  return text;
}

}  // namespace tessera::dist

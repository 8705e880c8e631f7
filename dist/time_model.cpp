#include "dist/time_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "dist/config_file.h"
#include "dist/pipeline_simulation.h"
#include "kernels/error.h"

namespace tessera::dist {
namespace {

using kernels::KernelKind;
using kernels::OpCounts;

constexpr std::array<const char*, kernels::kNumKernelKinds> kKindNames = {"other", "product", "attention",
                                                                          "update"};

double seconds_of(const OpCounts& counts, const KernelRate& rate) {
  return static_cast<double>(counts.flops) / rate.flops +
         static_cast<double>(counts.bytes_read + counts.bytes_written) / rate.bytes;
}

// A receiver waits for its sender, whose call has all of the costs.
double seconds_of(const TapeTotal& row, const LinkRate& rate) {
  if (row.op == Collective::kRecv) return 0.0;
  return static_cast<double>(row.calls) * rate.latency + static_cast<double>(row.sent_bytes) / rate.bytes;
}

void add(StepTime& sum, const StepTime& part, double times) {
  sum.compute += times * part.compute;
  sum.memory += times * part.memory;
  sum.overhead += times * part.overhead;
  sum.communication += times * part.communication;
}

// What a rank of a pipeline does, by its place in the step.
struct StageTime {
  double passes = 0.0;       // of all micro-batches: messages to the stages beside it among them
  double end_of_step = 0.0;  // the update, and what data ranks send once a step
};

bool is_in_passes(const TapeTotal& row, const DryRun& run) {
  if (row.group == "pp" || row.group == "tp" || row.group == "cp") return true;
  if (row.group == "world") return false;  // norm, figures
  return row.op == Collective::kAllGather ? run.gathers_in_passes : run.reduces_in_passes;
}

StageTime stage_time(const DryRun& run, const RankStep& step, const Rates& rates) {
  StageTime time;
  time.end_of_step = seconds_of(step.counts_by_kind[static_cast<std::size_t>(KernelKind::kUpdate)],
                                rates.kernel(KernelKind::kUpdate));
  for (const TapeTotal& row : step.traffic) {
    if (!is_in_passes(row, run)) time.end_of_step += seconds_of(row, rates.link(row));
  }
  time.passes = time_of(step, rates).busy() - time.end_of_step;
  return time;
}

double path_of(const DryRun& run, const Rates& rates) {
  double longest = 0.0;
  if (!run.schedule) {
    for (const RankClass& ranks : run.classes) {
      longest = std::max(longest, time_of(ranks.first, rates).busy());
      if (ranks.last) longest = std::max(longest, time_of(*ranks.last, rates).busy());
    }
    return longest;
  }
  const Schedule& schedule = *run.schedule;
  std::vector<StageCost> costs;
  for (int stage = 0; stage < schedule.num_stages(); ++stage) {
    const auto place = static_cast<std::size_t>(schedule.rank_of(stage));
    const StageTime time = stage_time(run, run.classes[place].first, rates);
    const double third = time.passes / (3.0 * schedule.num_chunks * schedule.num_micro_batches);
    costs.push_back({.forward = third, .backward_input = third, .backward_weight = third, .transfer = 0.0});
    longest = std::max(longest, time.end_of_step);
  }
  return simulate(schedule, costs).total + longest;
}

}  // namespace

const LinkRate& Rates::link(const TapeTotal& row) const {
  static const LinkRate kFree;
  const std::string op = name(row.op);
  for (const std::string& key : {row.group, fmt::format("{}/{}", op, row.num_ranks), op, std::string("any")})
    if (const auto found = links.find(key); found != links.end()) return found->second;
  return kFree;
}

StepTime time_of(const RankStep& step, const Rates& rates) {
  StepTime time;
  for (const KernelKind kind :
       {KernelKind::kOther, KernelKind::kProduct, KernelKind::kAttention, KernelKind::kUpdate}) {
    const double seconds =
        seconds_of(step.counts_by_kind[static_cast<std::size_t>(kind)], rates.kernel(kind));
    const bool computes = kind == KernelKind::kProduct || kind == KernelKind::kAttention;
    (computes ? time.compute : time.memory) += seconds;
  }
  time.overhead = static_cast<double>(step.counts.calls) * rates.kernel_seconds;
  for (const TapeTotal& row : step.traffic) time.communication += seconds_of(row, rates.link(row));
  return time;
}

StepTime predict(const DryRun& run, const Rates& rates) {
  const int num_ranks = run.mesh.num_ranks();
  const int cores = rates.cores == 0 ? num_ranks : std::min(rates.cores, num_ranks);
  StepTime step;
  for (const RankClass& ranks : run.classes) {
    const double count = ranks.last_rank - ranks.first_rank + 1;
    add(step, time_of(ranks.first, rates), count / (ranks.last ? 2 : 1) / cores);
    if (ranks.last) add(step, time_of(*ranks.last, rates), count / 2 / cores);
  }
  step.idle = std::max(0.0, path_of(run, rates) - step.busy());
  return step;
}

std::string describe(const DryRun& run, const Rates& rates) {
  const StepTime step = predict(run, rates);
  Rates without_links = rates;
  without_links.links.clear();
  const auto ms = [](double seconds) { return fmt::format("{:.4g}", 1e3 * seconds); };
  return fmt::format(
      "step time   {} ms: products and attention {}, other kernels {}, calls {}, communication {}, idle {}\n"
      "            {} ms if all communication were hidden behind kernels\n",
      ms(step.seconds()), ms(step.compute), ms(step.memory), ms(step.overhead), ms(step.communication),
      ms(step.idle), ms(predict(run, without_links).seconds()));
}

// --- Files -------------------------------------------------------------------------------------------------

namespace {

// In units of `unit`; keeps what is there if the key is absent.
void read_positive(ConfigFile& file, const char* key, double unit, double& value) {
  const auto number = file.number(key);
  if (number && *number <= 0.0) file.refuse(key, "expected a number above 0");
  if (number) value = *number * unit;
}

std::string rate_text(double flops, double bytes) {
  std::string text;
  if (std::isfinite(flops)) text += fmt::format("\"gflops\": {:.6g}", flops / 1e9);
  if (std::isfinite(bytes))
    text += fmt::format("{}\"gb_per_s\": {:.6g}", text.empty() ? "" : ", ", bytes / 1e9);
  return text;
}

}  // namespace

Rates Rates::load(const std::filesystem::path& path) {
  ConfigFile file = ConfigFile::load(path);
  Rates rates;
  if (const auto cores = file.integer("cores")) {
    if (*cores < 1) file.refuse("cores", "expected 1 or more");
    rates.cores = static_cast<int>(*cores);
  }
  read_positive(file, "kernel_us", 1e-6, rates.kernel_seconds);
  ConfigFile kinds = file.section("kernels");
  for (std::size_t kind = 0; kind < kKindNames.size(); ++kind) {
    ConfigFile rate = kinds.section(kKindNames[kind]);
    read_positive(rate, "gflops", 1e9, rates.kernels[kind].flops);
    read_positive(rate, "gb_per_s", 1e9, rates.kernels[kind].bytes);
  }
  ConfigFile links = file.section("links");
  for (const std::string& key : links.keys()) {
    ConfigFile rate = links.section(key);
    read_positive(rate, "us", 1e-6, rates.links[key].latency);
    read_positive(rate, "gb_per_s", 1e9, rates.links[key].bytes);
  }
  file.refuse_unknown();
  return rates;
}

std::string Rates::json() const {
  std::string text = "{\n";
  if (cores > 0) text += fmt::format("  \"cores\": {},\n", cores);
  if (kernel_seconds > 0.0) text += fmt::format("  \"kernel_us\": {:.6g},\n", 1e6 * kernel_seconds);
  text += "  \"kernels\": {";
  for (std::size_t kind = 0; kind < kernels.size(); ++kind)
    text += fmt::format("{}\n    \"{}\": {{{}}}", kind == 0 ? "" : ",", kKindNames[kind],
                        rate_text(kernels[kind].flops, kernels[kind].bytes));
  text += "\n  },\n  \"links\": {";
  const char* comma = "";
  for (const auto& [key, rate] : links) {
    std::string parts = rate_text(std::numeric_limits<double>::infinity(), rate.bytes);
    if (rate.latency > 0.0)
      parts = fmt::format("\"us\": {:.6g}{}{}", 1e6 * rate.latency, parts.empty() ? "" : ", ", parts);
    text += fmt::format("{}\n    \"{}\": {{{}}}", comma, key, parts);
    comma = ",";
  }
  return text + "\n  }\n}\n";
}

}  // namespace tessera::dist

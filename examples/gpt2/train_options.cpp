#include "examples/gpt2/train_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <map>
#include <set>
#include <type_traits>
#include <vector>

#include "dist/hugging_face.h"
#include "dist/pipeline_generators.h"
#include "examples/command_line.h"
#include "kernels/error.h"
#include "nn/model_factory.h"

namespace gpt2 {
namespace {

using tessera::ConfigError;
using tessera::dist::Config;
using tessera::dist::ConfigFile;

const std::map<std::string, tessera::DType> kDTypes{
    {"f32", tessera::kF32}, {"bf16", tessera::kBF16}, {"f64", tessera::kF64}};
const std::map<std::string, Progress> kProgress{{"auto", Progress::kAuto},
                                                {"bar", Progress::kBar},
                                                {"lines", Progress::kLines},
                                                {"none", Progress::kNone}};

// What one source says, the command line or the config file; the other may say the rest.
struct Flags {
  bool from_file = false;
  std::string config;
  std::optional<std::string> data, out, model, from_hf, dtype, optimizer_state, log, csv, progress, mesh,
      recompute, schedule, partition, numerics;
  std::optional<std::int64_t> steps, batch, micro_batch, seq, warmup, eval_every, eval_tokens, save_every,
      keep;
  std::optional<double> lr, min_lr, weight_decay, clip, dropout;
  std::optional<std::uint64_t> seed;
  std::optional<int> ranks, threads, zero, chunks, world;
  std::string rates;
  bool resume = false, comm_summary = false, print_schedule = false, dry_run = false, no_memory_check = false;
};

void add_options(CLI::App& app, Flags& flags) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const char* const kGroupRun = "Run";
  app.add_option("--config", flags.config,
                 "Settings in JSON: the flags' names, as in \"micro_batch\": 4, and DeepSpeed's keys; flags "
                 "win over it [none]")
      ->type_name("FILE")
      ->group(kGroupRun);
  app.add_flag("--no-memory-check", flags.no_memory_check,
               "Go on although the ranks of a host will hold more than it has left")
      ->group(kGroupRun);
  app.add_option("--data", flags.data, "Folder that gpt2_prepare made [data]")
      ->type_name("DIR")
      ->group(kGroupRun);
  app.add_option("--out", flags.out, "Folder for checkpoints and the tokenizer [run]")
      ->type_name("DIR")
      ->group(kGroupRun);
  app.add_option("--steps", flags.steps, "Optimizer steps in all [1000]")->group(kGroupRun);
  app.add_option("--seed", flags.seed, "Decides initial weights, order of samples and dropout [0]")
      ->check(examples::at_least(0))
      ->group(kGroupRun);
  app.add_flag("--resume", flags.resume, "Go on from the latest checkpoint in --out, if there is one")
      ->group(kGroupRun);
  app.add_option("--save-every", flags.save_every, "Steps between checkpoints; 0: only at the end [0]")
      ->group(kGroupRun);
  app.add_option("--keep", flags.keep, "Checkpoints to keep [2]")->group(kGroupRun);

  const char* const kGroupModel = "Model";
  app.add_option("--model", flags.model,
                 "A size (gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-...) or its parts: "
                 "layers=4,heads=4,width=128,context=256 [gpt2]")
      ->type_name("SPEC")
      ->group(kGroupModel);
  app.add_option(
         "--from-hf", flags.from_hf,
         "Begin with this model of Hugging Face (config.json, model.safetensors), instead of --model with "
         "random weights; make --data with its tokenizer [none]")
      ->type_name("DIR")
      ->group(kGroupModel);
  app.add_option("--dropout", flags.dropout, "Probability of dropping an activation [0]")->group(kGroupModel);
  app.add_option("--dtype", flags.dtype, "f32, bf16 (with f32 masters) or f64 [f32]")->group(kGroupModel);
  app.add_option("--optimizer-state", flags.optimizer_state,
                 "f32 (f64 beside f64 parameters), or with --dtype bf16 also bf16: 6 instead of 12 bytes for "
                 "each parameter [f32]")
      ->type_name("TYPE")
      ->group(kGroupModel);
  app.add_option(
         "--recompute", flags.recompute,
         "Run blocks again in backward, to keep less: full (what the bare flag means), selective (what is "
         "cheap), none [none]")
      ->expected(0, 1)
      ->type_name("MODE")
      ->group(kGroupModel);

  app.add_option(
         "--numerics", flags.numerics,
         "fast; or invariant: the same bits with any ranks, mesh, schedule, micro-batch and threads, in "
         "more time [fast]")
      ->type_name("MODE")
      ->group(kGroupModel);

  const char* const kGroupBatch = "Batch and learning rate";
  app.add_option("--batch", flags.batch, "Sequences per step over all ranks [8]")->group(kGroupBatch);
  app.add_option("--micro-batch", flags.micro_batch,
                 "Sequences per rank and pass [the most up to 8 that divide a dp rank's; in a pipeline those "
                 "that leave 2 pp passes]")
      ->group(kGroupBatch);
  app.add_option("--seq", flags.seq, "Tokens per sequence [the model's context]")->group(kGroupBatch);
  app.add_option("--lr", flags.lr, "Largest learning rate [0.001]")->group(kGroupBatch);
  app.add_option("--min-lr", flags.min_lr, "Where the cosine ends [a tenth of --lr]")->group(kGroupBatch);
  app.add_option("--warmup", flags.warmup, "Steps to the largest learning rate [a twentieth of --steps]")
      ->group(kGroupBatch);
  app.add_option("--weight-decay", flags.weight_decay, "Of matrices and embeddings [0.1]")
      ->group(kGroupBatch);
  app.add_option("--clip", flags.clip, "Largest global gradient norm; 0: no clipping [1]")
      ->group(kGroupBatch);

  const char* const kGroupRanks = "Ranks";
  app.add_option("--ranks", flags.ranks, "Ranks as threads of this process; not under mpiexec [1]")
      ->group(kGroupRanks);
  app.add_option("--threads", flags.threads, "Threads of each rank [cores / ranks]")->group(kGroupRanks);
  app.add_option(
         "--mesh", flags.mesh,
         "What ranks are for: pp (stages of layers), dp (samples), cp (sequences cut), tp (layers cut), as "
         "pp=2,dp=2 [all dp]")
      ->type_name("AXES")
      ->group(kGroupRanks);
  app.add_option("--zero", flags.zero,
                 "What data ranks share out: 1 optimizer state, 2 gradients too, 3 parameters too [0]")
      ->check(CLI::Range(0, 3))
      ->group(kGroupRanks);

  app.add_option("--schedule", flags.schedule,
                 fmt::format("Of a pipeline: {} [1f1b]", fmt::join(tessera::dist::schedule_names(), ", ")))
      ->type_name("NAME")
      ->group(kGroupRanks);
  app.add_option("--chunks", flags.chunks, "Of a pipeline: stages on each rank; 0: as its schedule has [0]")
      ->check(examples::at_least(0))
      ->group(kGroupRanks);
  app.add_option("--partition", flags.partition,
                 "What the stages of a pipeline have equally much of: parameters, uniform (blocks), time (as "
                 "measured at the start) [parameters]")
      ->type_name("NAME")
      ->group(kGroupRanks);

  const char* const kGroupReports = "Reports";
  app.add_flag("--print-schedule", flags.print_schedule, "At the start, a picture of the pipeline's schedule")
      ->group(kGroupReports);
  app.add_flag(
         "--dry-run", flags.dry_run,
         "Trains nothing: prints what a step of --world ranks holds, sends and computes, by the program "
         "itself on tensors without data")
      ->group(kGroupReports);
  app.add_option("--world", flags.world, "Ranks of the dry run [--ranks, or as many as --mesh has]")
      ->check(examples::at_least(1))
      ->group(kGroupReports);
  app.add_option(
         "--rates", flags.rates,
         "Tell how long a step of the dry run takes at the rates in this file (docs/dry_run.md) [none]")
      ->type_name("FILE")
      ->group(kGroupReports);
  app.add_option("--eval-every", flags.eval_every, "Steps between validation losses; 0: only at the end [0]")
      ->group(kGroupReports);
  app.add_option("--eval-tokens", flags.eval_tokens, "Validation tokens looked at each time; 0: all [65536]")
      ->group(kGroupReports);
  app.add_option("--log", flags.log, "JSON lines, one object a step [none]")
      ->type_name("FILE")
      ->group(kGroupReports);
  app.add_flag("--comm-summary", flags.comm_summary, "At the end, a table of what rank 0 sent in a step")
      ->group(kGroupReports);
  app.add_option("--csv", flags.csv, "The same as a table, with a header [none]")
      ->type_name("FILE")
      ->group(kGroupReports);
  app.add_option("--progress", flags.progress,
                 "auto (a bar on a terminal, lines elsewhere), bar, lines or none (results alone) [auto]")
      ->type_name("TEXT")
      ->group(kGroupReports);
}

template <class T, class U>
void set_if(T& target, const std::optional<U>& value) {
  if (value) target = *value;
}

// The flags' names are keys, too; DeepSpeed's keys are read by dist::Config.
Flags read_own_keys(ConfigFile& file) {
  Flags flags;
  flags.from_file = true;
  flags.data = file.text("data");
  flags.out = file.text("out");
  flags.model = file.text("model");
  flags.from_hf = file.text("from_hf");
  flags.dtype = file.text("dtype");
  flags.log = file.text("log");
  flags.csv = file.text("csv");
  flags.progress = file.text("progress");
  flags.steps = file.integer("steps");
  flags.batch = file.integer("batch");
  flags.micro_batch = file.integer("micro_batch");
  flags.seq = file.integer("seq");
  flags.warmup = file.integer("warmup");
  flags.eval_every = file.integer("eval_every");
  flags.eval_tokens = file.integer("eval_tokens");
  flags.save_every = file.integer("save_every");
  flags.keep = file.integer("keep");
  flags.lr = file.number("lr");
  flags.min_lr = file.number("min_lr");
  flags.weight_decay = file.number("weight_decay");
  flags.clip = file.number("clip");
  flags.dropout = file.number("dropout");
  flags.resume = file.boolean("resume").value_or(false);
  flags.print_schedule = file.boolean("print_schedule").value_or(false);
  flags.comm_summary = file.boolean("comm_summary").value_or(false);
  const auto read_count = [&file](const char* key, auto& target, std::int64_t most) {
    const auto value = file.integer(key);
    if (!value) return;
    if (*value < 0 || *value > most) {
      throw ConfigError(
          fmt::format("config: '{}' must be a number from 0 to {}, but it is {}", key, most, *value));
    }
    target = static_cast<typename std::decay_t<decltype(target)>::value_type>(*value);
  };
  read_count("seed", flags.seed, std::numeric_limits<std::int64_t>::max());
  read_count("ranks", flags.ranks, std::numeric_limits<int>::max());
  read_count("threads", flags.threads, std::numeric_limits<int>::max());
  return flags;
}

// Flags that are no keys: their settings have a place among DeepSpeed's keys, or are about one call.
void explain_flags(ConfigFile& file) {
  file.explain("zero", R"(write "zero_optimization": {"stage": 1}, which is what --zero 1 sets)");
  file.explain("stage", R"(write "zero_optimization": {"stage": 1}, or "pipeline": {"stages": 2})");
  file.explain("schedule",
               R"(write "pipeline": {"schedule": "1f1b"}; of learning rates: "scheduler": {"type": ...})");
  file.explain("chunks", R"(write "pipeline": {"chunks": 2})");
  file.explain("partition", R"(write "pipeline": {"partition": "uniform"})");
  file.explain("optimizer_state", R"(write "bf16": {"enabled": true, "bf16_optimizer_states": true})");
  file.explain("no_memory_check", R"(write "memory_check": false)");
  for (const char* flag : {"config", "dry_run", "world", "rates"})
    file.explain(flag, "give it on the command line");
}

// The member of `names` that `word` names.
template <class T>
T choose(const char* setting, const std::map<std::string, T>& names, const std::string& word) {
  const auto found = names.find(word);
  if (found != names.end()) return found->second;
  std::vector<std::string> known;
  for (const auto& [name, value] : names) known.push_back(name);
  throw ConfigError(fmt::format("{}: expected {}, got '{}'", setting, fmt::join(known, ", "), word));
}

void apply_flags(const Flags& flags, TrainOptions& options) {
  for (const auto& [setting, value] :
       {std::pair{"batch", flags.batch}, std::pair{"micro_batch", flags.micro_batch},
        std::pair{"seq", flags.seq}}) {
    if (value && *value < 1)
      throw ConfigError(fmt::format("{}: expected at least 1, got {}", setting, *value));
  }
  set_if(options.data, flags.data);
  set_if(options.out, flags.out);
  set_if(options.model, flags.model);
  set_if(options.from_hf, flags.from_hf);
  set_if(options.steps, flags.steps);
  set_if(options.seq, flags.seq);
  set_if(options.warmup, flags.warmup);
  set_if(options.min_lr, flags.min_lr);
  set_if(options.eval_every, flags.eval_every);
  set_if(options.eval_tokens, flags.eval_tokens);
  set_if(options.save_every, flags.save_every);
  set_if(options.keep, flags.keep);
  set_if(options.dropout, flags.dropout);
  set_if(options.log, flags.log);
  set_if(options.csv, flags.csv);
  set_if(options.job.seed, flags.seed);
  // A config file has the flags' names as keys.
  const bool from_file = flags.from_file;
  if (flags.batch) {
    options.config.batch.global = *flags.batch;
    options.config.batch.global_from = from_file ? "\"batch\"" : "--batch";
  }
  if (flags.micro_batch) {
    options.config.batch.micro_batch = *flags.micro_batch;
    options.config.batch.micro_batch_from = from_file ? "\"micro_batch\"" : "--micro-batch";
  }
  set_if(options.config.optimizer.lr, flags.lr);
  set_if(options.config.optimizer.weight_decay, flags.weight_decay);
  set_if(options.config.gradient_clipping, flags.clip);
  if (flags.ranks) options.job.ranks = flags.ranks;
  if (flags.threads) options.job.threads = flags.threads;
  using Mode = Config::Recompute::Mode;
  static const std::map<std::string, Mode> kModes{
      {"none", Mode::kNone}, {"selective", Mode::kSelective}, {"full", Mode::kFull}};
  if (flags.recompute) {
    options.config.recompute.mode =
        flags.recompute->empty() ? Mode::kFull : choose("recompute", kModes, *flags.recompute);
  }
  static const std::map<std::string, Config::Numerics> kNumerics{{"fast", Config::Numerics::kFast},
                                                                 {"invariant", Config::Numerics::kInvariant}};
  if (flags.numerics) options.config.numerics = choose("numerics", kNumerics, *flags.numerics);
  if (flags.mesh) {
    std::set<tessera::MeshAxis> named;
    options.config.mesh = tessera::dist::MeshShape::parse(*flags.mesh, &named);
    options.config.dp_given = named.contains(tessera::MeshAxis::kDp);
  }
  set_if(options.config.zero.stage, flags.zero);
  set_if(options.config.pipeline.schedule, flags.schedule);
  set_if(options.config.pipeline.partition, flags.partition);
  set_if(options.config.pipeline.chunks, flags.chunks);
  options.print_schedule = options.print_schedule || flags.print_schedule;
  options.dry_run = options.dry_run || flags.dry_run;
  if (flags.world) options.world = flags.world;
  if (flags.no_memory_check) options.config.memory_check = false;
  options.rates = flags.rates;
  options.comm_summary = options.comm_summary || flags.comm_summary;
  options.resume = options.resume || flags.resume;
  if (flags.dtype) options.config.dtype = choose("dtype", kDTypes, *flags.dtype);
  static const std::map<std::string, tessera::DType> kStates{{"f32", tessera::kF32},
                                                             {"bf16", tessera::kBF16}};
  if (flags.optimizer_state)
    options.config.optimizer.state_dtype = choose("optimizer_state", kStates, *flags.optimizer_state);
  if (flags.progress) options.progress = choose("progress", kProgress, *flags.progress);
}

// Two keys for one setting: neither can win without a word.
void refuse_doubled_keys(ConfigFile& file, const Flags& own) {
  const auto refuse = [](const char* key, const char* other) {
    throw ConfigError(fmt::format("config: '{}' and '{}' say the same; leave one of them out", key, other));
  };
  if (own.batch && file.json("train_batch_size")) refuse("batch", "train_batch_size");
  if (own.micro_batch && file.json("train_micro_batch_size_per_gpu"))
    refuse("micro_batch", "train_micro_batch_size_per_gpu");
  if (own.clip && file.json("gradient_clipping")) refuse("clip", "gradient_clipping");
  if (own.dtype && file.section("bf16").boolean("enabled").value_or(false)) refuse("dtype", "bf16.enabled");
  if (own.dtype && file.section("fp16").boolean("enabled").value_or(false)) refuse("dtype", "fp16.enabled");
  ConfigFile params = file.section("optimizer").section("params");
  if (own.lr && params.json("lr")) refuse("lr", "optimizer.params.lr");
  if (own.weight_decay && params.json("weight_decay"))
    refuse("weight_decay", "optimizer.params.weight_decay");
}

// A scheduler has learning rates of its own.
void refuse_rates_beside_scheduler(const TrainOptions& options, const Flags& flags) {
  if (options.config.scheduler.type.empty()) return;
  // WarmupCosineLR rises to the optimizer's rate, and so does WarmupLR unless it is told another.
  const auto& [type, params, warmup_type] = options.config.scheduler;
  const bool takes_lr = type == "WarmupCosineLR" || (type == "WarmupLR" && !params.contains("warmup_max_lr"));
  const char* given = flags.lr && !takes_lr ? "lr"
                      : flags.min_lr        ? "min_lr"
                      : flags.warmup        ? "warmup"
                                            : nullptr;
  if (given == nullptr) return;
  throw ConfigError(fmt::format(
      "{}: the scheduler {} of the config file says which learning rates there are; leave {} out, or the "
      "scheduler",
      given, options.config.scheduler.type, given));
}

void require(bool condition, const char* setting, const char* expected, double value) {
  if (!condition) throw ConfigError(fmt::format("{}: expected {}, got {}", setting, expected, value));
}

void check(const TrainOptions& options) {
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  require(options.steps >= 1, "steps", "at least 1", number(options.steps));
  require(options.warmup >= -1, "warmup", "a number of steps from 0", number(options.warmup));
  require(options.eval_every >= 0, "eval_every", "a number of steps from 0", number(options.eval_every));
  require(options.eval_tokens >= 0, "eval_tokens", "a number of tokens from 0", number(options.eval_tokens));
  require(options.save_every >= 0, "save_every", "a number of steps from 0", number(options.save_every));
  require(options.keep >= 1, "keep", "at least 1", number(options.keep));
  require(options.config.optimizer.lr >= 0, "lr", "a number from 0", options.config.optimizer.lr);
  require(options.config.optimizer.weight_decay >= 0, "weight_decay", "a number from 0",
          options.config.optimizer.weight_decay);
  require(options.config.gradient_clipping >= 0, "clip", "a number from 0", options.config.gradient_clipping);
  require(!options.min_lr || *options.min_lr >= 0, "min_lr", "a number from 0", options.min_lr.value_or(0));
  require(!options.dropout || (*options.dropout >= 0 && *options.dropout < 1), "dropout",
          "a number in [0, 1)", options.dropout.value_or(0));
}

}  // namespace

tessera::optim::Schedule TrainOptions::schedule() const {
  const double lr = config.optimizer.lr;
  if (!config.scheduler.type.empty()) {
    return tessera::optim::make_schedule(config.scheduler.type, config.scheduler.params,
                                         config.scheduler.warmup_type, lr);
  }
  const std::int64_t warmup_steps = warmup >= 0 ? warmup : steps / 20;
  return tessera::optim::CosineWithWarmup{.max_lr = lr,
                                          .min_lr = min_lr.value_or(0.1 * lr),
                                          .warmup_steps = std::min(warmup_steps, steps - 1),
                                          .total_steps = steps};
}

tessera::dist::Settings TrainOptions::settings() const {
  tessera::dist::Settings settings = settings_of(config);
  // Who said --lr looks for it.
  for (const auto& [key, flag] :
       std::map<std::string, const char*>{{"optimizer.params.lr", "--lr"},
                                          {"optimizer.params.weight_decay", "--weight-decay"},
                                          {"train_batch_size", "--batch"},
                                          {"train_micro_batch_size_per_gpu", "--micro-batch"},
                                          {"gradient_clipping", "--clip"},
                                          {"zero_optimization.stage", "--zero"},
                                          {"bf16.bf16_optimizer_states", "--optimizer-state"},
                                          {"pipeline.schedule", "--schedule"},
                                          {"pipeline.chunks", "--chunks"},
                                          {"pipeline.partition", "--partition"}}) {
    auto entry = settings.extract(key);
    entry.key() = fmt::format("{} ({})", key, flag);
    settings.insert(std::move(entry));
  }
  const auto add = [&settings](const char* flag, const auto& value) {
    settings[flag] = fmt::format("{}", value);
  };
  add("--model", model);
  add("--steps", steps);
  add("--seed", job.seed);
  add("--seq", seq == 0 ? "the context" : std::to_string(seq));
  add("--warmup", warmup < 0 ? "left out" : std::to_string(warmup));
  add("--min-lr", min_lr ? fmt::format("{}", *min_lr) : "left out");
  add("--out", out.string());
  add("--resume", resume);
  add("--eval-every", eval_every);
  add("--eval-tokens", eval_tokens);
  add("--save-every", save_every);
  add("--keep", keep);
  return settings;
}

TrainOptions parse_train_options(int argc, char** argv) {
  CLI::App app(
      "Trains a GPT-2 or a Llama-style decoder on a folder that gpt2_prepare made.\n"
      "Alone, with --ranks N (threads), or under mpiexec -n N: the losses are the same.",
      "gpt2_train");
  Flags flags;
  TrainOptions options;
  add_options(app, flags);
  examples::parse_or_exit(app, argc, argv);

  bool model_given = flags.model.has_value();
  if (!flags.config.empty()) {
    ConfigFile file = ConfigFile::load(flags.config);
    options.config = Config::read(file);
    const Flags from_file = read_own_keys(file);
    model_given = model_given || from_file.model.has_value();
    refuse_doubled_keys(file, from_file);
    refuse_rates_beside_scheduler(options, from_file);
    explain_flags(file);
    file.refuse_unknown();
    apply_flags(from_file, options);
  }
  apply_flags(flags, options);
  refuse_rates_beside_scheduler(options, flags);
  check(options);
  const bool about_pipelines = flags.schedule || flags.chunks || flags.partition || options.print_schedule;
  if (about_pipelines && options.config.mesh[tessera::MeshAxis::kPp] == 1) {
    throw ConfigError(
        "--schedule, --chunks, --partition, --print-schedule: they are about pipelines, and the mesh has no "
        "pp; --mesh pp=2 makes one of two stages");
  }
  if (options.world && !options.dry_run)
    throw ConfigError("--world: says how many ranks a --dry-run has; a run has --ranks, or mpiexec's");
  if (!options.rates.empty() && !options.dry_run)
    throw ConfigError("--rates: foretells the time of a --dry-run; a run shows its own");
  if (!options.from_hf.empty()) {
    if (model_given) {
      throw ConfigError(fmt::format("--model: --from-hf {} says what the model is; leave one of them out",
                                    options.from_hf.string()));
    }
    options.model = tessera::dist::HuggingFaceReader(options.from_hf).description();
    // The dropout of its config.json gives way to --dropout.
    if (options.dropout) options.model.erase(options.model.rfind(",dropout="));
  }
  if (options.dropout) options.model += fmt::format(",dropout={}", *options.dropout);
  return options;
}

}  // namespace gpt2

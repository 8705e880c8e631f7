#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "dist/config.h"
#include "dist/job.h"
#include "dist/same_settings.h"
#include "optim/schedule.h"

namespace gpt2 {

/// How progress is shown.
enum class Progress : std::uint8_t {
  kAuto,   ///< a bar on a terminal, lines elsewhere
  kBar,    ///< one line that is written over
  kLines,  ///< a line every steps_per_print steps
  kNone,   ///< of results, validation losses say, there are lines all the same
};

/// All settings of gpt2_train: what the command line and the config file say, and the defaults.
struct TrainOptions {
  tessera::dist::JobOptions job;  ///< ranks, threads, seed
  tessera::dist::Config config;   ///< batch, optimizer, scheduler, clipping, dtype: DeepSpeed's keys

  std::filesystem::path data = "data";
  std::filesystem::path out = "run";
  std::string model = "gpt2";
  std::filesystem::path from_hf;  ///< a model of Hugging Face to begin with; empty: random weights
  std::optional<double> dropout;
  std::int64_t steps = 1000;
  std::int64_t seq = 0;              ///< tokens per sequence; 0: the model's context
  std::int64_t warmup = -1;          ///< steps; −1: a twentieth of all
  std::optional<double> min_lr;      ///< where the cosine ends; default: a tenth of the learning rate
  std::int64_t eval_every = 0;       ///< 0: only at the end
  std::int64_t eval_tokens = 65536;  ///< of the validation file that are looked at each time; 0: all
  std::int64_t save_every = 0;       ///< 0: only at the end
  std::int64_t keep = 2;             ///< checkpoints
  bool resume = false;
  bool dry_run = false;         ///< print what a step holds and sends on `world` ranks, and train nothing
  std::optional<int> world;     ///< of the dry run; default: as many as the mesh has
  std::filesystem::path rates;  ///< of kernels and links, for the dry run's step time; empty: none is told
  bool print_schedule = false;  ///< draw the pipeline's schedule at the start
  bool comm_summary = false;    ///< at the end, a table of what a step sent
  std::filesystem::path log;    ///< JSON lines; empty: none
  std::filesystem::path csv;
  Progress progress = Progress::kAuto;

  /// The scheduler of the config file, or else a cosine with warm-up.
  [[nodiscard]] tessera::optim::Schedule schedule() const;

  /// What every rank of a run must have alike, by config key and flag. Not the paths of --data and --log,
  /// which belong to a host, nor threads and progress, which change no number.
  [[nodiscard]] tessera::dist::Settings settings() const;
};

/// Reads the command line and the config file that it names; flags win.
///
/// Prints the help and exits for --help.
/// Errors    ConfigError for an unknown flag or key, and for a value out of range.
[[nodiscard]] TrainOptions parse_train_options(int argc, char** argv);

}  // namespace gpt2

// Pretrains a language model on a folder that gpt2_prepare made: alone, with --ranks N, or under mpiexec.
//
//     $ mpiexec -n 2 gpt2_train --data run --out run --model layers=4,heads=4,width=128,context=256
//     model       family=gpt2,layers=4,heads=4,width=128,context=256,vocab=2048,dropout=0: 1,088,256 ...
//     batch       16 sequences of 256 tokens = 8 a pass x 1 pass x 2 ranks (mpi), 1 thread each
//     ...
//
//     $ gpt2_train --dry-run --world 1024 --mesh pp=8,dp=16,tp=8 --model layers=96,heads=96,width=12288
//
// Ctrl-C ends the run after the step under way, with a checkpoint, and with status 0; --resume goes on from
// there.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <exception>
#include <filesystem>
#include <optional>

#include "data/atomic_file.h"
#include "data/prepare.h"
#include "data/tokenizer.h"
#include "dist/parameter_hash.h"
#include "dist/pipeline.h"
#include "dist/pipeline_drawing.h"
#include "dist/pipeline_simulation.h"
#include "dist/zero.h"
#include "examples/command_line.h"
#include "examples/gpt2/dry_run.h"
#include "examples/gpt2/evaluation.h"
#include "examples/gpt2/saved_model.h"
#include "examples/gpt2/shared_files.h"
#include "examples/gpt2/trainer.h"
#include "kernels/error.h"
#include "kernels/readable.h"
#include "optim/loss_scale.h"
#include "optim/optimizer.h"

namespace gpt2 {
namespace {

using namespace tessera;
namespace fs = std::filesystem;

// Everything of the folder that gpt2_prepare made, checked to belong together.
struct Corpus {
  data::Tokenizer tokenizer;
  data::TokenFile train;
  data::TokenFile validation;
};

Corpus open_corpus(const fs::path& folder) {
  if (!fs::is_directory(folder)) {
    throw DataError(
        fmt::format("--data {}: there is no such folder; make it with gpt2_prepare --text FILE --out {}",
                    folder.string(), folder.string()));
  }
  Corpus corpus{.tokenizer = data::Tokenizer::load(folder),
                .train = data::TokenFile::open(folder / data::kTrainFile),
                .validation = data::TokenFile::open(folder / data::kValidationFile)};
  for (const data::TokenFile* file : {&corpus.train, &corpus.validation})
    file->require_vocabulary(corpus.tokenizer.vocab_size(), corpus.tokenizer.vocabulary_hash());
  return corpus;
}

// Refuses a folder that a run would spoil. One rank looks, before anything is computed or written.
void check_output_folder(const TrainOptions& options, const data::Tokenizer& tokenizer) {
  if (!options.resume && dist::has_checkpoint(options.out)) {
    throw ConfigError(
        fmt::format("--out {}: holds a checkpoint already; add --resume to go on from it, or choose "
                    "another folder",
                    options.out.string()));
  }
  // Tokens or a model that were made with the tokenizer that is there would lose their meaning with another.
  if (fs::exists(options.out / data::kTokenizerFile) &&
      data::Tokenizer::load(options.out).vocabulary_hash() != tokenizer.vocabulary_hash()) {
    throw DataError(fmt::format(
        "--out {}: its tokenizer has another vocabulary than that of --data {}; choose another folder",
        options.out.string(), options.data.string()));
  }
}

// The weights of a model of Hugging Face know tokens by the numbers that its own tokenizer gives them.
void check_tokenizer_of_weights(const TrainOptions& options, const data::Tokenizer& tokenizer) {
  if (options.from_hf.empty() || !data::Tokenizer::is_in(options.from_hf)) return;
  if (data::Tokenizer::load(options.from_hf).vocabulary().tokens == tokenizer.vocabulary().tokens) return;
  throw DataError(fmt::format(
      "--data {}: was made with another tokenizer than that of --from-hf {}, so its ids mean other tokens to "
      "those weights; make it again with gpt2_prepare --tokenizer {}",
      options.data.string(), options.from_hf.string(), options.from_hf.string()));
}

// Puts the tokenizer where the model will be. A run must not end because it can't be saved: so it shows now.
void claim_output_folder(const TrainOptions& options, const data::Tokenizer& tokenizer) {
  data::create_folder(options.out);
  if (!fs::exists(options.out / data::kTokenizerFile)) {
    tokenizer.save(options.out);
  } else {
    const data::AtomicFile attempt(options.out / data::kTokenizerFile);  // goes away again
  }
}

/// Held by the root of a run while it writes into its folder; gone with the process, however that ends.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder)
      : file_(::open((folder / ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
    if (file_ < 0 || ::flock(file_, LOCK_EX | LOCK_NB) == 0) return;  // not every file system has locks
    const bool is_held = errno == EWOULDBLOCK;
    ::close(file_);
    file_ = -1;
    if (is_held)
      throw FileError(
          fmt::format("--out {}: another run writes into it; choose another folder", folder.string()));
  }
  ~FolderLock() {
    if (file_ >= 0) ::close(file_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_;
};

void print_overview(const TrainOptions& options, dist::Job& job, Trainer& trainer, const Corpus& corpus) {
  const dist::BatchSizes& batch = trainer.batch();
  const auto plural = [](std::int64_t n, const char* one, const char* many) {
    return fmt::format("{} {}", with_commas(n), n == 1 ? one : many);
  };
  fmt::print("model       {}: {} parameters in {}\n", trainer.model().description(),
             with_commas(trainer.num_parameters()), tessera::name(options.config.dtype));
  fmt::print("batch       {} of {} = {} a pass x {} x {} ({}), {} each\n",
             plural(batch.global, "sequence", "sequences"), plural(trainer.seq(), "token", "tokens"),
             batch.micro_batch, plural(batch.accumulation, "pass", "passes"),
             plural(trainer.mesh().size(MeshAxis::kDp), "rank", "ranks"), job.backend(),
             plural(job.threads_per_rank(), "thread", "threads"));
  const double epochs = static_cast<double>(options.steps * batch.global * trainer.seq()) /
                        static_cast<double>(corpus.train.size());
  fmt::print("data        {}: {} tokens to learn from, {} held out; {} steps are {:.2f} times through\n",
             options.data.string(), with_commas(corpus.train.size()), with_commas(corpus.validation.size()),
             with_commas(options.steps), epochs);
  std::int64_t updated =
      0;  // under ZeRO and tp a rank has a piece of each tensor, and the optimizer sees no more
  for (const auto& [name, piece] : trainer.engine().zero().pieces()) updated += piece.num_elements();
  fmt::print("optimizer   rank 0 of {} updates {} of {} elements: {}\n", job.size(), with_commas(updated),
             with_commas(trainer.num_parameters()), trainer.engine().optimizer().describe());
  if (trainer.mesh().shape().num_ranks() > trainer.mesh().size(MeshAxis::kDp) || job.world().num_hosts() > 1)
    fmt::print("{}", trainer.mesh().picture());
  if (dist::Pipeline* pipeline = trainer.engine().pipeline(); pipeline != nullptr) {
    fmt::print("pipeline    {}\n", dist::to_string(pipeline->stages()));
    const dist::Schedule& schedule = pipeline->schedule(pipeline->micro_batches_for(batch.accumulation));
    if (options.print_schedule)
      fmt::print("{}", dist::draw(schedule, dist::simulate(
                                                schedule, dist::StageCost{}.per_chunk(schedule.num_chunks))));
  }
  std::fflush(stdout);
}

std::string describe(const Evaluation& result, std::int64_t step) {
  return fmt::format("step {}: validation loss {:.4f}, {:.3f} bits per byte ({} tokens)", step, result.loss(),
                     result.bits_per_byte(), with_commas(result.tokens));
}

void train(const TrainOptions& options, dist::Job& job) {
  const Corpus corpus = open_corpus(options.data);
  dist::require_same_settings(options.settings(), job.world());
  require_same_everywhere(job, fmt::format("--data {}", options.data.string()),
                          {corpus.train.info().content_hash, corpus.validation.info().content_hash,
                           corpus.tokenizer.vocabulary_hash()});
  std::optional<FolderLock> lock;
  job.on_root([&] {
    if (fs::is_directory(options.out)) lock.emplace(options.out);
    check_output_folder(options, corpus.tokenizer);
    check_tokenizer_of_weights(options, corpus.tokenizer);
  });
  Trainer trainer(options, job, corpus.train);
  job.on_root([&] {
    claim_output_folder(options, corpus.tokenizer);
    if (!lock) lock.emplace(options.out);
  });
  data::Metadata resumed;
  if (options.resume) {
    if (const auto checkpoint = open_shared_checkpoint(job, options.out)) {
      trainer.restore(*checkpoint);
      resumed = checkpoint->metadata();
    }
  }
  if (trainer.steps_done() == 0 && !options.from_hf.empty()) {
    trainer.load_hugging_face();
    job.log(fmt::format("weights     of {}", options.from_hf.string()));
  }
  const std::int64_t first_step = trainer.steps_done();

  if (job.is_root()) print_overview(options, job, trainer, corpus);
  if (options.resume) {
    job.log(first_step == 0 ? fmt::format("--resume: no checkpoint in {}, starting from the beginning",
                                          options.out.string())
                            : fmt::format("resuming after step {}", with_commas(first_step)));
  }
  const std::string batch = std::to_string(trainer.batch().global), seq = std::to_string(trainer.seq());
  if (first_step > 0 && (resumed[kBatchKey] != batch || resumed[kSeqKey] != seq)) {
    job.log(fmt::format(
        "note: until here a step had {} sequences of {} tokens, from now on {} of {}; the order of the "
        "samples is another than in one run",
        resumed[kBatchKey], resumed[kSeqKey], batch, seq));
  }
  std::optional<StepLog> log, csv;
  job.on_root([&] {
    log.emplace(options.log, StepLog::Format::kJsonLines, first_step);
    csv.emplace(options.csv, StepLog::Format::kCsv, first_step);
  });
  std::optional<ProgressDisplay> progress;  // root's
  if (job.is_root())
    progress.emplace(options.progress, first_step, options.steps, options.config.steps_per_print);

  const auto validate = [&] {
    const WindowLosses losses = [&](auto inputs, auto targets, std::int64_t rows) {
      return trainer.engine().evaluate(inputs, targets, rows);
    };
    const Evaluation result =
        evaluate(losses, trainer.model().context(), corpus.validation, trainer.mesh().group(MeshAxis::kDp),
                 {.seq = trainer.seq(), .max_tokens = options.eval_tokens, .stop = [&] {
                    return job.agree_to_stop();
                  }});
    if (progress && !result.stopped) progress->note(describe(result, trainer.steps_done()));
  };
  std::int64_t saved_step = first_step == 0 ? -1 : first_step;
  const auto save = [&] {
    dist::save_checkpoint(options.out, trainer.checkpoint(), job.world(), static_cast<int>(options.keep));
    saved_step = trainer.steps_done();
  };

  bool stopped = false;
  std::exception_ptr log_failure;  // root's
  std::int64_t num_skipped = 0;
  while (trainer.steps_done() < options.steps && !stopped) {
    const StepReport report = trainer.step();
    stopped = report.stop;
    num_skipped += report.skipped ? 1 : 0;
    if (progress && report.skipped) {
      progress->note(fmt::format("step {}: gradients overflowed, nothing was updated; loss scale now {}",
                                 report.step, trainer.engine().loss_scaler().scale()));
    }
    if (job.is_root() && !log_failure) {
      progress->step(report);
      try {
        log->write(report);
        csv->write(report);
      } catch (const FileError&) {
        // The disk of the log is full; what was learned so far need not be lost with it.
        log_failure = std::current_exception();
        trainer.request_stop();
      }
    }
    const bool last = report.step == options.steps;
    if (!stopped && !last && options.eval_every > 0 && report.step % options.eval_every == 0) validate();
    if (!stopped && !last && options.save_every > 0 && report.step % options.save_every == 0) save();
  }
  if (progress) progress->end();
  if (saved_step != trainer.steps_done()) save();
  job.on_root([&] {
    if (log_failure) std::rethrow_exception(log_failure);
  });
  const std::int64_t num_steps = trainer.steps_done() - first_step;
  if (num_steps > 0 && num_skipped == num_steps) {
    throw NonFiniteError(fmt::format(
        "gradients overflowed in every one of {} steps, and nothing was learned: lower fp16.loss_scale, "
        "or leave it at 0 (dynamic) with a smaller fp16.initial_scale_power",
        with_commas(num_steps)));
  }
  if (!stopped) validate();
  if (options.config.numerics == dist::Config::Numerics::kInvariant) {
    // Of what the loss was, in every layout: the same run has the same.
    const std::uint64_t hash = dist::parameter_hash(trainer.engine());
    job.log(fmt::format("parameters have the hash {:016x}", hash));
  }
  if (options.comm_summary) job.log(trainer.engine().comm_summary().table());
  job.log(stopped ? fmt::format("stopped after step {}; saved in {}, go on with --resume",
                                with_commas(trainer.steps_done()), options.out.string())
                  : fmt::format("saved in {}", options.out.string()));
}

}  // namespace
}  // namespace gpt2

int main(int argc, char** argv) {
  constexpr const char* kHint =
      "see: gpt2_train --help (flags), docs/config.md (keys), docs/examples.md (what goes wrong, and what is "
      "said)";
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond `ulimit -f` is then a failed write, with a message
  std::optional<gpt2::TrainOptions> options;
  const int status = examples::run_program(
      "gpt2_train", [&] { options = gpt2::parse_train_options(argc, argv); }, kHint);
  if (status != 0) return status;
  if (options->dry_run)
    return examples::run_program(
        "gpt2_train", [&] { gpt2::print_dry_run(*options); }, kHint);
  options->job.hint = kHint;
  return tessera::dist::run(options->job, [&](tessera::dist::Job& job) { gpt2::train(*options, job); });
}

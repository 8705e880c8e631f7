// Measures a model that gpt2_train saved on the validation tokens of a folder that gpt2_prepare made.
//
//     $ gpt2_evaluate --model run --data run --stride 128

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "data/prepare.h"
#include "dist/job.h"
#include "examples/command_line.h"
#include "examples/gpt2/evaluation.h"
#include "examples/gpt2/saved_model.h"
#include "examples/gpt2/train_log.h"
#include "kernels/error.h"
#include "kernels/readable.h"

namespace {

using namespace tessera;

struct Options {
  std::string model = "run";
  std::string data = "data";
  std::string split = "validation";
  gpt2::EvaluationOptions evaluation;
  dist::JobOptions job;
};

void evaluate(const Options& options, dist::Job& job) {
  const std::string_view name = options.split == "train" ? data::kTrainFile : data::kValidationFile;
  const auto tokens = data::TokenFile::open(std::filesystem::path(options.data) / name);
  gpt2::SavedModel saved = gpt2::load_saved_model(options.model);
  tokens.require_vocabulary(saved.tokenizer.vocab_size(), saved.tokenizer.vocabulary_hash());

  gpt2::EvaluationOptions evaluation = options.evaluation;
  if (evaluation.seq == 0) evaluation.seq = saved.seq;
  const gpt2::Evaluation result = gpt2::evaluate(*saved.model, tokens, job.world(), evaluation);
  if (!std::isfinite(result.loss())) {
    throw NonFiniteError(fmt::format(
        "{}: the loss is {}: the model gives values that are not finite; its weights are damaged, "
        "or hold such values themselves",
        options.model, result.loss()));
  }
  job.log(fmt::format("tokens         {}{}", tessera::with_commas(result.tokens),
                      result.whole_file ? "" : " (a part)"));
  job.log(fmt::format("loss           {:.6f}", result.loss()));
  job.log(fmt::format("perplexity     {:.4f}", result.perplexity()));
  job.log(
      fmt::format("bits per byte  {:.4f}{}", result.bits_per_byte(), result.whole_file ? "" : " (estimate)"));
  if (job.is_root()) examples::require_printed();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures a model that gpt2_train saved: loss, perplexity, bits per byte.", "gpt2_evaluate");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Options options;
  app.add_option("--model", options.model,
                 "Folder that gpt2_train saved to (--out), or a model of Hugging Face with its tokenizer")
      ->capture_default_str();
  app.add_option("--data", options.data, "Folder that gpt2_prepare made")->capture_default_str();
  app.add_option("--split", options.split, "validation or train")
      ->capture_default_str()
      ->check(CLI::IsMember({"validation", "train"}));
  app.add_option("--seq", options.evaluation.seq, "Tokens per window [those of the training]")
      ->check(examples::at_least(1));
  app.add_option(
         "--stride", options.evaluation.stride,
         "Tokens from window to window; below --seq, windows overlap and each token sees more text before it "
         "[--seq]")
      ->check(examples::at_least(1));
  app.add_option("--batch", options.evaluation.batch, "Windows per pass")
      ->capture_default_str()
      ->check(examples::at_least(1));
  app.add_option("--tokens", options.evaluation.max_tokens, "Look at so many tokens only; 0: all")
      ->capture_default_str()
      ->check(examples::at_least(0));
  app.add_option("--ranks", options.job.ranks, "Ranks as threads of this process; not under mpiexec [1]");
  app.add_option("--threads", options.job.threads, "Threads of each rank [cores / ranks]");
  examples::parse_or_exit(app, argc, argv);
  options.job.handle_signals = false;  // nothing to save: Ctrl-C ends it at once
  return dist::run(options.job, [&](dist::Job& job) { evaluate(options, job); });
}

// Makes a text ready for training: learns a byte-level BPE tokenizer from it, holds out its last tenth, and
// stores both parts as token ids.
//
//     $ bible -f Gen1:1-Rev22:21 > kjv.txt
//     $ gpt2_prepare --text kjv.txt --vocab 2048 --out run
//     text        kjv.txt
//     tokenizer   learning 2,048 tokens from the training part
//     output      run: tokenizer.json, train.tokens, validation.tokens
//
//                          bytes         tokens   bytes per token
//     training         3,963,971      1,156,635              3.43
//     validation         440,441        140,276              3.14
//
//     vocabulary  2,048 tokens, hash cb8fab83151c4e9d
//     done in 0.2 s
//
// Or takes what nanoGPT or llm.c made of a text already:
//
//     $ gpt2_prepare --train-tokens train.bin --validation-tokens val.bin --tokenizer gpt2 --out run

#include "data/prepare.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>

#include "data/atomic_file.h"
#include "data/token_file.h"
#include "data/token_import.h"
#include "examples/command_line.h"
#include "kernels/error.h"
#include "kernels/readable.h"

namespace {

using tessera::with_commas;
using tessera::data::PrepareOptions;
using tessera::data::PrepareResult;
using tessera::data::PrepareStage;
using tessera::data::Tokenizer;

volatile std::sig_atomic_t interrupted = 0;

const char* name(PrepareStage stage) {
  switch (stage) {
    case PrepareStage::kReadSample:
      return "reading the text";
    case PrepareStage::kTrainTokenizer:
      return "learning tokens";
    case PrepareStage::kEncodeTraining:
      return "encoding training";
    case PrepareStage::kEncodeValidation:
      return "encoding validation";
  }
  return "";
}

// One line that is written over, on a terminal only; and the place where Ctrl-C is noticed.
void report_progress(PrepareStage stage, std::int64_t done, std::int64_t total) {
  static const bool is_terminal = ::isatty(STDERR_FILENO) == 1;
  if (interrupted) throw tessera::Error("interrupted; nothing was written");
  if (!is_terminal || total <= 0) return;
  fmt::print(stderr, "\r{:<20} {:3} %", name(stage), 100 * done / total);
  if (done == total) fmt::print(stderr, "\r{:30}\r", "");
}

// Asked before anything is written. A model that gpt2_train saved here knows its tokens by their numbers:
// with another tokenizer beside it, it could not be used any more.
void keep_tokenizer_of_saved_model(const std::filesystem::path& out, const Tokenizer& tokenizer) {
  if (!std::filesystem::exists(out / "latest") ||
      !std::filesystem::exists(out / tessera::data::kTokenizerFile))
    return;
  if (Tokenizer::load(out).vocabulary_hash() == tokenizer.vocabulary_hash()) return;
  throw tessera::DataError(
      fmt::format("--out {}: holds a model that was trained with another vocabulary; choose another folder, "
                  "or keep its vocabulary "
                  "with --tokenizer {}",
                  out.string(), out.string()));
}

void print_row(const char* part, std::int64_t bytes, std::int64_t tokens) {
  fmt::print("{:<11} {:>14} {:>14} {:>17.2f}\n", part, with_commas(bytes), with_commas(tokens),
             static_cast<double>(bytes) / static_cast<double>(tokens));
}

void run(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  fmt::print("text        {}\n", options.text.string());
  if (options.tokenizer) {
    fmt::print("tokenizer   the given one, {} tokens\n", with_commas(options.tokenizer->vocab_size()));
  } else {
    fmt::print("tokenizer   learning {} tokens from the training part\n", with_commas(options.vocab_size));
  }
  fmt::print("output      {}: tokenizer.json, train.tokens, validation.tokens\n", options.out.string());
  std::fflush(stdout);

  const PrepareResult result = tessera::data::prepare(options);

  fmt::print("\n{:<11} {:>14} {:>14} {:>17}\n", "", "bytes", "tokens", "bytes per token");
  print_row("training", result.train_bytes, result.train_tokens);
  print_row("validation", result.validation_bytes, result.validation_tokens);
  fmt::print("\nvocabulary  {} tokens, hash {:016x}\n", with_commas(result.vocab_size),
             result.vocabulary_hash);
  if (!options.tokenizer && result.vocab_size < options.vocab_size) {
    fmt::print("            fewer than the {} asked for: no other pair of tokens occurs twice in this text\n",
               with_commas(options.vocab_size));
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  fmt::print("done in {:.1f} s\n", seconds.count());
}

/// Token files of other programs, in the place of a text.
struct ForeignFiles {
  std::vector<std::string> train, validation;
};

void import_files(const ForeignFiles& files, const PrepareOptions& options) {
  const Tokenizer& tokenizer = *options.tokenizer;
  options.check_tokenizer(tokenizer);
  tessera::data::create_folder(options.out);
  const auto writer = [&](std::string_view name) {
    return tessera::data::TokenFileWriter(options.out / name, tokenizer.vocab_size(),
                                          tokenizer.vocabulary_hash());
  };
  const auto import_part = [&](const std::vector<std::string>& from, PrepareStage stage,
                               tessera::data::TokenFileWriter& to) {
    const std::vector<std::filesystem::path> paths(from.begin(), from.end());
    const std::int64_t bytes = tessera::data::import_tokens(
        paths, tokenizer, to,
        [stage](std::int64_t done, std::int64_t total) { report_progress(stage, done, total); });
    to.complete(bytes);
    return bytes;
  };
  auto train = writer(tessera::data::kTrainFile), validation = writer(tessera::data::kValidationFile);
  const std::int64_t train_bytes = import_part(files.train, PrepareStage::kEncodeTraining, train);
  const std::int64_t validation_bytes =
      import_part(files.validation, PrepareStage::kEncodeValidation, validation);
  tokenizer.save(options.out);  // all three appear together, or none
  train.publish();
  validation.publish();
  fmt::print("output      {}: tokenizer.json, train.tokens, validation.tokens\n", options.out.string());
  fmt::print("\n{:<11} {:>14} {:>14} {:>17}\n", "", "bytes", "tokens", "bytes per token");
  print_row("training", train_bytes, train.num_tokens());
  print_row("validation", validation_bytes, validation.num_tokens());
  fmt::print("\nvocabulary  {} tokens, hash {:016x}\n", with_commas(tokenizer.vocab_size()),
             tokenizer.vocabulary_hash());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Makes a text ready for training: writes tokenizer.json, train.tokens and validation.tokens.",
               "gpt2_prepare");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  PrepareOptions options;
  std::string text, out, tokenizer;
  ForeignFiles foreign;
  auto* text_option = app.add_option(
      "--text", text, "The text, any bytes; UTF-8 gives the best tokens [this or --train-tokens]");
  app.add_option("--out", out, "Folder for the three files; made if it is not there")->required();
  auto* vocab = app.add_option("--vocab", options.vocab_size, "Size of the vocabulary to learn, at least 256")
                    ->capture_default_str();
  auto* tokenizer_option =
      app.add_option("--tokenizer", tokenizer,
                     "Folder (or file) of a tokenizer to use instead of learning one: ours, Hugging Face's "
                     "tokenizer.json, or GPT-2's encoder.json and vocab.bpe [none]")
          ->excludes(vocab);
  auto* train_tokens =
      app.add_option(
             "--train-tokens", foreign.train,
             "Instead of --text: token files of nanoGPT (train.bin) or llm.c, made with --tokenizer [none]")
          ->type_name("FILE ...")
          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
          ->excludes(text_option)
          ->needs(tokenizer_option);
  auto* validation_tokens =
      app.add_option("--validation-tokens", foreign.validation, "And those to validate with [none]")
          ->type_name("FILE ...")
          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
          ->needs(train_tokens);
  train_tokens->needs(validation_tokens);
  app.add_option("--validation", options.validation_fraction,
                 "Part of the bytes that is held out, at the text's end")
      ->capture_default_str();
  examples::parse_or_exit(app, argc, argv);

  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupted = 1; });
  std::signal(SIGXFSZ, SIG_IGN);  // a file beyond `ulimit -f` is then a failed write, with a message
  return examples::run_program("gpt2_prepare", [&] {
    if (text_option->empty() && train_tokens->empty())
      throw tessera::ConfigError("--text is required, or --train-tokens");
    options.text = text;
    options.out = out;
    if (!tokenizer.empty()) options.tokenizer = Tokenizer::load(tokenizer);
    options.progress = report_progress;
    options.check_tokenizer = [&](const Tokenizer& used) {
      keep_tokenizer_of_saved_model(options.out, used);
    };
    if (train_tokens->empty()) return run(options);
    import_files(foreign, options);
  });
}

// Continues a prompt with a model that gpt2_train saved.
//
//     $ gpt2_generate --model run --prompt "In the beginning" --tokens 60 --temperature 0.8 --top-k 50

#include "nn/generate.h"

#include <cstdio>
#include <vector>

#include "data/token_stream.h"
#include "dist/job.h"
#include "examples/command_line.h"
#include "examples/gpt2/saved_model.h"
#include "kernels/error.h"

namespace {

using namespace tessera;

struct Options {
  std::string model = "run";
  std::string prompt;
  nn::GenerateOptions generation{.tokens = 100, .temperature = 0.8, .top_k = 50};
  dist::JobOptions job;
};

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw FileError("cannot write to standard output");
}

void generate(const Options& options, dist::Job& job) {
  if (!job.is_root()) return;  // one text, under mpiexec too
  if (options.prompt.empty())
    throw ConfigError("--prompt: is empty; give at least one character to begin with");
  gpt2::SavedModel saved = gpt2::load_saved_model(options.model);
  std::vector<std::int64_t> prompt;
  for (const std::int32_t id : saved.tokenizer.encode(options.prompt)) prompt.push_back(id);

  // Text is shown as it comes.
  data::StreamDecoder decoder(saved.tokenizer);
  nn::GenerateOptions generation = options.generation;
  generation.on_token = [&](std::int64_t token) {
    print(decoder.push(static_cast<std::int32_t>(token)));
    return !job.stop_requested();
  };
  print(options.prompt);
  static_cast<void>(nn::generate(*saved.model, prompt, generation));
  print(decoder.finish() + "\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Continues a prompt with a model that gpt2_train saved.", "gpt2_generate");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Options options;
  app.add_option("--model", options.model, "Folder that gpt2_train saved to (--out)")->capture_default_str();
  app.add_option("--prompt", options.prompt, "The text to go on from")->required();
  app.add_option("--tokens", options.generation.tokens, "New tokens")
      ->capture_default_str()
      ->check(examples::at_least(0));
  app.add_option("--temperature", options.generation.temperature,
                 "Below 1 safer, above 1 wilder; 0: always the likeliest token")
      ->capture_default_str()
      ->check(examples::at_least(0));
  app.add_option("--top-k", options.generation.top_k, "Choose among the k likeliest tokens; 0: all")
      ->capture_default_str()
      ->check(examples::at_least(0));
  app.add_option("--seed", options.generation.seed, "Another seed, another text")
      ->capture_default_str()
      ->check(examples::at_least(0));
  app.add_option("--threads", options.job.threads, "Threads [cores]");
  examples::parse_or_exit(app, argc, argv);
  return dist::run(options.job, [&](dist::Job& job) { generate(options, job); });
}

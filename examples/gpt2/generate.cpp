// Continues a prompt with a model that gpt2_train saved, or that transformers did.
//
//     $ gpt2_generate --model run --prompt "In the beginning" --tokens 60 --temperature 0.8 --top-k 50
//     $ gpt2_generate --model gpt2 --prompts questions.txt --top-p 0.9 --repetition-penalty 1.2

#include "nn/generate.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
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
  std::string prompts;  // a file
  std::vector<std::string> stop;
  bool added_tokens = false;
  nn::GenerateOptions generation{.tokens = 100, .temperature = 0.8, .top_k = 50};
  dist::JobOptions job;
};

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw FileError("cannot write to standard output");
}

// What the tokenizer puts before a text ("<|begin_of_text|>") belongs to a prompt; what it puts behind one
// does not.
std::vector<std::int64_t> encode_prompt(const data::Tokenizer& tokenizer, const Options& options,
                                        const std::string& text) {
  const auto& before = tokenizer.vocabulary().before_text;
  std::vector<std::int64_t> ids(before.begin(), before.end());
  for (const std::int32_t id : tokenizer.encode(text, {.added_tokens = options.added_tokens}))
    ids.push_back(id);
  return ids;
}

// The end of a text, and what --stop names.
std::vector<std::int64_t> stop_tokens(const data::Tokenizer& tokenizer, const Options& options) {
  std::vector<std::int64_t> ids;
  if (tokenizer.end_of_text()) ids.push_back(*tokenizer.end_of_text());
  for (const std::string& text : options.stop) {
    const auto found = tokenizer.encode(text, {.added_tokens = true});
    if (found.size() != 1) {
      throw ConfigError("--stop: '" + text + "' is not one token of this vocabulary, but " +
                        std::to_string(found.size()) + "; name each token by a --stop of its own");
    }
    ids.push_back(found[0]);
  }
  return ids;
}

// One text for each line of a file, all of them together.
void generate_for_lines(gpt2::SavedModel& saved, const Options& options,
                        const nn::GenerateOptions& generation) {
  std::ifstream file(options.prompts);
  if (!file || std::filesystem::is_directory(options.prompts))
    throw DataError("--prompts " + options.prompts + ": is no file that can be read");
  std::vector<std::string> lines;
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::string line; std::getline(file, line);) {
    if (line.ends_with('\r')) line.pop_back();  // Windows ends lines with it; no model goes on well from it
    if (line.empty()) continue;
    lines.push_back(line);
    prompts.push_back(encode_prompt(saved.tokenizer, options, line));
  }
  if (prompts.empty()) throw DataError("--prompts " + options.prompts + ": holds no line");
  const auto texts = nn::generate_batch(*saved.model, prompts, generation);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const std::vector<std::int32_t> ids(texts[i].begin(), texts[i].end());
    print(lines[i] + saved.tokenizer.decode(ids) + "\n");
  }
}

void generate(const Options& options, dist::Job& job) {
  if (!job.is_root()) return;  // one text, under mpiexec too
  if (options.prompt.empty() && options.prompts.empty())
    throw ConfigError("--prompt: is empty; give at least one character to begin with");
  gpt2::SavedModel saved = gpt2::load_saved_model(options.model);
  nn::GenerateOptions generation = options.generation;
  generation.stop_tokens = stop_tokens(saved.tokenizer, options);
  generation.vocab = saved.tokenizer.vocab_size();
  if (!options.prompts.empty()) return generate_for_lines(saved, options, generation);
  const std::vector<std::int64_t> prompt = encode_prompt(saved.tokenizer, options, options.prompt);

  // Text is shown as it comes.
  data::StreamDecoder decoder(saved.tokenizer);
  generation.on_token = [&](std::int64_t token) {
    print(decoder.push(static_cast<std::int32_t>(token)));
    return !job.stop_requested();
  };
  print(options.prompt);
  try {
    static_cast<void>(nn::generate(*saved.model, prompt, generation));
  } catch (const NonFiniteError&) {
    print("\n");  // the message gets a line of its own
    throw;
  }
  print(decoder.finish() + "\n");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Continues a prompt with a model that gpt2_train saved, or that transformers did.",
               "gpt2_generate");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  Options options;
  app.add_option("--model", options.model,
                 "Folder that gpt2_train saved to (--out), or a model of Hugging Face with its tokenizer")
      ->capture_default_str();
  auto* prompt = app.add_option("--prompt", options.prompt, "The text to go on from [this or --prompts]");
  auto* prompts =
      app.add_option("--prompts", options.prompts,
                     "Instead: a file, of which each line is a text to go on from; texts are shown "
                     "when all are done [none]")
          ->type_name("FILE")
          ->excludes(prompt);
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
  app.add_option("--top-p", options.generation.top_p,
                 "Choose among the likeliest tokens that have this probability together; 1: all")
      ->capture_default_str()
      ->check(examples::above_zero(1.0));
  app.add_option("--repetition-penalty", options.generation.repetition_penalty,
                 "Above 1: what was there comes less often again; 1: no penalty")
      ->capture_default_str()
      ->check(examples::above_zero());
  app.add_option(
         "--stop", options.stop,
         "A token that ends the text, beside the tokenizer's end of text; may be given several times [none]")
      ->type_name("TOKEN")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  app.add_flag("--added-tokens", options.added_tokens,
               "What spells an added token in the prompt, such as <|im_start|>, is that token");
  app.add_option("--seed", options.generation.seed, "Another seed, another text")
      ->capture_default_str()
      ->check(examples::at_least(0));
  app.add_option("--threads", options.job.threads, "Threads [cores]");
  examples::parse_or_exit(app, argc, argv);
  if (prompt->empty() && prompts->empty()) {
    return examples::run_program("gpt2_generate",
                                 [] { throw ConfigError("--prompt is required, or --prompts"); });
  }
  // One text stops where it is. Of many nothing has been shown yet: Ctrl-C ends them at once.
  options.job.handle_signals = prompts->empty();
  return dist::run(options.job, [&](dist::Job& job) { generate(options, job); });
}

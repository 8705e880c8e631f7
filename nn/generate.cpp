#include "nn/generate.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "kernels/random_key.h"
#include "nn/evaluation_scope.h"
#include "tensor/create.h"

namespace tessera::nn {
namespace {

using Ids = std::vector<std::int64_t>;

double draw(std::uint64_t seed, std::int64_t index) {
  const kernels::RandomKey key{seed, kernels::stream_id("generate"), 0};
  return kernels::random_word(key, static_cast<std::uint64_t>(index)) / 4294967296.0;
}

// Where the window begins again: the later half of the context.
void slide(Ids& window, std::int64_t context) {
  window.erase(window.begin(), window.end() - std::max<std::ptrdiff_t>(context / 2, 1));
}

/// One text: what is known of it, and what the model has been shown.
struct Row {
  Ids prompt;  // its end, where it is longer than the context
  Ids window;  // what the model sees; as long in all rows
  Ids all;     // of a penalty: prompt and new tokens
  Ids result;
  std::uint64_t seed = 0;
  bool is_done = false;
};

std::vector<Row> make_rows(std::span<const Ids> prompts, const GenerateOptions& options,
                           std::int64_t context) {
  std::vector<Row> rows;
  for (const Ids& prompt : prompts) {
    if (prompt.empty()) throw ConfigError("generate: the prompt is empty; give at least one token");
    Row row;
    row.prompt = row.all = prompt;
    row.seed = options.seed + rows.size();
    if (static_cast<std::int64_t>(prompt.size()) > context) slide(row.prompt, context);
    row.is_done = options.tokens < 1;
    rows.push_back(std::move(row));
  }
  const auto shortest =
      std::ranges::min_element(rows, {}, [](const Row& row) { return row.prompt.size(); })->prompt.size();
  for (Row& row : rows)
    row.window.assign(row.prompt.begin(), row.prompt.begin() + static_cast<std::ptrdiff_t>(shortest));
  return rows;
}

// Columns `first`, ... of all windows: [B, T].
Tensor as_batch(const std::vector<Row>& rows, std::int64_t first) {
  Ids ids;
  for (const Row& row : rows) ids.insert(ids.end(), row.window.begin() + first, row.window.end());
  const auto count = static_cast<std::int64_t>(rows.size());
  return from_vector(ids, Shape{count, static_cast<std::int64_t>(ids.size()) / count});
}

// The next token of a row that is past its prompt, and whether its text ends with it.
std::int64_t draw_token(Row& row, std::span<const double> logits, const GenerateOptions& options) {
  const Sampling sampling{options.temperature, options.top_k, options.top_p, options.repetition_penalty};
  const std::int64_t token =
      sample_token(logits, sampling, draw(row.seed, static_cast<std::int64_t>(row.result.size())), row.all);
  if (std::ranges::find(options.stop_tokens, token) != options.stop_tokens.end()) {
    row.is_done = true;
    return token;
  }
  row.result.push_back(token);
  row.all.push_back(token);
  const bool has_enough = static_cast<std::int64_t>(row.result.size()) >= options.tokens;
  row.is_done = (options.on_token && !options.on_token(token)) || has_enough;
  return token;
}

std::vector<Ids> generate_rows(LanguageModel& model, std::span<const Ids> prompts,
                               const GenerateOptions& options) {
  if (prompts.empty()) return {};
  const NoGrad no_grad;
  const EvaluationScope evaluation(model);
  const std::int64_t context = model.context();
  std::vector<Row> rows = make_rows(prompts, options, context);
  KvCache cache = model.make_cache(options.use_cache ? 0 : 1);
  KvCache* const past = options.use_cache ? &cache : nullptr;

  while (!std::ranges::all_of(rows, &Row::is_done)) {
    // With a cache: what the model has not read yet.
    const Tensor ids = as_batch(rows, options.use_cache ? cache.length() : 0);
    const Tensor logits = options.next_logits ? options.next_logits(ids, past) : model.next_logits(ids, past);
    const std::vector<double> values = logits.to_vector<double>();
    const std::size_t vocab = values.size() / rows.size();
    const std::size_t drawn =
        options.vocab > 0 ? std::min(vocab, static_cast<std::size_t>(options.vocab)) : vocab;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      Row& row = rows[r];
      const bool in_prompt = row.window.size() < row.prompt.size();  // it has not slid: no prompt is longer
      const std::int64_t next = in_prompt ? row.prompt[row.window.size()]
                                : row.is_done
                                    ? row.window.back()  // nobody looks at it
                                    : draw_token(row, std::span(values).subspan(r * vocab, drawn), options);
      row.window.push_back(next);
    }
    if (static_cast<std::int64_t>(rows[0].window.size()) > context) {
      for (Row& row : rows) {
        slide(row.window, context);
        row.prompt.clear();  // all of it has been read
      }
      cache.clear();
    }
  }
  std::vector<Ids> results;
  for (Row& row : rows) results.push_back(std::move(row.result));
  return results;
}

}  // namespace

Ids generate(LanguageModel& model, std::span<const std::int64_t> prompt, const GenerateOptions& options) {
  const std::vector<Ids> prompts{Ids(prompt.begin(), prompt.end())};
  return generate_rows(model, prompts, options)[0];
}

std::vector<Ids> generate_batch(LanguageModel& model, std::span<const Ids> prompts,
                                const GenerateOptions& options) {
  if (options.on_token)
    throw ConfigError("generate_batch: on_token is for one text; use generate, or leave it out");
  return generate_rows(model, prompts, options);
}

}  // namespace tessera::nn

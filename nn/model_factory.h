#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nn/language_model.h"

namespace tessera::nn {

/// Builds a language model from one line of text, as programs take it from their users:
///
///   gpt2, gpt2-medium, gpt2-large, gpt2-xl, llama-15m, llama-1b, llama-7b, llama-8b
///   gpt2,context=256,dropout=0.1                        a known size with changes
///   layers=4,heads=4,width=128,context=256              a GPT-2 of any size
///   family=llama,layers=4,heads=4,kv_heads=2,width=128  a Llama-style decoder; hidden is about 8/3·width
///
/// Keys: family, layers, heads, width, context, vocab, dropout; for llama also kv_heads, hidden, rotary_base,
/// epsilon, tied (0 or 1), and of RotaryScaling rotary_factor, rotary_low, rotary_high, rotary_context.
/// Without a name layers, heads and width are needed; context defaults to 1024. The vocabulary is `vocab`,
/// that of the data, unless the text asks for a larger one. What LanguageModel::description() gives builds
/// the same model.
///
/// The model lies on the rank's default device: build it on meta and materialise it later where that is
/// wanted.
/// Errors    ConfigError, a user's mistake: names the nearest known model or key, the value that is no
///           number, the sizes that do not fit together.
[[nodiscard]] std::unique_ptr<LanguageModel> make_language_model(std::string_view text, std::int64_t vocab);

/// The names it knows.
[[nodiscard]] const std::vector<std::string>& language_model_names();

}  // namespace tessera::nn

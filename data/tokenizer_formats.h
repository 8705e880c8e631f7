#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "data/tokenizer.h"

// Private to data/.
namespace tessera::data::detail {

/// GPT-2's rules as they were published, in the syntax of Python's `regex`.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// True for the content of a tokenizer.json of Hugging Face's tokenizers.
[[nodiscard]] bool is_hugging_face_tokenizer(const nlohmann::json& root);

/// Of such a file.
/// Errors    DataError with the reason, without the file's name.
[[nodiscard]] Vocabulary hugging_face_vocabulary(const nlohmann::json& root);

/// Of GPT-2's own files: `encoder` is an object of tokens and ids, `merges` a text with a line for each merge
/// behind a first line with the version.
/// Errors    DataError with the reason, without the file's name.
[[nodiscard]] Vocabulary gpt2_vocabulary(const nlohmann::json& encoder, std::string_view merges);

}  // namespace tessera::data::detail

#pragma once

#include <filesystem>

#include "data/tokenizer.h"

namespace tessera::data {

/// Writes `folder`/tokenizer.json so that Hugging Face's tokenizers load it (Tokenizer.from_file), and a
/// tokenizer_config.json with which AutoTokenizer.from_pretrained(folder) does. Ids are the same for every
/// text in UTF-8. Tokenizer::load reads the file back: an equal tokenizer, but for the hash of one with the
/// rules of pre_tokenizer.h, which stand in the file as a regular expression.
///
/// Errors    As of Tokenizer::save.
void save_hugging_face_tokenizer(const std::filesystem::path& folder, const Tokenizer& tokenizer);

}  // namespace tessera::data

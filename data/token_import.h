#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/token_file.h"
#include "data/tokenizer.h"

namespace tessera::data {

/// A file of token ids that another program wrote:
///
///     nanoGPT       the ids alone, u16
///     llm.c         256 numbers of 32 bits: magic, version, number of ids, zeros; then the ids
///                   20240520, version 1: u16 (GPT-2);  20240801, version 7: u32 (Llama 3)
///
/// All are little-endian. Which it is, the file's beginning tells: read as nanoGPT's, the magic numbers would
/// be ids above 55,000 in front, which GPT-2's vocabulary does not have.
///
/// Errors    DataError with path and reason: missing, empty, not a whole number of ids, cut short or too long
///           for what its header says, another version.
class ForeignTokenFile {
 public:
  explicit ForeignTokenFile(std::filesystem::path path);
  ForeignTokenFile(ForeignTokenFile&&) noexcept;
  ForeignTokenFile& operator=(ForeignTokenFile&&) noexcept;
  ~ForeignTokenFile();

  [[nodiscard]] std::int64_t size() const noexcept { return num_tokens_; }
  [[nodiscard]] std::int64_t bytes_per_token() const noexcept { return bytes_per_token_; }
  /// "nanoGPT" or "llm.c".
  [[nodiscard]] const std::string& format() const noexcept { return format_; }
  /// Copies tokens offset ... offset + out.size() - 1 into `out`.
  /// Errors    IndexError if they are not all in the file; DataError if one is not below `vocab_size`, with
  ///           its position.
  void read(std::int64_t offset, std::int64_t vocab_size, std::span<std::int32_t> out) const;

 private:
  std::filesystem::path path_;
  std::string format_;
  std::int64_t num_tokens_ = 0, bytes_per_token_ = 2, header_bytes_ = 0;
  struct File;
  std::unique_ptr<File> file_;
};

/// Appends the tokens of `from`, one file behind the other, to a token file of ours. They must have been made
/// with `tokenizer`, which is all that says what they mean: every id is checked to be in its vocabulary.
///
/// `progress` is told ids done and in all; it may throw to stop.
/// Returns   The bytes of the text that the tokens stand for (added tokens stand for none), as
///           TokenFileWriter::finish takes them.
/// Errors    As of ForeignTokenFile and TokenFileWriter; DataError if there are fewer than two tokens, and
///           if every second id of a nanoGPT file is 0, which is how wider numbers read.
/// Example   data::TokenFileWriter writer("run/train.tokens", tokenizer.vocab_size(),
///                                        tokenizer.vocabulary_hash());
///           writer.finish(data::import_tokens({"train.bin"}, tokenizer, writer));
[[nodiscard]] std::int64_t import_tokens(
    const std::vector<std::filesystem::path>& from, const Tokenizer& tokenizer, TokenFileWriter& to,
    const std::function<void(std::int64_t done, std::int64_t total)>& progress = {});

}  // namespace tessera::data

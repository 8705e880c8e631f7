#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace tessera::data {

/// Encodes a text that comes in parts of any size, into exactly the ids that Tokenizer::encode gives for the
/// whole.
///
/// Remembers the ids of the words that it met, so most of a long text costs one look-up per word. Holds back
/// at most one pre-token and its look-ahead (64 KiB) between calls. Borrows the tokenizer, which must outlive
/// it. For one thread at a time; several encoders may share a tokenizer.
///
/// Example
///     data::StreamEncoder encoder(tokenizer);
///     std::vector<std::int32_t> ids;
///     while (read(part)) encoder.push(part, ids);      // appends to ids
///     encoder.finish(ids);                             // what was held back; ready for the next text
class StreamEncoder {
 public:
  explicit StreamEncoder(const Tokenizer& tokenizer);
  explicit StreamEncoder(Tokenizer&& tokenizer) = delete;
  StreamEncoder(StreamEncoder&&) noexcept;
  StreamEncoder& operator=(StreamEncoder&&) noexcept;
  ~StreamEncoder();

  /// Takes the next part of the text; appends to `ids` what is certain whatever comes next.
  void push(std::string_view part, std::vector<std::int32_t>& ids);

  /// Ends the text: appends the ids of what was held back. The next push starts a new text, with warm memory.
  void finish(std::vector<std::int32_t>& ids);

 private:
  struct Memory;
  /// Encodes whole pre-tokens from the start of `text`; returns the bytes done.
  std::size_t encode_pre_tokens(std::string_view text, bool is_end, std::vector<std::int32_t>& ids);

  const Tokenizer* tokenizer_;
  std::string held_back_;
  std::unique_ptr<Memory> memory_;
};

/// Turns ids into text one at a time, as a model generates them, and never shows half a character.
///
/// Bytes that may still become a UTF-8 character (up to 3) are held back until they do, or until it is clear
/// that they can't; then they are given as they are. The parts joined are Tokenizer::decode of all ids.
/// Borrows the tokenizer. For one thread at a time.
///
/// Example
///     data::StreamDecoder decoder(tokenizer);
///     for (std::int32_t id : generated) std::cout << decoder.push(id) << std::flush;
///     std::cout << decoder.finish();
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  explicit StreamDecoder(Tokenizer&& tokenizer) = delete;

  /// Adds one token; returns the text that is now certain, often empty.
  /// Errors    IndexError, if the id is unknown; the decoder stays as it was.
  [[nodiscard]] std::string push(std::int32_t id);

  /// Ends the text: returns what was held back.
  [[nodiscard]] std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string held_back_;
};

}  // namespace tessera::data

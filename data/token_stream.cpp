#include "data/token_stream.h"

#include <cstdint>
#include <optional>

#include "data/merge_table.h"
#include "data/pre_tokenizer.h"
#include "data/split_pattern.h"
#include "data/utf8.h"
#include "data/word_table.h"

namespace tessera::data {

// What an encoder remembers: the ids of words that it met. Bounded: texts full of ever new words (numbers,
// hashes) start it afresh now and then.
struct StreamEncoder::Memory {
  static constexpr std::size_t kLongestWord = 64;
  static constexpr std::uint32_t kMostWords = 1u << 18;

  detail::WordTable words;
  std::vector<std::size_t> ends;  // word k's ids end at ends[k] in `ids`
  std::vector<std::int32_t> ids;
  detail::MergeScratch scratch;
  std::optional<detail::PatternCutter> cutter;  // of a tokenizer with a pattern of its own
};

StreamEncoder::StreamEncoder(const Tokenizer& tokenizer)
    : tokenizer_(&tokenizer), memory_(std::make_unique<Memory>()) {
  if (tokenizer.pattern_ != nullptr) memory_->cutter.emplace(*tokenizer.pattern_);
}
StreamEncoder::StreamEncoder(StreamEncoder&&) noexcept = default;
StreamEncoder& StreamEncoder::operator=(StreamEncoder&&) noexcept = default;
StreamEncoder::~StreamEncoder() = default;

void StreamEncoder::push(std::string_view part, std::vector<std::int32_t>& ids) {
  if (held_back_.empty()) {
    held_back_ = part.substr(encode_pre_tokens(part, /*is_end=*/false, ids));
  } else {
    held_back_.append(part);
    held_back_.erase(0, encode_pre_tokens(held_back_, /*is_end=*/false, ids));
  }
}

void StreamEncoder::finish(std::vector<std::int32_t>& ids) {
  encode_pre_tokens(held_back_, /*is_end=*/true, ids);
  held_back_.clear();
}

std::size_t StreamEncoder::encode_pre_tokens(std::string_view text, bool is_end,
                                             std::vector<std::int32_t>& ids) {
  Memory& memory = *memory_;
  if (memory.cutter) memory.cutter->start(text, is_end);
  // Length of the piece that `rest` begins with; 0 if what comes next may make it longer.
  const auto next_length = [&](std::string_view rest) -> std::size_t {
    if (memory.cutter) return memory.cutter->next();
    const std::size_t length = pre_token_length(rest);
    return !is_end && rest.size() - length < kPreTokenLookAhead ? 0 : length;
  };
  std::size_t done = 0;
  while (done < text.size()) {
    const std::string_view rest = text.substr(done);
    const std::string_view word = rest.substr(0, next_length(rest));
    if (word.empty()) break;
    done += word.size();

    if (word.size() > Memory::kLongestWord) {
      tokenizer_->encode_pre_token(word, memory.scratch, ids);
      continue;
    }
    if (memory.words.size() == Memory::kMostWords) {
      memory.words.clear();
      memory.ends.clear();
      memory.ids.clear();
    }
    const std::uint32_t number = memory.words.find_or_insert(word);
    if (number == memory.ends.size()) {
      tokenizer_->encode_pre_token(word, memory.scratch, memory.ids);
      memory.ends.push_back(memory.ids.size());
    }
    const std::size_t begin = number == 0 ? 0 : memory.ends[number - 1];
    ids.insert(ids.end(), memory.ids.begin() + static_cast<std::ptrdiff_t>(begin),
               memory.ids.begin() + static_cast<std::ptrdiff_t>(memory.ends[number]));
  }
  return done;
}

namespace {

// Bytes at the end of `text` that are the beginning of a UTF-8 sequence and may still be completed.
std::size_t unfinished_bytes(std::string_view text) {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto first = static_cast<unsigned char>(text[text.size() - back]);
    if (detail::utf8_continuation(first)) continue;
    const bool incomplete = detail::utf8_sequence_length(first) > static_cast<int>(back);
    const bool possible = back == 1 || detail::utf8_second_byte(
                                           first, static_cast<unsigned char>(text[text.size() - back + 1]));
    return incomplete && possible ? back : 0;
  }
  return 0;
}

}  // namespace

std::string StreamDecoder::push(std::int32_t id) {
  held_back_ += tokenizer_->token(id);
  std::string rest = held_back_.substr(held_back_.size() - unfinished_bytes(held_back_));
  held_back_.resize(held_back_.size() - rest.size());
  held_back_.swap(rest);
  return rest;
}

std::string StreamDecoder::finish() {
  std::string rest;
  rest.swap(held_back_);
  return rest;
}

}  // namespace tessera::data

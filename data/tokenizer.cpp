#include "data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "data/hash.h"
#include "data/merge_table.h"
#include "data/token_stream.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

// Changes with the rules of pre_tokenizer.cpp, because with them the ids change.
constexpr std::string_view kPreTokenizer = "gpt2-blocks-1";

std::uint64_t hash_of(const Vocabulary& vocabulary) {
  detail::Fnv1a hash;
  hash.add(kPreTokenizer);
  hash.add(static_cast<std::uint64_t>(vocabulary.tokens.size()));
  for (const std::string& token : vocabulary.tokens) hash.add(std::string_view(token));
  for (const auto& [left, right] : vocabulary.merges) hash.add(detail::pair_key(left, right));
  hash.add(static_cast<std::uint64_t>(vocabulary.end_of_text.value_or(-1)));
  return hash.value();
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  const auto& tokens = vocabulary_.tokens;
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  if (num_tokens > (1 << 24)) {
    throw DataError(fmt::format("vocabulary: at most {} tokens, got {}", 1 << 24, num_tokens));
  }
  const auto end_of_text = vocabulary_.end_of_text;
  if (end_of_text && (*end_of_text < 0 || *end_of_text >= num_tokens)) {
    throw DataError(
        fmt::format("vocabulary: {} has id {}, but ids end at {}", kEndOfText, *end_of_text, num_tokens - 1));
  }

  std::unordered_map<std::string_view, std::int32_t> ids;
  ids.reserve(tokens.size());
  for (std::int32_t id = 0; id < num_tokens; ++id) {
    if (id == end_of_text) continue;
    const std::string& token = tokens[static_cast<std::size_t>(id)];
    if (token.empty()) throw DataError(fmt::format("vocabulary: token {} is empty", id));
    const auto [other, is_new] = ids.emplace(token, id);
    if (!is_new)
      throw DataError(fmt::format("vocabulary: tokens {} and {} are the same bytes", other->second, id));
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const auto found = ids.find(std::string_view(&c, 1));
    if (found == ids.end()) throw DataError(fmt::format("vocabulary: byte 0x{:02X} has no token", byte));
    byte_ids_[byte] = found->second;
  }

  merge_table_ = std::make_unique<detail::MergeTable>(vocabulary_.merges.size());
  std::int32_t rank = 0;
  std::string merged;
  for (const auto& [left, right] : vocabulary_.merges) {
    for (const std::int32_t id : {left, right}) {
      if (id < 0 || id >= num_tokens || id == end_of_text) {
        throw DataError(fmt::format("vocabulary: merge {} joins token {}, which can't be joined", rank, id));
      }
    }
    merged = tokens[static_cast<std::size_t>(left)] + tokens[static_cast<std::size_t>(right)];
    const auto found = ids.find(merged);
    if (found == ids.end()) {
      throw DataError(
          fmt::format("vocabulary: merge {} of tokens {} and {} makes no token", rank, left, right));
    }
    if (!merge_table_->insert(left, right, rank, found->second)) {
      throw DataError(
          fmt::format("vocabulary: merge {} of tokens {} and {} is there twice", rank, left, right));
    }
    ++rank;
  }
  vocabulary_hash_ = hash_of(vocabulary_);
}

Tokenizer::Tokenizer(const Tokenizer& other)
    : vocabulary_(other.vocabulary_),
      merge_table_(other.merge_table_ ? std::make_unique<detail::MergeTable>(*other.merge_table_) : nullptr),
      vocabulary_hash_(other.vocabulary_hash_) {
  std::copy(std::begin(other.byte_ids_), std::end(other.byte_ids_), std::begin(byte_ids_));
}

Tokenizer::Tokenizer(Tokenizer&& other) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer& Tokenizer::operator=(Tokenizer other) noexcept {
  std::swap(vocabulary_, other.vocabulary_);
  std::swap(byte_ids_, other.byte_ids_);
  std::swap(merge_table_, other.merge_table_);
  std::swap(vocabulary_hash_, other.vocabulary_hash_);
  return *this;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  StreamEncoder encoder(*this);
  encoder.push(text, ids);
  encoder.finish(ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      throw IndexError(
          fmt::format("decode: token id {} at position {} is outside the vocabulary of {} (0 to {})", ids[i],
                      i, vocab_size(), vocab_size() - 1));
    }
    text += vocabulary_.tokens[static_cast<std::size_t>(ids[i])];
  }
  return text;
}

std::string_view Tokenizer::token(std::int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw IndexError(fmt::format("token: id {} is outside the vocabulary of {} (0 to {})", id, vocab_size(),
                                 vocab_size() - 1));
  }
  return vocabulary_.tokens[static_cast<std::size_t>(id)];
}

// The symbols of the pre-token form a linked list; possible merges wait in a heap, lowest rank first, then
// leftmost. A candidate whose symbols have changed since it was queued is dropped when its turn comes. O(n
// log n) for n bytes, where scanning for the best pair each time would take O(n²): a megabyte of one letter
// must not hang a program.
void Tokenizer::encode_pre_token(std::string_view pre_token, detail::MergeScratch& scratch,
                                 std::vector<std::int32_t>& ids) const {
  using Candidate = detail::MergeScratch::Candidate;
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  symbols.clear();
  queue.clear();

  const auto length = static_cast<std::int32_t>(pre_token.size());
  for (std::int32_t i = 0; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(pre_token[static_cast<std::size_t>(i)]);
    symbols.push_back({byte_ids_[byte], i - 1, i + 1 < length ? i + 1 : -1});
  }
  const auto symbol = [&](std::int32_t position) -> auto& {
    return symbols[static_cast<std::size_t>(position)];
  };
  const auto comes_later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto consider = [&](std::int32_t position) {
    if (position < 0 || symbol(position).next < 0) return;
    const std::int32_t left = symbol(position).id;
    const std::int32_t right = symbol(symbol(position).next).id;
    const auto merge = merge_table_->find(left, right);
    if (merge.rank < 0) return;
    queue.push_back({merge.rank, position, left, right, merge.id});
    std::push_heap(queue.begin(), queue.end(), comes_later);
  };

  for (std::int32_t i = 0; i < length; ++i) consider(i);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), comes_later);
    const Candidate best = queue.back();
    queue.pop_back();
    auto& left = symbol(best.position);
    if (left.id != best.left || left.next < 0 || symbol(left.next).id != best.right) continue;

    auto& right = symbol(left.next);
    left.id = best.merged;
    left.next = right.next;
    if (left.next >= 0) symbol(left.next).previous = best.position;
    right.id = -1;
    consider(left.previous);
    consider(best.position);
  }
  for (std::int32_t i = 0; i >= 0 && i < length; i = symbol(i).next) ids.push_back(symbol(i).id);
}

}  // namespace tessera::data

#include "data/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "data/hash.h"
#include "data/merge_table.h"
#include "data/split_pattern.h"
#include "data/token_stream.h"
#include "data/utf8.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

// Changes with the rules of pre_tokenizer.cpp, because with them the ids change.
constexpr std::string_view kPreTokenizer = "gpt2-blocks-1";

std::uint64_t hash_of(const Vocabulary& vocabulary) {
  detail::Fnv1a hash;
  hash.add(vocabulary.pattern.empty() ? kPreTokenizer : std::string_view(vocabulary.pattern));
  hash.add(static_cast<std::uint64_t>(vocabulary.tokens.size()));
  for (const std::string& token : vocabulary.tokens) hash.add(std::string_view(token));
  for (const auto& [left, right] : vocabulary.merges) hash.add(detail::pair_key(left, right));
  hash.add(static_cast<std::uint64_t>(vocabulary.end_of_text.value_or(-1)));
  // What only tokenizers from elsewhere have leaves the hashes of the others as they were.
  if (vocabulary.whole_pieces_first) hash.add(std::string_view("whole pieces first"));
  for (const AddedToken& added : vocabulary.added) {
    hash.add(std::string_view("added"));
    hash.add(static_cast<std::uint64_t>(added.id) << 2 | (added.takes_left_space ? 2u : 0u) |
             (added.takes_right_space ? 1u : 0u));
    if (added.after_others) hash.add(std::string_view("after others"));
  }
  for (const auto* ids : {&vocabulary.before_text, &vocabulary.after_text}) {
    if (ids->empty()) continue;
    hash.add(std::string_view(ids == &vocabulary.before_text ? "before" : "after"));
    for (const std::int32_t id : *ids) hash.add(static_cast<std::uint64_t>(id));
  }
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

  check_added();
  std::vector<bool> merges_to(tokens.size(), true);  // no merge makes the others, and no text spells them
  if (end_of_text) merges_to[static_cast<std::size_t>(*end_of_text)] = false;
  for (const AddedToken& added : vocabulary_.added) merges_to[static_cast<std::size_t>(added.id)] = false;

  std::unordered_map<std::string_view, std::int32_t> ids;
  ids.reserve(tokens.size());
  for (std::int32_t id = 0; id < num_tokens; ++id) {
    if (!merges_to[static_cast<std::size_t>(id)]) continue;
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
      if (id < 0 || id >= num_tokens || !merges_to[static_cast<std::size_t>(id)]) {
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
  if (!vocabulary_.pattern.empty())
    pattern_ = std::make_shared<const detail::SplitPattern>(vocabulary_.pattern);
  if (vocabulary_.whole_pieces_first) {
    for (const auto& [token, id] : ids) whole_pieces_.emplace(token, id);
  }
  vocabulary_hash_ = hash_of(vocabulary_);
}

void Tokenizer::check_added() {
  const auto known = [this](std::int32_t id) { return id >= 0 && id < vocab_size(); };
  for (const AddedToken& added : vocabulary_.added) {
    if (!known(added.id)) {
      throw DataError(
          fmt::format("vocabulary: an added token has id {}, but ids end at {}", added.id, vocab_size() - 1));
    }
    const std::string& text = vocabulary_.tokens[static_cast<std::size_t>(added.id)];
    if (text.empty()) throw DataError(fmt::format("vocabulary: added token {} is empty", added.id));
    added_.emplace_back(text, added);
  }
  std::ranges::sort(added_, [](const auto& a, const auto& b) {
    return a.first[0] != b.first[0]           ? a.first[0] < b.first[0]
           : a.first.size() != b.first.size() ? a.first.size() > b.first.size()
                                              : a.first < b.first;
  });
  const auto same = std::ranges::adjacent_find(added_, {}, [](const auto& added) { return added.first; });
  if (same != added_.end())
    throw DataError(fmt::format("vocabulary: the added token '{}' is there twice", same->first));
  for (const auto* ids : {&vocabulary_.before_text, &vocabulary_.after_text}) {
    for (const std::int32_t id : *ids) {
      if (!known(id)) {
        throw DataError(
            fmt::format("vocabulary: token {} frames a text, but ids end at {}", id, vocab_size() - 1));
      }
    }
  }
}

Tokenizer::Tokenizer(const Tokenizer& other)
    : vocabulary_(other.vocabulary_),
      merge_table_(other.merge_table_ ? std::make_unique<detail::MergeTable>(*other.merge_table_) : nullptr),
      pattern_(other.pattern_),
      whole_pieces_(other.whole_pieces_),
      added_(other.added_),
      vocabulary_hash_(other.vocabulary_hash_) {
  std::copy(std::begin(other.byte_ids_), std::end(other.byte_ids_), std::begin(byte_ids_));
}

Tokenizer::Tokenizer(Tokenizer&& other) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer& Tokenizer::operator=(Tokenizer other) noexcept {
  std::swap(vocabulary_, other.vocabulary_);
  std::swap(byte_ids_, other.byte_ids_);
  std::swap(merge_table_, other.merge_table_);
  std::swap(pattern_, other.pattern_);
  std::swap(whole_pieces_, other.whole_pieces_);
  std::swap(added_, other.added_);
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

namespace {

// Bytes of white space at the end of `text`.
std::size_t space_at_end(std::string_view text) {
  std::size_t space = 0;
  while (space < text.size()) {
    std::size_t length = 1;
    const std::size_t end = text.size() - space;
    while (length < 4 && length < end &&
           detail::utf8_continuation(static_cast<unsigned char>(text[end - length])))
      ++length;
    const detail::CodePoint code_point = detail::utf8_decode(text.substr(end - length, length));
    if (static_cast<std::size_t>(code_point.length) != length || !detail::is_white_space(code_point.value))
      break;
    space += length;
  }
  return space;
}

std::size_t space_at_begin(std::string_view text) {
  std::size_t space = 0;
  while (space < text.size()) {
    const detail::CodePoint code_point = detail::utf8_decode(text.substr(space));
    if (!detail::is_white_space(code_point.value)) break;
    space += static_cast<std::size_t>(code_point.length);
  }
  return space;
}

}  // namespace

// Where tokens are spelled does not depend on the space that others swallow, so one may begin in such space.
void Tokenizer::cut_at_added(std::string_view text, bool after_others,
                             const std::function<void(std::string_view)>& on_plain,
                             const std::function<void(std::int32_t)>& on_added) const {
  std::size_t done = 0;
  for (std::size_t i = 0; i < text.size();) {
    auto added = std::ranges::lower_bound(added_, text[i], {}, [](const auto& a) { return a.first[0]; });
    const auto is_candidate = [&] { return added != added_.end() && added->first[0] == text[i]; };
    while (is_candidate() &&
           (added->second.after_others != after_others || !text.substr(i).starts_with(added->first)))
      ++added;
    if (!is_candidate()) {
      ++i;
      continue;
    }
    const auto& [spelled, token] = *added;
    const std::size_t begin = token.takes_left_space ? i - space_at_end(text.substr(0, i)) : i;
    if (done < begin) on_plain(text.substr(done, begin - done));
    on_added(token.id);
    i += spelled.size();
    done = token.takes_right_space ? i + space_at_begin(text.substr(i)) : i;
  }
  if (done < text.size()) on_plain(text.substr(done));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<std::int32_t> ids;
  if (options.frame) ids = vocabulary_.before_text;
  StreamEncoder encoder(*this);
  const auto add_id = [&ids](std::int32_t id) { ids.push_back(id); };
  const auto encode_plain = [&](std::string_view part) {
    encoder.push(part, ids);
    encoder.finish(ids);
  };
  if (options.added_tokens) {
    cut_at_added(
        text, false, [&](std::string_view part) { cut_at_added(part, true, encode_plain, add_id); }, add_id);
  } else {
    encode_plain(text);
  }
  if (options.frame) ids.insert(ids.end(), vocabulary_.after_text.begin(), vocabulary_.after_text.end());
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
  if (vocabulary_.whole_pieces_first) {
    const auto whole = whole_pieces_.find(std::string(pre_token));
    if (whole != whole_pieces_.end()) return ids.push_back(whole->second);
  }

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

// Learning the merges of a byte-pair encoding: Tokenizer::train.
//
// The text enters only as a table of its different pre-tokens with their counts, so the cost of learning
// follows the number of different words, not the length of the text. Per pair of neighbours we keep its count
// and the places where it stands; a merge visits only those places. A heap gives the most frequent pair; its
// counts are allowed to be out of date (they only ever fall) and are put right when an entry comes up.

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <queue>
#include <unordered_map>

#include "data/merge_table.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer.h"
#include "data/word_table.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

// Words beyond this many bytes are left out, the rarest first: bounds memory on texts without words (base64,
// binaries).
constexpr std::size_t kMostWordBytes = 16u << 20;

struct CountedWords {
  detail::WordTable words;
  std::vector<std::int64_t> counts;
};

CountedWords count_words(std::string_view text) {
  CountedWords counted;
  while (!text.empty()) {
    const std::size_t length = pre_token_length(text);
    const std::uint32_t number = counted.words.find_or_insert(text.substr(0, length));
    if (number == counted.counts.size()) counted.counts.push_back(0);
    ++counted.counts[number];
    text.remove_prefix(length);
  }
  return counted;
}

class Trainer {
 public:
  explicit Trainer(const CountedWords& counted) {
    for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));

    std::vector<std::uint32_t> order(counted.counts.size());
    std::iota(order.begin(), order.end(), 0u);
    if (counted.words.num_bytes() > kMostWordBytes) {
      std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
        return counted.counts[a] > counted.counts[b];
      });
    }
    std::size_t num_bytes = 0;
    for (const std::uint32_t number : order) {
      const std::string_view word = counted.words.word(number);
      num_bytes += word.size();
      if (num_bytes > kMostWordBytes) break;
      add_word(word, counted.counts[number]);
    }
    for (const auto& [key, pair] : pairs_) heap_.push({pair.count, key});
  }

  // Learns up to `num_merges` tokens more.
  void learn(std::int64_t num_merges, const TrainOptions& options) {
    const std::int64_t goal = static_cast<std::int64_t>(tokens_.size()) + num_merges;
    while (static_cast<std::int64_t>(tokens_.size()) < goal && !heap_.empty()) {
      const Candidate best = heap_.top();
      heap_.pop();
      const auto found = pairs_.find(best.key);
      if (found == pairs_.end()) continue;
      if (found->second.count != best.count) {
        heap_.push({found->second.count, best.key});
        continue;
      }
      if (best.count < options.min_pair_count || best.count < 1) break;
      std::vector<Position> places = std::move(found->second.places);
      pairs_.erase(found);
      merge(best.key, std::move(places));

      const std::int64_t done = num_merges - (goal - static_cast<std::int64_t>(tokens_.size()));
      if (options.progress && (done % 64 == 0 || done == num_merges)) options.progress(done, num_merges);
    }
  }

  Vocabulary take_vocabulary() { return {.tokens = std::move(tokens_), .merges = std::move(merges_)}; }

 private:
  using Position = std::uint32_t;
  static constexpr Position kNone = ~Position{0};

  // All words, one symbol per byte at first. A symbol that was merged into the one on its left has id -1.
  struct Symbol {
    std::int32_t id;
    Position previous, next;  // within the word
    std::uint32_t word;
  };

  struct Pair {
    std::int64_t count = 0;
    std::vector<Position> places;  // of the left symbol; some may no longer hold the pair
  };

  struct Candidate {
    std::int64_t count;
    std::uint64_t key;
    // The heap's top is the highest count, then the lowest ids: the result is the same on every machine.
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };

  void add_word(std::string_view word, std::int64_t count) {
    const auto begin = static_cast<Position>(symbols_.size());
    const auto end = static_cast<Position>(symbols_.size() + word.size());
    const auto number = static_cast<std::uint32_t>(counts_.size());
    counts_.push_back(count);
    for (Position p = begin; p < end; ++p) {
      symbols_.push_back({static_cast<unsigned char>(word[p - begin]), p == begin ? kNone : p - 1,
                          p + 1 == end ? kNone : p + 1, number});
    }
    for (Position p = begin; p + 1 < end; ++p) add_pair(p);
  }

  Pair& add_pair(Position left) {
    const Symbol& symbol = symbols_[left];
    Pair& pair = pairs_[detail::pair_key(symbol.id, symbols_[symbol.next].id)];
    pair.count += counts_[symbol.word];
    pair.places.push_back(left);
    return pair;
  }

  void remove_pair(Position left) {
    const Symbol& symbol = symbols_[left];
    const auto found = pairs_.find(detail::pair_key(symbol.id, symbols_[symbol.next].id));
    if (found == pairs_.end()) return;  // the pair that is being merged
    found->second.count -= counts_[symbol.word];
    if (found->second.count == 0) pairs_.erase(found);
  }

  // The id of the token that joins both; two ways to the same bytes share one.
  std::int32_t join(std::int32_t left, std::int32_t right) {
    std::string joined = tokens_[static_cast<std::size_t>(left)] + tokens_[static_cast<std::size_t>(right)];
    const auto [entry, is_new] =
        joined_.try_emplace(std::move(joined), static_cast<std::int32_t>(tokens_.size()));
    if (is_new) tokens_.push_back(entry->first);
    return entry->second;
  }

  void merge(std::uint64_t key, std::vector<Position> places) {
    const auto left_id = static_cast<std::int32_t>(key >> 32);
    const auto right_id = static_cast<std::int32_t>(key & 0xFFFFFFFFu);
    const std::int32_t joined = join(left_id, right_id);
    merges_.emplace_back(left_id, right_id);

    // From left to right, as the encoder does: it matters for "aaa". They are in order already, unless the
    // pair holds a token that two merges made.
    std::sort(places.begin(), places.end());
    std::vector<std::uint64_t> touched;
    for (const Position p : places) {
      Symbol& left = symbols_[p];
      if (left.id != left_id || left.next == kNone || symbols_[left.next].id != right_id) continue;
      Symbol& right = symbols_[left.next];
      if (left.previous != kNone) remove_pair(left.previous);
      if (right.next != kNone) remove_pair(left.next);
      left.id = joined;
      left.next = right.next;
      if (left.next != kNone) symbols_[left.next].previous = p;
      right.id = -1;
      if (left.previous != kNone) {
        add_pair(left.previous);
        touched.push_back(detail::pair_key(symbols_[left.previous].id, joined));
      }
      if (left.next != kNone) {
        add_pair(p);
        touched.push_back(detail::pair_key(joined, symbols_[left.next].id));
      }
    }

    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const std::uint64_t new_key : touched) {
      const auto found = pairs_.find(new_key);
      if (found != pairs_.end()) heap_.push({found->second.count, new_key});
    }
  }

  struct MixedHash {
    std::size_t operator()(std::uint64_t key) const noexcept { return detail::mix(key); }
  };

  std::vector<Symbol> symbols_;
  std::vector<std::int64_t> counts_;  // of each word
  std::unordered_map<std::uint64_t, Pair, MixedHash> pairs_;
  std::priority_queue<Candidate> heap_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, std::int32_t> joined_;
  std::vector<std::pair<std::int32_t, std::int32_t>> merges_;
};

}  // namespace

Tokenizer Tokenizer::train(std::string_view text, std::int64_t vocab_size, const TrainOptions& options) {
  const std::int64_t smallest = options.end_of_text ? 257 : 256;
  if (vocab_size < smallest || vocab_size > (1 << 24)) {
    throw ConfigError(fmt::format("Tokenizer::train: vocab_size {} is not between {} (all bytes{}) and {}",
                                  vocab_size, smallest, options.end_of_text ? " and the end of text" : "",
                                  1 << 24));
  }
  Vocabulary vocabulary;
  {
    Trainer trainer(count_words(text));
    trainer.learn(vocab_size - smallest, options);
    vocabulary = trainer.take_vocabulary();
  }
  if (options.end_of_text) {
    vocabulary.end_of_text = static_cast<std::int32_t>(vocabulary.tokens.size());
    vocabulary.tokens.emplace_back(kEndOfText);
  }
  return Tokenizer(std::move(vocabulary));
}

}  // namespace tessera::data

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tessera::data {

class StreamEncoder;
namespace detail {
class MergeTable;
struct MergeScratch;
class SplitPattern;
}  // namespace detail

/// Text of the token that separates documents.
inline constexpr std::string_view kEndOfText = "<|endoftext|>";

/// Name of the file that Tokenizer::save writes into its folder.
inline constexpr std::string_view kTokenizerFile = "tokenizer.json";

/// A token that no merge makes: "<|im_start|>". What it reads is its entry in Vocabulary::tokens.
struct AddedToken {
  std::int32_t id = 0;
  bool takes_left_space = false;   ///< swallows white space before it
  bool takes_right_space = false;  ///< and after it
  bool after_others = false;       ///< found only in what those without this leave ("normalized" elsewhere)
  bool operator==(const AddedToken&) const = default;
};

/// What a byte-level BPE tokenizer knows. Ids may stand in any order; Tokenizer checks the rest.
struct Vocabulary {
  /// The bytes of each id. All 256 single bytes are there; no string stands there twice.
  std::vector<std::string> tokens;
  /// Pairs of ids that merge, the most urgent first. Their concatenation is one of `tokens`.
  std::vector<std::pair<std::int32_t, std::int32_t>> merges;
  /// Id of kEndOfText. encode never gives this id: text that spells `<|endoftext|>` stays text.
  std::optional<std::int32_t> end_of_text = {};

  // Of tokenizers from elsewhere.
  /// Where a text is cut before anything merges: its pieces are what this regular expression matches, and
  /// what lies between. Empty: the rules of pre_tokenizer.h.
  std::string pattern = {};
  /// A piece that is a token takes its id, whether or not merges lead there ("ignore_merges").
  bool whole_pieces_first = false;
  std::vector<AddedToken> added = {};
  /// Ids that frame a text: "<|begin_of_text|>".
  std::vector<std::int32_t> before_text = {}, after_text = {};
};

struct EncodeOptions {
  /// What spells an added token becomes it. Off, a text that comes from anywhere cannot smuggle one in.
  bool added_tokens = false;
  /// Puts Vocabulary::before_text and after_text around the ids.
  bool frame = false;
};

struct TrainOptions {
  /// Adds kEndOfText as the last id; it counts towards the vocabulary's size.
  bool end_of_text = false;
  /// Pairs that occur fewer times are not merged: a token seen once teaches a model nothing.
  std::int64_t min_pair_count = 2;
  /// Called now and then with merges done and merges wanted. May throw to stop.
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};
};

/// Byte-level byte-pair encoding: text ↔ token ids. Every byte string can be encoded, and decoding gives
/// exactly those bytes back, valid UTF-8 or not.
///
/// A text is cut into pre-tokens (words with their leading space, numbers, punctuation; see pre_tokenizer.h).
/// Each starts as a row of single bytes; then, as long as a neighbouring pair is in the list of merges, the
/// pair that stands first in the list is replaced by its token.
///
/// A Tokenizer does not change once made: any number of threads may use one at the same time. It is a value;
/// copies are independent (and as large as the vocabulary).
///
/// Source    Sennrich, Haddow & Birch, "Neural machine translation of rare words with subword units", 2016;
///           bytes instead of characters: Radford et al., "Language models are unsupervised multitask
///           learners", 2019.
/// Example
///     auto tokenizer = data::Tokenizer::train(text, 2048);
///     std::vector<std::int32_t> ids = tokenizer.encode("In the beginning");
///     assert(tokenizer.decode(ids) == "In the beginning");
///     tokenizer.save("run/");                                    // run/tokenizer.json
///     auto same = data::Tokenizer::load("run/");
///     assert(same.vocabulary_hash() == tokenizer.vocabulary_hash());
class Tokenizer {
 public:
  /// Learns merges from `text`: again and again the most frequent neighbouring pair becomes a new token. Ids
  /// 0–255 are the bytes, 256, 257, ... the merges in the order in which they were learned, then kEndOfText
  /// if asked for.
  ///
  /// Stops early, with a smaller vocab_size(), once no pair occurs `min_pair_count` times; so an empty text
  /// gives the 256 bytes. The result depends on `text` and the options only; of equally frequent pairs the
  /// one with the lower ids wins.
  ///
  /// Errors    ConfigError if vocab_size is below 256 (257 with end_of_text) or above 2^24.
  /// Cost      0.1 s for 4 MB of English and 8,192 tokens on one core; memory follows the number of different
  ///           words, of which the most frequent 16 MB are used.
  [[nodiscard]] static Tokenizer train(std::string_view text, std::int64_t vocab_size,
                                       const TrainOptions& options = {});

  /// Wraps a vocabulary that was made elsewhere.
  /// Errors    DataError that says what is wrong with it: a byte without token, a token twice, a merge of
  ///           unknown ids.
  explicit Tokenizer(Vocabulary vocabulary);

  /// Reads `path`/tokenizer.json, or `path` itself if it is a file: what save() writes, or a tokenizer.json
  /// of Hugging Face's tokenizers. In a folder without one, GPT-2's own files: encoder.json and vocab.bpe, or
  /// by the names that transformers gives them, vocab.json and merges.txt.
  /// Errors    DataError with the file and the reason: missing, not JSON, another format, a newer version,
  ///           damaged; of another's, what this tokenizer would not do the same.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path);

  /// Whether `folder` has files that load() would read.
  [[nodiscard]] static bool is_in(const std::filesystem::path& folder);

  /// Writes `folder`/tokenizer.json, making the folder if need be. The format is described in docs/data.md.
  /// The file appears whole or not at all.
  /// Errors    DataError if the folder cannot be written to, FileError if the disk is full.
  void save(const std::filesystem::path& folder) const;

  Tokenizer(const Tokenizer& other);
  Tokenizer(Tokenizer&& other) noexcept;
  Tokenizer& operator=(Tokenizer other) noexcept;
  ~Tokenizer();

  /// The ids of `text`. For many texts, or one that comes in parts, StreamEncoder is faster: it remembers
  /// words.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const;
  /// With added_tokens and frame: what `encode` of Hugging Face's tokenizers gives. Where added tokens
  /// overlap, the leftmost counts, and of those the longest; those that are found after_others come last.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text, const EncodeOptions& options) const;

  /// The bytes that `ids` stand for. They need not be UTF-8 (ids may end inside a character); StreamDecoder
  /// gives whole characters.
  /// Errors    IndexError naming id, position and vocabulary, if an id is unknown.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;

  /// The bytes of one id; valid as long as this tokenizer.
  /// Errors    IndexError, if the id is unknown.
  [[nodiscard]] std::string_view token(std::int32_t id) const;

  /// Number of ids: 0 to vocab_size() - 1.
  [[nodiscard]] std::int64_t vocab_size() const noexcept {
    return static_cast<std::int64_t>(vocabulary_.tokens.size());
  }
  [[nodiscard]] std::optional<std::int32_t> end_of_text() const noexcept { return vocabulary_.end_of_text; }
  [[nodiscard]] const Vocabulary& vocabulary() const noexcept { return vocabulary_; }

  /// 64-bit fingerprint (FNV-1a) of everything that decides which ids a text gets. Token files carry it, so
  /// that ids are never read with another vocabulary.
  [[nodiscard]] std::uint64_t vocabulary_hash() const noexcept { return vocabulary_hash_; }

 private:
  friend class StreamEncoder;
  void check_added();
  /// Calls `on_plain` for what no added token of one kind spells, and `on_added` for the ids of those.
  void cut_at_added(std::string_view text, bool after_others,
                    const std::function<void(std::string_view)>& on_plain,
                    const std::function<void(std::int32_t)>& on_added) const;
  /// Appends the ids of one pre-token.
  void encode_pre_token(std::string_view pre_token, detail::MergeScratch& scratch,
                        std::vector<std::int32_t>& ids) const;

  Vocabulary vocabulary_;
  std::int32_t byte_ids_[256] = {};
  std::unique_ptr<detail::MergeTable> merge_table_;
  std::shared_ptr<const detail::SplitPattern> pattern_;         // null: the rules of pre_tokenizer.h
  std::unordered_map<std::string, std::int32_t> whole_pieces_;  // if they come first
  std::vector<std::pair<std::string, AddedToken>> added_;       // by first byte, then the longest first
  std::uint64_t vocabulary_hash_ = 0;
};

}  // namespace tessera::data

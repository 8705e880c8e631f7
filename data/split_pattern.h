#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

// Private to data/.
namespace tessera::data::detail {

/// A regular expression that cuts texts into pieces, as files of tokenizers hold it: over Unicode, in the
/// syntax that Perl, Oniguruma and Rust's fancy-regex have in common.
///
/// `\s` is the property White_Space, as there; PCRE2's own has U+180E besides. `\p{Han}` is the script alone.
/// Errors    DataError for one that does not compile, that looks back before its match (a stream no longer
///           has that text), or whose meaning depends on the library (`\w`, `\b`, `\h`, `^`, `$`, `x{2}+`,
///           `x{,2}`, `(?m)`, ...).
/// Threads   Any number of cutters may use one.
class SplitPattern {
 public:
  explicit SplitPattern(const std::string& pattern);
  ~SplitPattern();
  SplitPattern(const SplitPattern&) = delete;
  SplitPattern& operator=(const SplitPattern&) = delete;

 private:
  friend class PatternCutter;
  struct Code;
  std::unique_ptr<Code> code_;
};

/// Cuts texts at a pattern, which must outlive it. For one thread.
///
/// Pieces are the matches, from left to right, and what lies between them; nothing is dropped. Bytes that are
/// not UTF-8 match nothing and end the text for what stands before them. A piece is at most kMaxPreTokenBytes
/// long, as in pre_tokenizer.h. Where a piece ends depends on the text from its begin on alone, and it is not
/// told before that is certain whatever comes next.
///
/// Example   cutter.start(" don't", true);  cutter.next() == 4;  cutter.next() == 2;  cutter.next() == 0;
class PatternCutter {
 public:
  explicit PatternCutter(const SplitPattern& pattern);
  PatternCutter(PatternCutter&&) noexcept;
  PatternCutter& operator=(PatternCutter&&) noexcept;
  ~PatternCutter();

  /// `text` stays where it is as long as next() is called. Without `is_end` more of it may come.
  void start(std::string_view text, bool is_end);
  /// Bytes of the next piece; 0 at the end, and where more of the text is needed.
  /// Errors    DataError if the pattern takes too long on this text.
  [[nodiscard]] std::size_t next();

 private:
  [[nodiscard]] std::size_t piece_length();
  [[nodiscard]] std::size_t invalid_length() const;
  void extend_valid(std::size_t limit);

  struct Scratch;
  const SplitPattern* pattern_;
  std::unique_ptr<Scratch> scratch_;
  std::string_view text_;
  bool is_end_ = true;
  std::size_t begin_ = 0;      // of the next piece
  std::size_t valid_end_ = 0;  // up to here the text from begin_ on is UTF-8
  enum class Then { kUnknown, kInvalid, kUnfinished } then_ = Then::kUnknown;  // what stands at valid_end_
};

}  // namespace tessera::data::detail

#include "data/split_pattern.h"

#include <fmt/format.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <utility>

#include "data/pre_tokenizer.h"
#include "data/utf8.h"
#include "kernels/error.h"

namespace tessera::data::detail {
namespace {

constexpr std::size_t kMaxPatternBytes = 1 << 16;

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(error, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

[[noreturn]] void refuse(const std::string& pattern, const std::string& reason) {
  throw DataError(fmt::format("pattern '{}': {}", pattern, reason));
}

pcre2_code* compile(const std::string& text, int& error, PCRE2_SIZE& where) {
  return pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                       PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE, &error,
                       &where, nullptr);
}

bool compiles(const std::string& text) {
  int error = 0;
  PCRE2_SIZE where = 0;
  pcre2_code* code = compile(text, error, where);
  pcre2_code_free(code);
  return code != nullptr;
}

// Puts a pattern into PCRE2's words. Refuses what other libraries understand otherwise.
class Translation {
 public:
  explicit Translation(const std::string& pattern) : pattern_(pattern) {}

  std::string run() {
    for (bool in_class = false; at_ < pattern_.size();) {
      const char c = pattern_[at_];
      if (c == '\\' && at_ + 1 < pattern_.size()) {
        escape();
        continue;
      }
      if (in_class) {
        if (c == '[') refuse(pattern_, "classes within classes are not known here");
        if (c == '&' && next() == '&') refuse(pattern_, "intersections of classes are not known here");
        in_class = c != ']';
        take(1);
      } else if (c == '[') {
        in_class = true;
        take(next() == '^' ? 2 : 1);
        if (at_ < pattern_.size() && pattern_[at_] == ']') take(1);  // as the first it is one of the class
      } else {
        outside_of_classes(c);
      }
    }
    return std::move(result_);
  }

 private:
  [[nodiscard]] char next(std::size_t distance = 1) const {
    return at_ + distance < pattern_.size() ? pattern_[at_ + distance] : '\0';
  }
  void take(std::size_t count) {
    result_.append(pattern_, at_, count);
    at_ = std::min(at_ + count, pattern_.size());
  }
  [[noreturn]] void refuse_differing(std::string_view what) const {
    refuse(pattern_, fmt::format("libraries of regular expressions differ in what {} means", what));
  }
  // Of \p{Name} or \x{41}; 2 if no bracket is opened.
  [[nodiscard]] std::size_t length_of_escape() const {
    if (next(2) != '{') return 2;
    const std::size_t end = pattern_.find('}', at_);
    return end == std::string::npos ? 2 : end + 1 - at_;
  }

  void escape() {
    const char escaped = next();
    const bool is_letter = (escaped >= 'a' && escaped <= 'z') || (escaped >= 'A' && escaped <= 'Z');
    const bool is_digit = escaped >= '0' && escaped <= '9';
    if (escaped == 's' || escaped == 'S') {
      result_ += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
      return;
    }
    if (is_digit || (is_letter && std::string_view("dDpPrntfx").find(escaped) == std::string_view::npos))
      refuse_differing(fmt::format("\\{}", escaped));
    if (escaped == 'p' || escaped == 'P') return property();
    take(escaped == 'x' ? length_of_escape() : 2);
  }

  // \p{Han} is the script in other libraries. To PCRE2 it is the script with what other scripts share with
  // it, 、 and 「 say, since version 10.40, where \p{sc:Han} is the script alone.
  void property() {
    const std::size_t length = length_of_escape();
    if (length == 2) refuse_differing(fmt::format("\\{} without brackets", next()));
    if (length > 4) {
      const bool negated = next(3) == '^';
      const std::string name = pattern_.substr(at_ + (negated ? 4 : 3), length - (negated ? 5 : 4));
      if (compiles("\\p{sc:" + name + "}")) {
        result_ += fmt::format("\\{}{{{}sc:{}}}", next(), negated ? "^" : "", name);
        at_ += length;
        return;
      }
    }
    take(length);
  }

  void outside_of_classes(char c) {
    if (c == '^' || c == '$') refuse(pattern_, fmt::format("'{}' has no place in it", c));
    if (c == '(' && next() == '*') refuse_differing("(*");
    if (c == '(' && next() == '?') check_flags();
    if (c == '{') check_count();
    take(1);
  }

  // (?m) lets a dot be a line feed to Oniguruma, and ^ be behind each line feed to the others.
  void check_flags() const {
    const std::size_t begin = at_ + 2, end = pattern_.find_first_not_of("imsxnUJ-", begin);
    if (end == std::string::npos || (pattern_[end] != ')' && pattern_[end] != ':')) return;  // no flags
    for (const char flag : std::string_view(pattern_).substr(begin, end - begin)) {
      if (flag != 'i' && flag != 'x' && flag != '-') refuse_differing(fmt::format("(?{}", flag));
    }
  }

  // x{2,3}+ is x{2,3} once or more to Oniguruma, and not to be given back to the others; x{2}? is x{2} or
  // nothing; x{,3} is taken by its letters by some.
  void check_count() const {
    const auto digits_end = [this](std::size_t i) { return pattern_.find_first_not_of("0123456789", i); };
    const std::size_t first_end = std::min(digits_end(at_ + 1), pattern_.size());
    const bool is_range = first_end < pattern_.size() && pattern_[first_end] == ',';
    const std::size_t end = is_range ? std::min(digits_end(first_end + 1), pattern_.size()) : first_end;
    if (end == pattern_.size() || pattern_[end] != '}') return;  // a bracket that opens nothing
    const char behind = end + 1 < pattern_.size() ? pattern_[end + 1] : '\0';
    const bool has_least = first_end > at_ + 1;
    const bool differs = !has_least ? end > first_end + 1 : behind == '+' || (behind == '?' && !is_range);
    if (differs) refuse_differing(pattern_.substr(at_, end + (has_least ? 2 : 1) - at_));
  }

  const std::string& pattern_;
  std::size_t at_ = 0;
  std::string result_;
};

}  // namespace

struct SplitPattern::Code {
  pcre2_code* compiled = nullptr;
  ~Code() { pcre2_code_free(compiled); }
};

SplitPattern::SplitPattern(const std::string& pattern) : code_(std::make_unique<Code>()) {
  if (pattern.size() > kMaxPatternBytes)
    throw DataError(fmt::format("pattern: {} bytes are too many for one", pattern.size()));
  const std::string text = Translation(pattern).run();
  int error = 0;
  PCRE2_SIZE where = 0;
  code_->compiled = compile(text, error, where);
  if (code_->compiled == nullptr)
    refuse(pattern, fmt::format("{} (at byte {} of '{}')", message_of(error), where, text));
  std::uint32_t look_behind = 0;
  pcre2_pattern_info(code_->compiled, PCRE2_INFO_MAXLOOKBEHIND, &look_behind);
  if (look_behind > 0)
    refuse(pattern, "it looks at what stands before its match, which a stream no longer has");
  // Without machine code (a library built so, no memory that may be run) matching takes longer, no more.
  pcre2_jit_compile(code_->compiled, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
}

SplitPattern::~SplitPattern() = default;

struct PatternCutter::Scratch {
  pcre2_match_data* match = nullptr;
  explicit Scratch(const pcre2_code* code) : match(pcre2_match_data_create_from_pattern(code, nullptr)) {
    if (match == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { pcre2_match_data_free(match); }
};

PatternCutter::PatternCutter(const SplitPattern& pattern)
    : pattern_(&pattern), scratch_(std::make_unique<Scratch>(pattern.code_->compiled)) {}
PatternCutter::PatternCutter(PatternCutter&&) noexcept = default;
PatternCutter& PatternCutter::operator=(PatternCutter&&) noexcept = default;
PatternCutter::~PatternCutter() = default;

void PatternCutter::start(std::string_view text, bool is_end) {
  text_ = text;
  is_end_ = is_end;
  begin_ = valid_end_ = 0;
  then_ = Then::kUnknown;
}

std::size_t PatternCutter::next() {
  const std::size_t length = piece_length();
  begin_ += length;
  if (valid_end_ < begin_) {
    valid_end_ = begin_;
    then_ = Then::kUnknown;
  }
  return length;
}

// Looks at the text up to `limit` once, however many pieces are in it.
void PatternCutter::extend_valid(std::size_t limit) {
  limit = std::min(limit, text_.size());
  while (valid_end_ < limit && then_ == Then::kUnknown) {
    const std::string_view rest = text_.substr(valid_end_);
    const CodePoint code_point = utf8_decode(rest);
    if (code_point.value >= 0) {
      valid_end_ += static_cast<std::size_t>(code_point.length);
      continue;
    }
    // The start of a character that the next part of the text may end?
    const int length = utf8_sequence_length(static_cast<unsigned char>(rest[0]));
    bool unfinished = !is_end_ && length > static_cast<int>(rest.size());
    for (std::size_t i = 1; unfinished && i < rest.size(); ++i) {
      const auto first = static_cast<unsigned char>(rest[0]), byte = static_cast<unsigned char>(rest[i]);
      unfinished = i == 1 ? utf8_second_byte(first, byte) : utf8_continuation(byte);
    }
    then_ = unfinished ? Then::kUnfinished : Then::kInvalid;
  }
}

// Of the bytes from begin_ on that are not UTF-8.
std::size_t PatternCutter::invalid_length() const {
  std::size_t end = begin_;
  while (end < text_.size() && end - begin_ < kMaxPreTokenBytes && utf8_decode(text_.substr(end)).value < 0) {
    ++end;
  }
  // At the end of what is there, the last bytes may be the start of a character, and more may follow.
  const bool is_certain = is_end_ || end + 3 < text_.size() || end - begin_ == kMaxPreTokenBytes;
  return is_certain ? end - begin_ : 0;
}

std::size_t PatternCutter::piece_length() {
  if (begin_ == text_.size()) return 0;
  // A little more than the longest piece: so it is known whether the text ends there.
  constexpr std::size_t kLongest = kMaxPreTokenBytes + 4;
  extend_valid(begin_ + kLongest + 4);
  if (valid_end_ == begin_) return then_ == Then::kInvalid ? invalid_length() : 0;

  const std::size_t valid = valid_end_ - begin_;
  const bool is_ended =
      then_ == Then::kInvalid || (then_ == Then::kUnknown && is_end_ && valid_end_ == text_.size());
  const bool is_whole = is_ended && valid <= kLongest;
  std::size_t size = valid;
  if (!is_whole && size > kMaxPreTokenBytes) {
    size = kMaxPreTokenBytes;
    while (utf8_continuation(static_cast<unsigned char>(text_[begin_ + size]))) --size;
  }
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data() + begin_);
  const std::uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY | (is_whole ? 0U : PCRE2_PARTIAL_HARD);
  const pcre2_code* code = pattern_->code_->compiled;
  int result = pcre2_match(code, subject, size, 0, options, scratch_->match, nullptr);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT)
    result = pcre2_match(code, subject, size, 0, options | PCRE2_NO_JIT, scratch_->match, nullptr);
  if (result >= 0) {
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch_->match);
    return ends[0] > 0 ? ends[0] : ends[1];  // first what lies before the match
  }
  if (result != PCRE2_ERROR_NOMATCH && result != PCRE2_ERROR_PARTIAL)
    throw DataError(fmt::format("tokenizer: its pattern fails on this text: {}", message_of(result)));
  if (is_whole) return size;
  return valid > kLongest ? size : 0;
}

}  // namespace tessera::data::detail

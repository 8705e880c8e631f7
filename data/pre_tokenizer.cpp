#include "data/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

#include "data/utf8.h"

namespace tessera::data {
namespace {

enum class Class : std::uint8_t { kSpace, kLetter, kDigit, kOther };

constexpr std::array<Class, 128> ascii_classes() {
  std::array<Class, 128> classes{};
  for (std::size_t c = 0; c < classes.size(); ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    // U+001C to U+001F are white space to Python's str, but not to the regular expressions that GPT-2 uses.
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    classes[c] = letter ? Class::kLetter : digit ? Class::kDigit : space ? Class::kSpace : Class::kOther;
  }
  return classes;
}
constexpr std::array<Class, 128> kAsciiClasses = ascii_classes();

struct Range {
  std::int32_t first, last;
  Class its_class;
};

// Code points beyond ASCII that are no letters, in order. Whole blocks where the block is of one kind.
constexpr Range kRanges[] = {
    {0x0080, 0x0084, Class::kOther},    // controls
    {0x0085, 0x0085, Class::kSpace},    // next line
    {0x0086, 0x009F, Class::kOther},    //
    {0x00A0, 0x00A0, Class::kSpace},    // no-break space
    {0x00A1, 0x00A9, Class::kOther},    // ¡ to ©
    {0x00AB, 0x00B1, Class::kOther},    // « to ±
    {0x00B2, 0x00B3, Class::kDigit},    // ² ³
    {0x00B4, 0x00B4, Class::kOther},    //
    {0x00B6, 0x00B8, Class::kOther},    // ¶ · ¸
    {0x00B9, 0x00B9, Class::kDigit},    // ¹
    {0x00BB, 0x00BB, Class::kOther},    // »
    {0x00BC, 0x00BE, Class::kDigit},    // ¼ ½ ¾
    {0x00BF, 0x00BF, Class::kOther},    // ¿
    {0x00D7, 0x00D7, Class::kOther},    // ×
    {0x00F7, 0x00F7, Class::kOther},    // ÷
    {0x0589, 0x058F, Class::kOther},    // Armenian punctuation
    {0x05BE, 0x05BE, Class::kOther},    // Hebrew punctuation
    {0x05F3, 0x05F4, Class::kOther},    //
    {0x0600, 0x060F, Class::kOther},    // Arabic signs and punctuation
    {0x061B, 0x061F, Class::kOther},    //
    {0x0660, 0x0669, Class::kDigit},    // Arabic-Indic digits
    {0x066A, 0x066D, Class::kOther},    //
    {0x06D4, 0x06D4, Class::kOther},    //
    {0x06F0, 0x06F9, Class::kDigit},    // Persian digits
    {0x0964, 0x0965, Class::kOther},    // danda
    {0x0966, 0x096F, Class::kDigit},    // Devanagari digits
    {0x09E6, 0x09EF, Class::kDigit},    // Bengali digits
    {0x0E50, 0x0E59, Class::kDigit},    // Thai digits
    {0x0E5A, 0x0E5B, Class::kOther},    //
    {0x1680, 0x1680, Class::kSpace},    // Ogham space
    {0x2000, 0x200A, Class::kSpace},    // en quad to hair space
    {0x200B, 0x2027, Class::kOther},    // zero width, dashes, quotes, bullets, ellipsis
    {0x2028, 0x2029, Class::kSpace},    // line and paragraph separator
    {0x202A, 0x202E, Class::kOther},    //
    {0x202F, 0x202F, Class::kSpace},    // narrow no-break space
    {0x2030, 0x205E, Class::kOther},    // per mille, primes, brackets
    {0x205F, 0x205F, Class::kSpace},    // mathematical space
    {0x2060, 0x206F, Class::kOther},    //
    {0x2070, 0x2070, Class::kDigit},    // superscripts and subscripts
    {0x2074, 0x2079, Class::kDigit},    //
    {0x207A, 0x207E, Class::kOther},    //
    {0x2080, 0x2089, Class::kDigit},    //
    {0x208A, 0x208E, Class::kOther},    //
    {0x20A0, 0x20CF, Class::kOther},    // currencies
    {0x2100, 0x214F, Class::kOther},    // ™ № and the like
    {0x2150, 0x218B, Class::kDigit},    // fractions, Roman numerals
    {0x2190, 0x245F, Class::kOther},    // arrows, mathematics, technical
    {0x2460, 0x249B, Class::kDigit},    // ① to ⒛
    {0x249C, 0x2BFF, Class::kOther},    // box drawing, shapes, dingbats
    {0x2E00, 0x2E7F, Class::kOther},    // supplemental punctuation
    {0x3000, 0x3000, Class::kSpace},    // ideographic space
    {0x3001, 0x3004, Class::kOther},    // 、 。
    {0x3008, 0x3020, Class::kOther},    // 「 」 and other brackets
    {0x3030, 0x3030, Class::kOther},    //
    {0x30FB, 0x30FB, Class::kOther},    // ・
    {0xE000, 0xF8FF, Class::kOther},    // private use
    {0xFE00, 0xFE6F, Class::kOther},    // variation selectors, vertical and small forms
    {0xFEFF, 0xFEFF, Class::kOther},    // byte order mark
    {0xFF01, 0xFF0F, Class::kOther},    // full-width punctuation
    {0xFF10, 0xFF19, Class::kDigit},    // full-width digits
    {0xFF1A, 0xFF20, Class::kOther},    //
    {0xFF3B, 0xFF40, Class::kOther},    //
    {0xFF5B, 0xFF65, Class::kOther},    //
    {0xFFE0, 0xFFFF, Class::kOther},    //
    {0x1D7CE, 0x1D7FF, Class::kDigit},  // mathematical digits
    {0x1F000, 0x1FAFF, Class::kOther},  // emoji, cards, pictographs
    {0xE0000, 0x10FFFF, Class::kOther}  // tags, private use
};

Class class_of(std::int32_t code_point) noexcept {
  if (code_point < 0) return Class::kOther;
  if (code_point < 128) return kAsciiClasses[static_cast<std::size_t>(code_point)];
  const Range* range = std::lower_bound(std::begin(kRanges), std::end(kRanges), code_point,
                                        [](const Range& r, std::int32_t c) { return r.last < c; });
  return range != std::end(kRanges) && range->first <= code_point ? range->its_class : Class::kLetter;
}

struct Character {
  Class its_class;
  std::size_t length;  // bytes
};

Character character_at(std::string_view text, std::size_t i) noexcept {
  const auto byte = static_cast<unsigned char>(text[i]);
  if (byte < 128) return {kAsciiClasses[byte], 1};
  const detail::CodePoint code_point = detail::utf8_decode(text.substr(i));
  return {class_of(code_point.value), static_cast<std::size_t>(code_point.length)};
}

// Length of 's 't 're 've 'm 'll 'd at the start of `text`, else 0.
std::size_t contraction_length(std::string_view text) noexcept {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const char c = text[1];
  if (c == 's' || c == 't' || c == 'm' || c == 'd') return 2;
  if (text.size() < 3) return 0;
  const bool long_form = text[2] == 'e' ? c == 'r' || c == 'v' : text[2] == 'l' && c == 'l';
  return long_form ? 3 : 0;
}

}  // namespace

std::size_t pre_token_length(std::string_view text) noexcept {
  if (const std::size_t length = contraction_length(text)) return length;

  std::size_t end = 0;
  Character next = character_at(text, 0);
  if (text[0] == ' ' && text.size() > 1) {
    // One space belongs to the word behind it.
    const Character second = character_at(text, 1);
    if (second.its_class != Class::kSpace) {
      end = 1;
      next = second;
    }
  }

  const Class run = next.its_class;
  std::size_t last_length = 0;
  while (next.its_class == run && end < kMaxPreTokenBytes) {
    last_length = next.length;
    end += next.length;
    if (end == text.size()) return end;
    next = character_at(text, end);
  }
  // `\s+(?!\S)`: white space before a word leaves its last character to it, if it is not alone.
  const bool before_word = run == Class::kSpace && next.its_class != Class::kSpace;
  return before_word && end > last_length ? end - last_length : end;
}

std::string pre_token_pattern() {
  // The ranges of a class, as in \x{2000}-\x{200A}.
  const auto ranges_of = [](Class its_class) {
    std::string ranges;
    const auto add = [&ranges](std::int32_t first, std::int32_t last) {
      ranges += fmt::format("\\x{{{:04X}}}", first);
      if (last > first) ranges += fmt::format("-\\x{{{:04X}}}", last);
    };
    for (std::int32_t c = 0; c < 128; ++c) {
      if (class_of(c) != its_class) continue;
      const std::int32_t first = c;
      while (c + 1 < 128 && class_of(c + 1) == its_class) ++c;
      add(first, c);
    }
    for (const Range& range : kRanges) {
      if (range.its_class == its_class) add(range.first, range.last);
    }
    return ranges;
  };
  const std::string spaces = ranges_of(Class::kSpace), digits = ranges_of(Class::kDigit),
                    others = ranges_of(Class::kOther);
  return fmt::format("'(?:[stmd]|re|ve|ll)| ?[^{0}{1}{2}]+| ?[{1}]+| ?[{2}]+|[{0}]+(?![^{0}])|[{0}]+", spaces,
                     digits, others);
}

}  // namespace tessera::data

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace tessera::data {

/// Longest pre-token in bytes. Longer runs (base64, long rows of '=') are cut there, which bounds the memory
/// and time that any text can cost. A cut never splits a UTF-8 sequence, so a pre-token may be up to 3 bytes
/// longer.
inline constexpr std::size_t kMaxPreTokenBytes = 65536;

/// Bytes that must be visible after a pre-token before its end is certain: one whole code point (4 bytes),
/// and the last white-space character (up to 3 bytes) that a run of white space hands on to the next word.
inline constexpr std::size_t kPreTokenLookAhead = 8;

/// Length in bytes of the pre-token at the start of `text`: a piece that byte-pair merges never cross.
///
/// GPT-2's rules, tried in this order at each position (Radford et al., 2019, `encoder.py`):
///
///     's 't 're 've 'm 'll 'd        English contractions
///     ␣? letters                     a word, with the one space before it
///     ␣? digits
///     ␣? other characters            punctuation, symbols, bytes that are not UTF-8
///     white space                    a run, less its last character if more text follows
///
/// ASCII is classified exactly as GPT-2 does. Beyond ASCII, a table of blocks takes the place of the Unicode
/// database: code points of scripts are letters (combining marks as well, so that words stay whole), and the
/// blocks of spaces, digits, punctuation, symbols and emoji are what their names say.
///
/// Where a piece ends depends on `text` alone, not on what stood before it: cutting a text between two
/// pre-tokens leaves all others as they are. StreamEncoder rests on this.
///
/// Example   " don't  stop"  →  " don", "'t", " ", " stop"
/// @param text  not empty; any bytes.
/// @return      between 1 and text.size().
[[nodiscard]] std::size_t pre_token_length(std::string_view text) noexcept;

/// The same rules as a regular expression, for texts in UTF-8: what other tools need to cut as this does.
/// Every character that is no letter is named in it, by its number.
[[nodiscard]] std::string pre_token_pattern();

}  // namespace tessera::data

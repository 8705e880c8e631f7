// tokenizer.json: Tokenizer::save and Tokenizer::load. The format is described in docs/data.md.

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "data/atomic_file.h"
#include "data/text_file.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kFormat = "tessera-tokenizer";
constexpr int kVersion = 1;
constexpr std::int64_t kMostFileBytes = 256 << 20;

// JSON holds Unicode, tokens are bytes. GPT-2's way: bytes that print stand for the code point of the same
// number, the other 68 for U+0100 to U+0143, so that a space reads "Ġ" and a line feed "Ċ".
bool prints(int byte) { return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD); }

std::array<std::string, 256> byte_characters() {
  std::array<std::string, 256> characters;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = prints(byte) ? byte : next++;
    std::string& character = characters[static_cast<std::size_t>(byte)];
    if (code_point < 0x80) {
      character = static_cast<char>(code_point);
    } else {  // all are below U+0800: two bytes
      character = {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
    }
  }
  return characters;
}

std::string to_characters(std::string_view bytes, const std::array<std::string, 256>& characters) {
  std::string text;
  for (const char c : bytes) text += characters[static_cast<unsigned char>(c)];
  return text;
}

class Reader {
 public:
  explicit Reader(const Json& root) : root_(root) {
    const auto characters = byte_characters();
    for (int byte = 0; byte < 256; ++byte) {
      const std::string& character = characters[static_cast<std::size_t>(byte)];
      byte_of_.emplace(detail::utf8_decode(character).value, static_cast<char>(byte));
    }
  }

  // Throws DataError with the reason; the caller adds the file's name.
  Tokenizer read() {
    if (!root_.is_object() || !root_.contains("format") || root_["format"] != kFormat) {
      throw DataError(fmt::format("not a tokenizer of ours (\"format\" is not \"{}\")", kFormat));
    }
    const Json& version = field("version", Json::value_t::number_unsigned);
    if (version.get<std::uint64_t>() > kVersion) {
      throw DataError(fmt::format("version {}, but this program reads up to {}: it was made by a newer one",
                                  version.get<std::uint64_t>(), kVersion));
    }
    Vocabulary vocabulary;
    read_tokens(vocabulary);
    read_merges(vocabulary);

    Tokenizer tokenizer(std::move(vocabulary));
    const std::string hash = field("vocabulary_hash", Json::value_t::string).get<std::string>();
    const std::string expected = fmt::format("{:016x}", tokenizer.vocabulary_hash());
    if (hash != expected) {
      throw DataError(fmt::format(
          "the vocabulary is not the one that was saved: hash {}, the file says \"{}\"", expected, hash));
    }
    return tokenizer;
  }

 private:
  const Json& field(const char* name, Json::value_t type) const {
    const auto found = root_.find(name);
    if (found == root_.end()) throw DataError(fmt::format("\"{}\" is missing", name));
    if (found->type() != type) throw DataError(fmt::format("\"{}\" is {}", name, found->type_name()));
    return *found;
  }

  std::string to_bytes(std::string_view characters, std::int64_t id) const {
    std::string bytes;
    while (!characters.empty()) {
      const detail::CodePoint code_point = detail::utf8_decode(characters);
      const auto found = byte_of_.find(code_point.value);
      if (found == byte_of_.end()) {
        throw DataError(fmt::format("token {} has the character U+{:04X}, which stands for no byte", id,
                                    code_point.value));
      }
      bytes += found->second;
      characters.remove_prefix(static_cast<std::size_t>(code_point.length));
    }
    return bytes;
  }

  void read_tokens(Vocabulary& vocabulary) {
    for (const Json& token : field("tokens", Json::value_t::array)) {
      const auto id = static_cast<std::int32_t>(vocabulary.tokens.size());
      if (!token.is_string())
        throw DataError(fmt::format("token {} is {}, not a string", id, token.type_name()));
      const auto& characters = token.get_ref<const std::string&>();
      vocabulary.tokens.push_back(to_bytes(characters, id));
      ids_.emplace(characters, id);
    }
    if (!root_.contains("end_of_text")) return;
    const Json& end_of_text = root_["end_of_text"];
    if (!end_of_text.is_number_unsigned() || end_of_text.get<std::uint64_t>() >= vocabulary.tokens.size()) {
      throw DataError(fmt::format("\"end_of_text\" is not one of the {} ids", vocabulary.tokens.size()));
    }
    vocabulary.end_of_text = end_of_text.get<std::int32_t>();
  }

  void read_merges(Vocabulary& vocabulary) const {
    for (const Json& merge : field("merges", Json::value_t::array)) {
      const std::size_t number = vocabulary.merges.size();
      const std::string text = merge.is_string() ? merge.get<std::string>() : "";
      const std::size_t space = text.find(' ');  // no token has one: a space byte is "Ġ"
      if (space == std::string::npos) throw DataError(fmt::format("merge {} is not \"left right\"", number));
      const auto left = ids_.find(text.substr(0, space));
      const auto right = ids_.find(text.substr(space + 1));
      if (left == ids_.end() || right == ids_.end()) {
        throw DataError(fmt::format("merge {} (\"{}\") joins what are no tokens", number, text));
      }
      vocabulary.merges.emplace_back(left->second, right->second);
    }
  }

  const Json& root_;
  std::unordered_map<std::int32_t, char> byte_of_;     // by code point
  std::unordered_map<std::string, std::int32_t> ids_;  // by characters
};

}  // namespace

void Tokenizer::save(const std::filesystem::path& folder) const {
  const auto characters = byte_characters();
  Json root;
  root["format"] = kFormat;
  root["version"] = kVersion;
  root["vocabulary_hash"] = fmt::format("{:016x}", vocabulary_hash_);
  if (vocabulary_.end_of_text) root["end_of_text"] = *vocabulary_.end_of_text;
  std::vector<std::string> tokens;
  for (const std::string& token : vocabulary_.tokens) tokens.push_back(to_characters(token, characters));
  root["merges"] = Json::array();
  for (const auto& [left, right] : vocabulary_.merges) {
    root["merges"].push_back(tokens[static_cast<std::size_t>(left)] + " " +
                             tokens[static_cast<std::size_t>(right)]);
  }
  root["tokens"] = std::move(tokens);

  create_folder(folder);
  AtomicFile file(folder / kTokenizerFile);
  file.write(root.dump(1) + "\n");
  file.commit();
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  const std::filesystem::path file_path = is_folder ? path / kTokenizerFile : path;
  const auto fail = [&](const std::string& reason) {
    return DataError(fmt::format("tokenizer {}: {}", file_path.string(), reason));
  };

  const TextFile file("tokenizer", file_path);
  if (file.size_bytes() > kMostFileBytes) {
    throw fail(
        fmt::format("{} bytes are too many for a tokenizer (at most {})", file.size_bytes(), kMostFileBytes));
  }
  std::string text(static_cast<std::size_t>(file.size_bytes()), '\0');
  file.read(0, text);
  try {
    const Json root = Json::parse(text);
    return Reader(root).read();
  } catch (const nlohmann::json::exception& error) {
    throw fail(fmt::format("not JSON, or cut short: {}", error.what()));
  } catch (const DataError& error) {
    throw fail(error.what());
  }
}

}  // namespace tessera::data

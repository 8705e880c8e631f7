// tokenizer.json: Tokenizer::save and Tokenizer::load. The format is described in docs/data.md.

#include <fmt/format.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "data/atomic_file.h"
#include "data/byte_characters.h"
#include "data/json_depth.h"
#include "data/text_file.h"
#include "data/tokenizer.h"
#include "data/tokenizer_formats.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

using Json = nlohmann::json;  // not ordered_json, whose objects take O(n²) to fill

constexpr std::string_view kFormat = "tessera-tokenizer";
constexpr int kVersion = 2;  // 1: of tokenizers that were trained here
constexpr std::int64_t kMostFileBytes = 256 << 20;

class Reader {
 public:
  explicit Reader(const Json& root) : root_(root) {}

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
    if (version.get<std::uint64_t>() >= 2) read_rules(vocabulary);

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

  void read_tokens(Vocabulary& vocabulary) {
    for (const Json& token : field("tokens", Json::value_t::array)) {
      const auto id = static_cast<std::int32_t>(vocabulary.tokens.size());
      if (!token.is_string())
        throw DataError(fmt::format("token {} is {}, not a string", id, token.type_name()));
      const auto& characters = token.get_ref<const std::string&>();
      vocabulary.tokens.push_back(bytes_.to_bytes(characters, id));
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

  // What a tokenizer from elsewhere has besides.
  void read_rules(Vocabulary& vocabulary) const {
    vocabulary.pattern = field("pattern", Json::value_t::string).get<std::string>();
    vocabulary.whole_pieces_first = field("whole_pieces_first", Json::value_t::boolean).get<bool>();
    for (const Json& added : field("added", Json::value_t::array)) {
      vocabulary.added.push_back({.id = added.at(0).get<std::int32_t>(),
                                  .takes_left_space = added.at(1).get<bool>(),
                                  .takes_right_space = added.at(2).get<bool>(),
                                  .after_others = added.size() > 3 && added.at(3).get<bool>()});
    }
    vocabulary.before_text = field("before_text", Json::value_t::array).get<std::vector<std::int32_t>>();
    vocabulary.after_text = field("after_text", Json::value_t::array).get<std::vector<std::int32_t>>();
  }

  const Json& root_;
  const detail::ByteCharacters bytes_;
  std::unordered_map<std::string, std::int32_t> ids_;  // by characters
};

}  // namespace

void Tokenizer::save(const std::filesystem::path& folder) const {
  const detail::ByteCharacters bytes;
  nlohmann::ordered_json root;
  root["format"] = kFormat;
  const bool is_from_elsewhere = !vocabulary_.pattern.empty() || !vocabulary_.added.empty();
  root["version"] = is_from_elsewhere ? kVersion : 1;
  root["vocabulary_hash"] = fmt::format("{:016x}", vocabulary_hash_);
  if (vocabulary_.end_of_text) root["end_of_text"] = *vocabulary_.end_of_text;
  if (is_from_elsewhere) {
    root["pattern"] = vocabulary_.pattern;
    root["whole_pieces_first"] = vocabulary_.whole_pieces_first;
    root["added"] = Json::array();
    for (const AddedToken& added : vocabulary_.added) {
      root["added"].push_back({added.id, added.takes_left_space, added.takes_right_space});
      if (added.after_others) root["added"].back().push_back(true);
    }
    root["before_text"] = vocabulary_.before_text;
    root["after_text"] = vocabulary_.after_text;
  }
  std::vector<std::string> tokens;
  for (const std::string& token : vocabulary_.tokens) tokens.push_back(bytes.to_characters(token));
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

namespace {

DataError failure(const std::filesystem::path& path, const std::string& reason) {
  return DataError(fmt::format("tokenizer {}: {}", path.string(), reason));
}

std::string read_text(const std::filesystem::path& path) {
  const TextFile file("tokenizer", path);
  if (file.size_bytes() > kMostFileBytes) {
    throw failure(path, fmt::format("{} bytes are too many for a tokenizer (at most {})", file.size_bytes(),
                                    kMostFileBytes));
  }
  std::string text(static_cast<std::size_t>(file.size_bytes()), '\0');
  file.read(0, text);
  return text;
}

// GPT-2's own files, if `folder` has them: its vocabulary and its merges.
std::optional<std::pair<std::filesystem::path, std::filesystem::path>> gpt2_files(
    const std::filesystem::path& folder) {
  for (const auto& [encoder, merges] :
       {std::pair{"encoder.json", "vocab.bpe"}, {"vocab.json", "merges.txt"}}) {
    if (std::filesystem::exists(folder / encoder) && std::filesystem::exists(folder / merges))
      return std::pair{folder / encoder, folder / merges};
  }
  return std::nullopt;
}

Tokenizer parse(const std::filesystem::path& path, const std::function<Tokenizer(const Json& root)>& read) {
  const std::string text = read_text(path);
  if (detail::nests_too_deep(text)) throw failure(path, detail::too_deep());
  try {
    return read(Json::parse(text));
  } catch (const nlohmann::json::parse_error& error) {
    throw failure(path, fmt::format("not JSON, or cut short: {}", error.what()));
  } catch (const nlohmann::json::exception& error) {
    throw failure(path, fmt::format("not as it must be: {}", error.what()));
  }
}

}  // namespace

bool Tokenizer::is_in(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / kTokenizerFile) || gpt2_files(folder).has_value();
}

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  const std::filesystem::path file_path = is_folder ? path / kTokenizerFile : path;
  const auto with_path = [](const std::filesystem::path& of, const std::function<Tokenizer()>& make) {
    try {
      return make();
    } catch (const DataError& error) {
      throw failure(of, error.what());
    }
  };
  if (const auto files = is_folder && !std::filesystem::exists(file_path) ? gpt2_files(path) : std::nullopt) {
    const std::string merges = read_text(files->second);
    return parse(files->first, [&](const Json& encoder) {
      return with_path(files->first, [&] { return Tokenizer(detail::gpt2_vocabulary(encoder, merges)); });
    });
  }
  if (is_folder && !std::filesystem::exists(file_path)) {
    throw failure(path, std::filesystem::exists(path / "tokenizer.model")
                            ? "holds SentencePiece's tokenizer.model, which is not known here, and no "
                              "tokenizer.json; only byte-level BPE is"
                            : "holds no tokenizer: no tokenizer.json, nor GPT-2's encoder.json and vocab.bpe "
                              "(vocab.json and merges.txt)");
  }
  return parse(file_path, [&](const Json& root) {
    return with_path(file_path, [&] {
      if (detail::is_hugging_face_tokenizer(root)) return Tokenizer(detail::hugging_face_vocabulary(root));
      return Reader(root).read();
    });
  });
}

}  // namespace tessera::data

// Tokenizers of others: Hugging Face's tokenizer.json, and the files that GPT-2 came with.

#include "data/tokenizer_hugging_face.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>

#include "data/atomic_file.h"
#include "data/byte_characters.h"
#include "data/pre_tokenizer.h"
#include "data/tokenizer_formats.h"
#include "kernels/error.h"

namespace tessera::data {
namespace detail {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMostTokens = 1 << 24;

// Null if it is not there, as a key that is null.
Json find(const Json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found == object.end() ? Json() : *found;
}

bool is_set(const Json& object, const char* key) {
  const Json value = find(object, key);
  return !value.is_null() && value != false && value != "" && value != 0.0;
}

std::string text_of(const Json& object, const char* key) {
  const Json value = find(object, key);
  if (!value.is_string()) throw DataError(fmt::format("\"{}\" is {}, not a text", key, value.type_name()));
  return value.get<std::string>();
}

std::int32_t id_of(const Json& value, std::string_view token) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kMostTokens)
    throw DataError(fmt::format("the id of '{}' is {}, not a number below 2^24", token, value.dump()));
  return value.get<std::int32_t>();
}

// Puts a vocabulary together from an object of tokens, added tokens and merges.
class Builder {
 public:
  /// Of this object of tokens, and as many others at most.
  Builder(const Json& object, std::size_t others) : most_tokens_(object.size() + others) {
    if (!object.is_object() || object.empty()) throw DataError("there is no object of tokens and their ids");
  }

  void add_token(std::int32_t id, std::string text) {
    const auto index = static_cast<std::size_t>(id);
    if (index >= most_tokens_) {  // before memory is made for all ids below
      throw DataError(fmt::format("the token '{}' has the id {}, but of {} tokens: ids must have no gaps",
                                  text, id, most_tokens_));
    }
    if (index >= vocabulary.tokens.size()) {
      vocabulary.tokens.resize(index + 1);
      is_there_.resize(index + 1);
    }
    if (is_there_[index])
      throw DataError(
          fmt::format("the tokens '{}' and '{}' have the id {}", vocabulary.tokens[index], text, id));
    is_there_[index] = true;
    vocabulary.tokens[index] = std::move(text);
  }

  void add_special(const AddedToken& added, const std::string& text) {
    add_token(added.id, text);
    vocabulary.added.push_back(added);
    if (text == kEndOfText || text == "<|end_of_text|>") vocabulary.end_of_text = added.id;
  }

  // Those that are not added: {"Ġthe": 262, ...}
  void add_vocabulary(const Json& object) {
    std::vector<bool> is_added = is_there_;
    for (const auto& [characters, value] : object.items()) {
      const std::int32_t id = id_of(value, characters);
      const auto index = static_cast<std::size_t>(id);
      ids_.emplace(characters, id);
      if (index < is_added.size() && is_added[index]) {
        if (vocabulary.tokens[index] != characters)
          throw DataError(fmt::format("the tokens '{}' and '{}' have the id {}", vocabulary.tokens[index],
                                      characters, id));
        continue;
      }
      add_token(id, bytes_.to_bytes(characters, id));
    }
  }

  void add_merge(const std::string& left, const std::string& right) {
    const auto l = ids_.find(left), r = ids_.find(right);
    if (l == ids_.end() || r == ids_.end()) {
      throw DataError(fmt::format("merge {} ('{}' and '{}') joins what are no tokens",
                                  vocabulary.merges.size(), left, right));
    }
    vocabulary.merges.emplace_back(l->second, r->second);
  }
  // "Ġt he"
  void add_merge(std::string_view text) {
    const std::size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
      throw DataError(fmt::format("merge {} ('{}') is not two tokens", vocabulary.merges.size(), text));
    add_merge(std::string(text.substr(0, space)), std::string(text.substr(space + 1)));
  }

  Vocabulary take() {
    const auto gap = std::ranges::find(is_there_, false);
    if (gap != is_there_.end())
      throw DataError(
          fmt::format("no token has the id {}, but some have higher ones", gap - is_there_.begin()));
    return std::move(vocabulary);
  }

  Vocabulary vocabulary;

 private:
  std::size_t most_tokens_;
  ByteCharacters bytes_;
  std::vector<bool> is_there_;
  std::unordered_map<std::string, std::int32_t> ids_;  // by characters
};

void add_added_tokens(const Json& list, Builder& builder) {
  if (list.is_null()) return;
  if (!list.is_array()) throw DataError("\"added_tokens\" is not a list");
  for (const Json& token : list) {
    const std::string text = text_of(token, "content");
    if (is_set(token, "single_word"))
      throw DataError(
          fmt::format("the added token '{}' counts as a whole word alone (single_word), which "
                      "is not known here",
                      text));
    builder.add_special({.id = id_of(find(token, "id"), text),
                         .takes_left_space = is_set(token, "lstrip"),
                         .takes_right_space = is_set(token, "rstrip"),
                         .after_others = is_set(token, "normalized")},
                        text);
  }
}

// One Split, ByteLevel, or both in a sequence.
std::string pattern_of(const Json& pre_tokenizer) {
  std::vector<Json> parts;
  if (find(pre_tokenizer, "type") == "Sequence") {
    const Json list = find(pre_tokenizer, "pretokenizers");
    if (!list.is_array()) throw DataError("the sequence of pre-tokenizers is not a list");
    parts.assign(list.begin(), list.end());
  } else {
    parts.push_back(pre_tokenizer);
  }
  std::string pattern;
  bool is_byte_level = false;
  for (const Json& part : parts) {
    const std::string type = text_of(part, "type");
    if (is_byte_level) throw DataError(fmt::format("the pre-tokenizer {} stands behind ByteLevel", type));
    if (type == "ByteLevel") {
      is_byte_level = true;
      if (is_set(part, "add_prefix_space"))
        throw DataError(
            "its pre-tokenizer puts a space before each text (add_prefix_space); set that to false");
      const Json use_regex = find(part, "use_regex");  // older files have no such key, and use it
      if (use_regex.is_null() || use_regex == true) {
        if (!pattern.empty()) throw DataError("two patterns, one behind the other, are not known here");
        pattern = kGpt2Pattern;
      }
      continue;
    }
    const std::string behavior = type == "Split" ? text_of(part, "behavior") : "";
    const bool keeps_matches = behavior == "Isolated" || (behavior == "Removed" && is_set(part, "invert"));
    if (!keeps_matches || !pattern.empty())
      throw DataError(
          fmt::format("the pre-tokenizer {}{}{} is not known here; what is: one Split whose matches are "
                      "pieces, ByteLevel, or both",
                      type, behavior.empty() ? "" : " ", behavior));
    pattern = text_of(find(part, "pattern"), "Regex");
    if (pattern.empty()) throw DataError("the pattern of its pre-tokenizer is empty");
  }
  if (!is_byte_level || pattern.empty())
    throw DataError("its pre-tokenizer is not byte-level; only byte-level BPE is known here");
  return pattern;
}

// "<|begin_of_text|>" before and what else stands around a text.
void add_frame(const Json& processor, Vocabulary& vocabulary) {
  const std::string type = processor.is_null() ? "ByteLevel" : text_of(processor, "type");
  if (type == "ByteLevel") return;  // moves offsets, which we have not
  if (type == "Sequence") {
    for (const Json& part : find(processor, "processors")) add_frame(part, vocabulary);
    return;
  }
  if (!vocabulary.before_text.empty() || !vocabulary.after_text.empty())
    throw DataError(fmt::format("the post-processor {} puts a frame around another", type));
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    vocabulary.before_text.push_back(find(processor, "cls").at(1).get<std::int32_t>());
    vocabulary.after_text.push_back(find(processor, "sep").at(1).get<std::int32_t>());
    return;
  }
  if (type != "TemplateProcessing")
    throw DataError(fmt::format("the post-processor {} is not known here", type));
  std::vector<std::int32_t>* side = &vocabulary.before_text;
  int texts = 0;
  for (const Json& part : find(processor, "single")) {
    if (part.contains("Sequence")) {
      side = &vocabulary.after_text;
      ++texts;
      continue;
    }
    const std::string name = part.at("SpecialToken").at("id").get<std::string>();
    const Json special = find(processor, "special_tokens");
    for (const Json& id : special.at(name).at("ids")) side->push_back(id_of(id, name));
  }
  if (texts != 1) throw DataError(fmt::format("its template has the text {} times, not once", texts));
}

}  // namespace

bool is_hugging_face_tokenizer(const Json& root) {
  return root.is_object() && root.contains("model") && !root.contains("format");
}

Vocabulary hugging_face_vocabulary(const Json& root) {
  const Json model = find(root, "model");
  // Files of before 2020 have no type.
  if (const Json type = find(model, "type"); !type.is_null() && type != "BPE")
    throw DataError(fmt::format("its model is {}; only byte-level BPE is known here", type.dump()));
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    if (is_set(model, key))
      throw DataError(
          fmt::format("its model has \"{}\": {}, which is not known here", key, find(model, key).dump()));
  }
  if (const Json normalizer = find(root, "normalizer"); !normalizer.is_null()) {
    const bool is_empty = find(normalizer, "type") == "Sequence" && find(normalizer, "normalizers").empty();
    if (!is_empty)
      throw DataError(
          fmt::format("it changes texts before it cuts them (normalizer {}), which is not known "
                      "here",
                      find(normalizer, "type").dump()));
  }
  const Json added = find(root, "added_tokens"), vocab = find(model, "vocab");
  Builder builder(vocab, added.size());
  add_added_tokens(added, builder);
  builder.add_vocabulary(vocab);
  const Json merges = find(model, "merges");
  if (!merges.is_array()) throw DataError("\"merges\" is not a list");
  for (const Json& merge : merges) {
    if (merge.is_string()) {
      builder.add_merge(merge.get_ref<const std::string&>());
    } else {
      builder.add_merge(merge.at(0).get<std::string>(), merge.at(1).get<std::string>());
    }
  }
  Vocabulary vocabulary = builder.take();
  vocabulary.pattern = pattern_of(find(root, "pre_tokenizer"));
  vocabulary.whole_pieces_first = is_set(model, "ignore_merges");
  add_frame(find(root, "post_processor"), vocabulary);
  return vocabulary;
}

Vocabulary gpt2_vocabulary(const Json& encoder, std::string_view merges) {
  Builder builder(encoder, 0);
  if (const Json end = find(encoder, kEndOfText.data()); !end.is_null())
    builder.add_special({.id = id_of(end, kEndOfText)}, std::string(kEndOfText));
  builder.add_vocabulary(encoder);
  bool is_first = true;
  while (!merges.empty()) {
    std::string_view line = merges.substr(0, merges.find('\n'));
    merges.remove_prefix(std::min(line.size() + 1, merges.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    const bool is_version = is_first && line.starts_with("#version");
    is_first = false;
    if (!is_version && !line.empty()) builder.add_merge(line);
  }
  Vocabulary vocabulary = builder.take();
  vocabulary.pattern = kGpt2Pattern;
  return vocabulary;
}

}  // namespace detail

// --- Writing -----------------------------------------------------------------------------------------------

namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson post_processor(const Vocabulary& vocabulary) {
  const OrderedJson byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", false}, {"use_regex", true}};
  if (vocabulary.before_text.empty() && vocabulary.after_text.empty()) return byte_level;
  OrderedJson special = OrderedJson::object();
  const auto parts = [&](const std::vector<std::int32_t>& ids) {
    OrderedJson list = OrderedJson::array();
    for (const std::int32_t id : ids) {
      const std::string& token = vocabulary.tokens[static_cast<std::size_t>(id)];
      special[token] = {{"id", token}, {"ids", {id}}, {"tokens", {token}}};
      list.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    }
    return list;
  };
  const auto sequence = [](const char* name, int type) {
    return OrderedJson{{"Sequence", {{"id", name}, {"type_id", type}}}};
  };
  OrderedJson single = parts(vocabulary.before_text);
  single.push_back(sequence("A", 0));
  for (const OrderedJson& part : parts(vocabulary.after_text)) single.push_back(part);
  OrderedJson pair = single;
  pair.push_back(sequence("B", 1));
  return {
      {"type", "Sequence"},
      {"processors",
       {byte_level,
        {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}}}}};
}

}  // namespace

void save_hugging_face_tokenizer(const std::filesystem::path& folder, const Tokenizer& tokenizer) {
  const Vocabulary& vocabulary = tokenizer.vocabulary();
  const detail::ByteCharacters bytes;
  std::vector<AddedToken> added = vocabulary.added;
  const auto is_added = [&added](std::int32_t id) {
    return std::ranges::find(added, id, &AddedToken::id) != added.end();
  };
  if (vocabulary.end_of_text && !is_added(*vocabulary.end_of_text))
    added.push_back({.id = *vocabulary.end_of_text});
  std::ranges::sort(added, {}, &AddedToken::id);
  std::vector<bool> merges_to(vocabulary.tokens.size(), true);

  OrderedJson added_tokens = OrderedJson::array();
  for (const AddedToken& token : added) {
    merges_to[static_cast<std::size_t>(token.id)] = false;
    added_tokens.push_back({{"id", token.id},
                            {"content", vocabulary.tokens[static_cast<std::size_t>(token.id)]},
                            {"single_word", false},
                            {"lstrip", token.takes_left_space},
                            {"rstrip", token.takes_right_space},
                            {"normalized", token.after_others},
                            {"special", true}});
  }
  // Text, not an object of OrderedJson, which would compare each new key with all before it.
  std::string vocab, merges;
  std::vector<std::string> characters;
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    characters.push_back(bytes.to_characters(vocabulary.tokens[id]));
    if (!merges_to[id]) continue;
    vocab +=
        fmt::format("{}\n      {}: {}", vocab.empty() ? "" : ",", OrderedJson(characters[id]).dump(), id);
  }
  for (const auto& [left, right] : vocabulary.merges) {
    const OrderedJson merge = {characters[static_cast<std::size_t>(left)],
                               characters[static_cast<std::size_t>(right)]};
    merges += fmt::format("{}\n      {}", merges.empty() ? "" : ",", merge.dump());
  }
  const std::string pattern = vocabulary.pattern.empty() ? pre_token_pattern() : vocabulary.pattern;
  const OrderedJson pre_tokenizer = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}}}};
  const OrderedJson decoder = {
      {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};

  create_folder(folder);
  AtomicFile file(folder / kTokenizerFile);
  file.write(fmt::format(
      R"({{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": {},
  "normalizer": null,
  "pre_tokenizer": {},
  "post_processor": {},
  "decoder": {},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": {},
    "vocab": {{{}
    }},
    "merges": [{}
    ]
  }}
}}
)",
      added_tokens.dump(), pre_tokenizer.dump(), post_processor(vocabulary).dump(), decoder.dump(),
      vocabulary.whole_pieces_first, vocab, merges));
  file.commit();

  OrderedJson config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                        {"clean_up_tokenization_spaces", false}};
  if (vocabulary.end_of_text)
    config["eos_token"] = vocabulary.tokens[static_cast<std::size_t>(*vocabulary.end_of_text)];
  if (!vocabulary.before_text.empty())
    config["bos_token"] = vocabulary.tokens[static_cast<std::size_t>(vocabulary.before_text[0])];
  AtomicFile config_file(folder / "tokenizer_config.json");
  config_file.write(config.dump(2) + "\n");
  config_file.commit();
}

}  // namespace tessera::data

#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::dist {

/// A JSON object of settings, read key by key. Whoever reads a key makes it known; what nobody read is a
/// user's mistake, and `refuse_unknown` names the key that was meant: one that `explain` was told, the same
/// key in the section where somebody did read it, or one that is spelled nearly so.
///
/// Integers may be written as 5e8. A key whose value is "auto" or null reads as absent: the program resolves
/// it. A key that is given twice is refused.
///
/// Errors    ConfigError with file, key and what was expected.
/// Example   auto file = dist::ConfigFile::load("config.json");
///           auto batch = file.integer("train_batch_size").value_or(16);
///           auto lr = file.section("optimizer").section("params").number("lr");
///           file.refuse_unknown();
class ConfigFile {
 public:
  /// An object without keys.
  ConfigFile();
  [[nodiscard]] static ConfigFile load(const std::filesystem::path& path);
  /// `origin` stands for the file in messages.
  [[nodiscard]] static ConfigFile parse(const std::string& json, const std::string& origin);

  [[nodiscard]] std::optional<std::int64_t> integer(const std::string& key);
  [[nodiscard]] std::optional<double> number(const std::string& key);
  [[nodiscard]] std::optional<bool> boolean(const std::string& key);
  [[nodiscard]] std::optional<std::string> text(const std::string& key);
  [[nodiscard]] std::optional<std::vector<double>> numbers(const std::string& key);
  /// Any value, as JSON: `5`, `true`, `"text"`.
  [[nodiscard]] std::optional<std::string> json(const std::string& key);
  /// The object under `key`; one without keys if there is none. Readers that ask for the same section share
  /// what is known of it.
  [[nodiscard]] ConfigFile section(const std::string& key);
  [[nodiscard]] bool contains(const std::string& key) const;
  /// Those of this object, in the order of the file; asking makes none known.
  [[nodiscard]] std::vector<std::string> keys() const;

  /// Throws unless every key of this object and of the sections taken from it was read. `reason`, if there is
  /// one, is given in place of the nearest key.
  void refuse_unknown(std::string_view reason = {}) const;
  /// For a key of this object that nobody reads: what its user is told, as "write pipeline.schedule".
  void explain(const std::string& key, const std::string& advice);
  /// Makes all keys known that are there.
  void ignore_rest();
  /// Throws: place, key, its value, and the reason.
  [[noreturn]] void refuse(const std::string& key, std::string_view reason) const;
  /// The whole object as JSON text.
  [[nodiscard]] std::string dump() const;

 private:
  struct Object;
  explicit ConfigFile(std::shared_ptr<Object> object);
  void refuse_unknown(const Object& root, std::string_view reason) const;
  std::shared_ptr<Object> object_;
};

}  // namespace tessera::dist

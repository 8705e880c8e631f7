#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "data/safetensors.h"
#include "tests/data/temporary_folder.h"
#include "tests/examples/child.h"
#include "tests/largest_difference.h"

#ifndef TESSERA_MPIEXEC
#define TESSERA_MPIEXEC ""
#endif

namespace tessera::programs {

using data::read_file;
using data::write_file;

/// "--a 1 --b" → {"--a", "1", "--b"}.
inline std::vector<std::string> words(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

/// Numbered words in an order that repeats late: a model finds something to learn, and every run the same.
inline std::string sample_text(int num_words = 3000) {
  constexpr const char* kWords[] = {"and", "the", "lord",   "said",  "unto", "him",
                                    "in",  "day", "people", "house", "made"};
  std::string text;
  unsigned state = 1;
  for (int i = 0; i < num_words; ++i) {
    state = state * 1103515245u + 12345u;
    text += kWords[(state >> 16) % std::size(kWords)];
    text += i % 9 == 8 ? '\n' : ' ';
  }
  return text;
}

/// Where the tests run programs: a folder with a text, and `data`, which gpt2_prepare made of it.
class Workplace : public ::testing::Test {
 protected:
  static constexpr const char* kModel = "layers=2,heads=2,width=16,context=16";

  void SetUp() override {
    // Programs and tests land in the same folder.
    programs_ = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    if (!std::filesystem::exists(programs_ / "gpt2_train"))
      GTEST_SKIP() << "examples are not built: " << programs_;
    write_file(folder_ / "text", sample_text());
    const Outcome prepared = run("gpt2_prepare --text text --vocab 290 --out data");
    ASSERT_EQ(prepared.status, 0) << prepared.all();
  }

  /// The words of a command line; the program by its full path, mpiexec by the one that the build found.
  [[nodiscard]] std::vector<std::string> command(const std::string& line) const {
    std::vector<std::string> result = words(line);
    for (std::string& word : result) {
      if (word.starts_with("gpt2_") || word == "mlp" || word == "digits") word = (programs_ / word).string();
      if (word == "mpiexec") word = TESSERA_MPIEXEC;
    }
    return result;
  }
  [[nodiscard]] Child start(const std::string& line, Child::Options options = {}) const {
    options.folder = folder_.path();
    return Child(command(line), options);
  }
  [[nodiscard]] Outcome run(const std::string& line, const Child::Options& options = {}) const {
    Child child = start(line, options);
    return child.wait();
  }
  /// `gpt2_train` with a tiny model on one thread a rank; `launcher` may be "mpiexec -n 2".
  [[nodiscard]] static std::string train(const std::string& options, const std::string& launcher = "") {
    return launcher + " gpt2_train --data data --threads 1 --model " + kModel + " " + options;
  }
  [[nodiscard]] static bool has_mpi() { return std::string(TESSERA_MPIEXEC) != ""; }

  [[nodiscard]] std::vector<nlohmann::json> read_log(const std::string& name) const {
    std::vector<nlohmann::json> steps;
    std::ifstream in(folder_ / name);
    for (std::string line; std::getline(in, line);) steps.push_back(nlohmann::json::parse(line));
    return steps;
  }
  /// model.safetensors of the latest checkpoint.
  [[nodiscard]] NamedTensors read_weights(const std::string& run_folder) const {
    return data::SafetensorsFile::open(latest(run_folder) / "model.safetensors").read_all();
  }
  [[nodiscard]] std::filesystem::path latest(const std::string& run_folder) const {
    return folder_ / run_folder / words(read_file(folder_ / (run_folder + "/latest"))).at(0);
  }
  /// Every file below `name`, with its content.
  [[nodiscard]] std::map<std::string, std::string> contents(const std::string& name) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_ / name))
      if (entry.is_regular_file()) files[entry.path().string()] = read_file(entry.path());
    return files;
  }

  data::TemporaryFolder folder_;
  std::filesystem::path programs_;
};

/// Largest |a − b| over all weights, and the largest |a|, of two models with the same names.
struct Difference {
  double largest = 0.0, scale = 0.0;
};
inline Difference difference(const NamedTensors& a, const NamedTensors& b) {
  Difference result;
  EXPECT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    const auto x = a[i].second.to_vector<double>(), y = b[i].second.to_vector<double>();
    EXPECT_EQ(x.size(), y.size()) << a[i].first;
    for (std::size_t j = 0; j < std::min(x.size(), y.size()); ++j) {
      result.largest = std::max(result.largest, distance(x[j], y[j]));
      result.scale = std::max(result.scale, std::fabs(x[j]));
    }
  }
  return result;
}

}  // namespace tessera::programs

// A folder includes only what stands below it, third-party headers stay out of public headers, and tessera.h
// has every public header. The rules are checked on made-up trees first, then on the sources themselves.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace tessera {
namespace {

using Sources = std::map<std::string, std::string>;  // path from the root → text

// What a folder may include, itself aside: docs/decisions and DESIGN's picture of layers in one table.
const std::map<std::string, std::set<std::string>> kBelow = {
    {"kernels", {}},
    {"tensor", {"kernels"}},
    {"autograd", {"tensor", "kernels"}},
    {"nn", {"autograd", "tensor", "kernels"}},
    {"optim", {"autograd", "tensor", "kernels"}},
    {"data", {"autograd", "tensor", "kernels"}},
    {"dist", {"nn", "optim", "data", "autograd", "tensor", "kernels"}},
};

// Headers of the operating system and the compiler, which every build has.
const std::regex kSystemHeader(
    R"(sys/.*|unistd\.h|fcntl\.h|signal\.h|termios\.h|poll\.h|dlfcn\.h|\w*intrin\.h|cpuid\.h)");

std::string folder_of(const std::string& path) { return path.substr(0, path.find('/')); }
bool is_header(const std::string& path) { return path.ends_with(".h") || path.ends_with(".cuh"); }

struct Include {
  int line;
  std::string path;
  bool quoted;
};

std::vector<Include> includes(const std::string& text) {
  static const std::regex directive(R"re(^\s*#\s*include\s*(["<])([^">]+)[">])re");
  std::vector<Include> found;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::smatch match;
    if (std::regex_search(line, match, directive)) found.push_back({number, match[2], match[1] == "\""});
  }
  return found;
}

// "file:line: what is wrong", for every include that points upwards or sideways.
std::vector<std::string> layering_errors(const Sources& sources) {
  std::vector<std::string> errors;
  for (const auto& [path, text] : sources) {
    const auto below = kBelow.find(folder_of(path));
    if (below == kBelow.end()) continue;  // programs include what they like
    for (const Include& include : includes(text)) {
      if (!include.quoted) continue;
      const std::string folder = folder_of(include.path);
      if (folder == below->first || below->second.contains(folder)) continue;
      errors.push_back(
          fmt::format("{}:{}: {} may not include \"{}\"", path, include.line, below->first, include.path));
    }
  }
  return errors;
}

bool is_third_party(const Include& include) {
  const bool standard = include.path.find_first_of("./") == std::string::npos;
  return !include.quoted && !standard && !std::regex_match(include.path, kSystemHeader);
}

// Headers that a third-party header comes with, directly or through others; each with the place that brings
// it in.
std::map<std::string, std::string> headers_with_third_party(const Sources& sources) {
  std::map<std::string, std::string> tainted;
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [path, text] : sources) {
      if (!is_header(path) || tainted.contains(path)) continue;
      for (const Include& include : includes(text)) {
        if (!is_third_party(include) && !tainted.contains(include.path)) continue;
        tainted[path] = fmt::format("{}:{}: includes {}", path, include.line, include.path);
        changed = true;
        break;
      }
    }
  }
  return tainted;
}

// Such a header must be private: of its own folder's sources alone, and not next to the public ones.
std::vector<std::string> third_party_errors(const Sources& sources) {
  const auto tainted = headers_with_third_party(sources);
  std::vector<std::string> errors;
  for (const auto& [path, text] : sources) {
    const std::string folder = folder_of(path);
    if (folder == "tests" || folder == "bench") continue;
    for (const Include& include : includes(text)) {
      const auto found = tainted.find(include.path);
      if (found != tainted.end() && folder_of(found->first) != folder)
        errors.push_back(fmt::format("{}:{}: private header \"{}\" ({})", path, include.line, include.path,
                                     found->second));
    }
  }
  for (const auto& [path, place] : tainted) {
    const std::string folder = folder_of(path);
    if (!kBelow.contains(folder)) continue;
    bool only_sources = true;
    for (const auto& [user, text] : sources) {
      if (!is_header(user) || tainted.contains(user)) continue;
      for (const Include& include : includes(text)) only_sources = only_sources && include.path != path;
    }
    if (!only_sources) errors.push_back(place + " and is included by a public header");
  }
  return errors;
}

// What cmake/TesseraInstall.cmake leaves out: what devices and communicators are made of.
bool is_installed(const std::string& path) {
  static const std::regex left_out(R"(kernels/(cpu|meta)/.*|dist/(mpi_\w+|thread_board)\.h)");
  return path.ends_with(".h") && kBelow.contains(folder_of(path)) && !std::regex_match(path, left_out);
}

// Installed headers that a program does not get with tessera.h, and that don't say "Private to ...".
std::vector<std::string> public_headers_left_out(const Sources& sources) {
  std::set<std::string> reached;
  std::vector<std::string> next{"tessera.h"};
  while (!next.empty()) {
    const auto found = sources.find(next.back());
    next.pop_back();
    if (found == sources.end() || !reached.insert(found->first).second) continue;
    for (const Include& include : includes(found->second)) next.push_back(include.path);
  }
  std::vector<std::string> errors;
  for (const auto& [path, text] : sources) {
    if (!is_installed(path) || reached.contains(path) || text.find("Private to ") != std::string::npos)
      continue;
    errors.push_back(path + ": tessera.h does not include it, and it does not say \"Private to ...\"");
  }
  return errors;
}

std::string joined(const std::vector<std::string>& lines) {
  return fmt::format("{}", fmt::join(lines, "\n"));
}

// --- The rules, on trees made up for them

TEST(LayeringRule, FindsIncludesThatPointUpwardsOrSideways) {
  EXPECT_EQ(
      joined(layering_errors({
          {"tensor/tensor.h", "#pragma once\n#include \"kernels/view.h\"\n#include \"autograd/graph.h\"\n"},
          {"optim/adam.cpp", "#include \"optim/adam.h\"\n\n  #  include \"nn/module.h\"  // names\n"},
          {"nn/mlp.cpp", "// #include \"optim/adam.h\"\n#include <vector>\n#include \"autograd/ops.h\"\n"},
          {"dist/job.cpp", "#include \"nn/module.h\"\n#include \"examples/gpt2/options.h\"\n"},
          {"examples/a/main.cpp", "#include \"dist/job.h\"\n"},
          {"data/x.cpp", "#include \"x.h\"\n"},  // not by its path from the root
      })),
      "data/x.cpp:1: data may not include \"x.h\"\n"
      "dist/job.cpp:2: dist may not include \"examples/gpt2/options.h\"\n"
      "optim/adam.cpp:3: optim may not include \"nn/module.h\"\n"
      "tensor/tensor.h:3: tensor may not include \"autograd/graph.h\"");
}

TEST(LayeringRule, FindsThirdPartyHeadersThatLeakOut) {
  const Sources sources = {
      {"dist/mpi_requests.h", "#pragma once\n#include <mpi.h>\n#include <vector>\n#include <sys/mman.h>\n"},
      {"dist/communicator_mpi.cpp", "#include \"dist/mpi_requests.h\"\n#include <mpi.h>\n"},
      {"dist/communicator.h", "#include <string>\n"},
  };
  EXPECT_EQ(joined(third_party_errors(sources)), "");
  Sources leaking = sources;
  leaking["dist/communicator.h"] += "#include \"dist/mpi_requests.h\"\n";
  leaking["examples/main.cpp"] = "#include \"dist/communicator.h\"\n";
  const std::vector<std::string> errors = third_party_errors(leaking);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_EQ(errors[0],
            "examples/main.cpp:1: private header \"dist/communicator.h\" (dist/communicator.h:2: includes "
            "dist/mpi_requests.h)");
}

TEST(PublicHeaderRule, FindsWhatTesseraDoesNotInclude) {
  EXPECT_EQ(joined(public_headers_left_out({
                {"tessera.h", "#include \"dist/engine.h\"\n"},
                {"dist/engine.h", "#include \"dist/config.h\"\n"},
                {"dist/config.h", "#include <string>\n"},
                {"dist/zero.h", "#include \"dist/config.h\"\n"},
                {"dist/zero_state.h", "// Private to dist/: what Zero is made of.\n"},
                {"dist/mpi_requests.h", "#include <mpi.h>\n"},
                {"kernels/cpu/loop.h", "\n"},
                {"tests/dist/training.h", "\n"},
            })),
            "dist/zero.h: tessera.h does not include it, and it does not say \"Private to ...\"");
}

// --- The sources

Sources read_sources() {
  const std::filesystem::path root = TESSERA_SOURCE_DIR;
  Sources sources;
  const auto add = [&](const std::filesystem::path& file) {
    std::ifstream in(file);
    std::stringstream text;
    text << in.rdbuf();
    EXPECT_TRUE(in) << file;
    sources[file.lexically_relative(root).generic_string()] = text.str();
  };
  for (const char* folder :
       {"kernels", "tensor", "autograd", "nn", "optim", "data", "dist", "examples", "tests", "bench"}) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh")
        add(entry.path());
    }
  }
  if (std::filesystem::exists(root / "tessera.h")) add(root / "tessera.h");
  return sources;
}

class SourceTree : public testing::Test {
 protected:
  static const Sources& sources() {
    static const Sources all = read_sources();
    return all;
  }
};

TEST_F(SourceTree, WasFoundAndRead) {
  EXPECT_GT(sources().size(), 200u);
  EXPECT_TRUE(sources().contains("tensor/tensor.h"));
  EXPECT_TRUE(sources().contains("kernels/cpu/vector/tile.h"));
  for (const auto& [folder, below] : kBelow) {
    const bool found =
        std::ranges::any_of(sources(), [&](const auto& file) { return folder_of(file.first) == folder; });
    EXPECT_TRUE(found) << folder;
  }
}

TEST_F(SourceTree, EachFolderIncludesOnlyWhatStandsBelowIt) {
  EXPECT_EQ("", joined(layering_errors(sources())));
}

TEST_F(SourceTree, ThirdPartyHeadersStayInSourcesAndPrivateHeaders) {
  EXPECT_EQ("", joined(third_party_errors(sources())));
}

TEST_F(SourceTree, TesseraHasEveryPublicHeader) { EXPECT_EQ("", joined(public_headers_left_out(sources()))); }

// Kernels are below tensors: they see pointers and strides.
TEST_F(SourceTree, KernelsNeverNameATensor) {
  std::vector<std::string> errors;
  for (const auto& [path, text] : sources()) {
    if (folder_of(path) != "kernels") continue;
    if (std::regex_search(text, std::regex(R"(\b(const )?Tensor\s*&|\bTensor\s+\w+\s*[;=(])")))
      errors.push_back(path);
  }
  EXPECT_EQ("", joined(errors));
}

TEST_F(SourceTree, EveryHeaderIsGuardedByPragmaOnce) {
  std::vector<std::string> errors;
  for (const auto& [path, text] : sources()) {
    if (is_header(path) && !std::regex_search(text, std::regex("(^|\n)#pragma once\n")))
      errors.push_back(path);
  }
  EXPECT_EQ("", joined(errors));
}

// clang-format keeps code within the limit of .clang-format and leaves comments alone.
TEST_F(SourceTree, CommentsEndWithin110Columns) {
  std::vector<std::string> errors;
  for (const auto& [path, text] : sources()) {
    std::istringstream lines(text);
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
      ++number;
      const auto is_continuation_byte = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; };
      const auto columns =
          static_cast<std::int64_t>(line.size()) - std::ranges::count_if(line, is_continuation_byte);
      const bool is_comment =
          line.substr(std::min(line.find_first_not_of(' '), line.size())).starts_with("//");
      if (is_comment && columns > 110)
        errors.push_back(fmt::format("{}:{}: {} columns", path, number, columns));
    }
  }
  EXPECT_EQ("", joined(errors));
}

}  // namespace
}  // namespace tessera

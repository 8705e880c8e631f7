// The commands of docs/examples.md work as they stand there, and then those of other pages that use its
// folder; those of docs/pipelines.md print what stands below them.

#include <regex>

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class Page : public Workplace {};

TEST_F(Page, OfTheExamplesAndThoseAfterItHaveCommandsThatWork) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI, and the page uses mpiexec";
  const std::filesystem::path source = TESSERA_SOURCE_DIR;
  std::filesystem::create_directories(folder_ / "build/release");
  std::filesystem::create_directory_symlink(programs_, folder_ / "build/release/bin");
  std::filesystem::create_directory_symlink(source / "docs", folder_ / "docs");
  std::string script = "set -e\nmpiexec() { " TESSERA_MPIEXEC " \"$@\"; }\n";
  int num_commands = 0;
  const auto add_commands = [&](const std::string& name, const std::string& with) {
    std::istringstream page(read_file(source / "docs" / name));
    for (std::string line; std::getline(page, line);) {
      if (!line.starts_with("    $ ") || line.find(with) == std::string::npos) continue;
      script += "echo '" + std::regex_replace(line.substr(4), std::regex("'"), "") + "' >&2\n" +
                line.substr(6) + "\n";
      ++num_commands;
    }
  };
  add_commands("examples.md", "");
  // What other pages do with the folder that this one made, one after the other.
  add_commands("config.md", "");
  for (const char* name : {"nn.md", "recomputation.md", "pipelines.md", "dry_run.md", "invariance.md"})
    add_commands(name, "gpt2_");
  EXPECT_GE(num_commands, 24);
  write_file(folder_ / "page.sh", script);
  Child child({"sh", "page.sh"}, {.folder = folder_.path()});
  const Outcome outcome = child.wait(240s);
  EXPECT_EQ(outcome.status, 0) << outcome.all();
  EXPECT_NE(outcome.out.find("resuming after step 60"), std::string::npos) << outcome.out;
  EXPECT_EQ(read_log("run/log.jsonl").size(), 80u);
  const std::regex hash("parameters have the hash ([0-9a-f]+)");
  const std::vector<std::string> hashes(
      std::sregex_token_iterator(outcome.out.begin(), outcome.out.end(), hash, 1), {});
  ASSERT_EQ(hashes.size(), 3u) << outcome.out;
  EXPECT_EQ(hashes[0], hashes[1]) << "docs/invariance.md says so";
  EXPECT_EQ(hashes[0], hashes[2]) << "docs/invariance.md says so";
}

// Commands of one line with their output below them, as far as it is indented.
struct Shown {
  std::string arguments, output;
};

std::vector<Shown> shown_commands(const std::string& page, const std::string& prompt) {
  std::vector<Shown> result;
  std::istringstream lines(page);
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(prompt)) {
      result.push_back({line.substr(prompt.size()), ""});
      inside = true;
    } else if (inside && line.starts_with("    ")) {
      result.back().output += line.substr(4) + "\n";
    } else {
      inside = false;
    }
  }
  return result;
}

TEST(PipelinePage, ShowsWhatItsCommandsPrint) {
  const std::filesystem::path program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "pipeline_schedules";
  const std::string page = read_file(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs/pipelines.md");
  const auto shown = shown_commands(page, "    $ build/release/bin/pipeline_schedules ");
  EXPECT_GE(shown.size(), 8u);
  for (const auto& [arguments, output] : shown) {
    std::vector<std::string> command{program};
    for (const std::string& word : words(arguments)) command.push_back(word);
    const Outcome outcome = Child(command, {}).wait();
    EXPECT_EQ(outcome.status, 0) << outcome.all();
    EXPECT_EQ(outcome.out, output) << arguments;
  }
}

TEST(PipelinePage, HasAProgramThatRefusesWhatItCannotDraw) {
  const std::filesystem::path program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "pipeline_schedules";
  const struct {
    const char *arguments, *message;
  } kMistakes[] = {{"--schedule zbv", "did you mean 'zb-v'?"},
                   {"--schedule interleaved --micro-batches 6", "4 ranks do not divide 6 micro-batches"},
                   {"--list 4", "ranks are 0 to 3"},
                   {"--stages 0", "expected a number from 1"},
                   {"--forward 0 --backward-input 0 --backward-weight 0", "takes no time"}};
  for (const auto& [arguments, message] : kMistakes) {
    std::vector<std::string> command{program};
    for (const std::string& word : words(arguments)) command.push_back(word);
    const Outcome outcome = Child(command, {}).wait();
    EXPECT_EQ(outcome.status, 2) << arguments;
    EXPECT_NE(outcome.err.find(message), std::string::npos) << outcome.all();
  }
}

}  // namespace
}  // namespace tessera::programs

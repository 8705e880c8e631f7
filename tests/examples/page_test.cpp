// The commands of docs/examples.md work as they stand there.

#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class Page : public Workplace {};

TEST_F(Page, OfTheExamplesHasCommandsThatWork) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI, and the page uses mpiexec";
  const std::filesystem::path source = TESSERA_SOURCE_DIR;
  std::filesystem::create_directories(folder_ / "build/release");
  std::filesystem::create_directory_symlink(programs_, folder_ / "build/release/bin");
  std::filesystem::create_directory_symlink(source / "docs", folder_ / "docs");
  std::string script = "set -e\nmpiexec() { " TESSERA_MPIEXEC " \"$@\"; }\n";
  int num_commands = 0;
  std::istringstream page(read_file(source / "docs/examples.md"));
  for (std::string line; std::getline(page, line);) {
    if (!line.starts_with("    $ ")) continue;
    script += "echo '" + line.substr(4) + "' >&2\n" + line.substr(6) + "\n";
    ++num_commands;
  }
  EXPECT_GE(num_commands, 12);
  write_file(folder_ / "page.sh", script);
  Child child({"sh", "page.sh"}, {.folder = folder_.path()});
  const Outcome outcome = child.wait(240s);
  EXPECT_EQ(outcome.status, 0) << outcome.all();
  EXPECT_NE(outcome.out.find("resuming after step 60"), std::string::npos) << outcome.out;
  EXPECT_EQ(read_log("run/log.jsonl").size(), 80u);
}

}  // namespace
}  // namespace tessera::programs

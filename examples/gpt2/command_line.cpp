#include "examples/gpt2/command_line.h"

#include <cstdio>
#include <sstream>
#include <string>

#include "dist/job.h"
#include "kernels/error.h"

namespace gpt2 {

void parse_or_exit(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    const int status = app.exit(error, out, err) == 0 ? 0 : 2;
    if (tessera::dist::launch().rank == 0) {
      std::fputs(out.str().c_str(), stdout);
      std::fputs(err.str().c_str(), stderr);
    }
    std::exit(status);
  }
}

int run_program(const char* name, const std::function<void()>& program) noexcept {
  const auto report = [name](const char* message) {
    std::fflush(stdout);
    std::fputs((std::string(name) + ": " + message + "\n").c_str(), stderr);
  };
  try {
    program();
    if (std::fflush(stdout) != 0) throw tessera::FileError("cannot write to standard output");
    return 0;
  } catch (const tessera::Error& error) {
    report(error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    report(error.what());
    return 1;
  }
}

}  // namespace gpt2

#include "examples/command_line.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "dist/job.h"
#include "dist/standard_streams.h"
#include "kernels/error.h"
#include "kernels/suggest.h"

namespace examples {

namespace {

// Of a flag that does not exist; CLI11 does not say what comes near. Other programs say more than ours where
// they say the same: --batch_size, --max-new-tokens.
std::string suggestion(const CLI::App& app) {
  std::vector<std::string> known;  // without "--"
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) known.push_back(name);
  for (std::string word : app.remaining()) {
    if (!word.starts_with("--")) continue;
    word.erase(0, 2);
    std::string near;
    for (const std::string& name : known)
      if ((word.starts_with(name) || word.ends_with(name)) && name.size() > near.size()) near = name;
    if (near.empty()) near = tessera::near_name(word, known);
    return near.empty() ? "" : "Did you mean --" + near + "?\n";
  }
  return "";
}

}  // namespace

void parse_or_exit(CLI::App& app, int argc, char** argv) {
  tessera::dist::reserve_standard_streams();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    const int status = app.exit(error, out, err) == 0 ? 0 : 2;
    if (status != 0) err << suggestion(app);  // a required flag may be missing because it was misspelled
    if (tessera::dist::launch().rank == 0) {
      std::fputs(out.str().c_str(), stdout);
      std::fputs(err.str().c_str(), stderr);
    }
    std::exit(status);
  }
}

CLI::Validator at_least(double least) {
  return CLI::Validator(
      [least](const std::string& text) {
        double value = 0.0;
        if (!CLI::detail::lexical_cast(text, value) || value >= least)
          return std::string();  // no number: CLI11 says so
        return fmt::format("expected a number from {}, got {}", least, text);
      },
      "");
}

CLI::Validator above_zero(double most) {
  return CLI::Validator(
      [most](const std::string& text) {
        double value = 0.0;
        if (!CLI::detail::lexical_cast(text, value) || (value > 0.0 && value <= most)) return std::string();
        return std::isinf(most) ? fmt::format("expected a number above 0, got {}", text)
                                : fmt::format("expected a number above 0 and up to {}, got {}", most, text);
      },
      "");
}

void require_printed() {
  // A flush says what became of the text since the last one alone.
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    throw tessera::FileError("cannot write to standard output");
}

int run_program(const char* name, const std::function<void()>& program, const char* hint) noexcept {
  const auto report = [name, hint](const char* message) {
    if (tessera::dist::launch().rank != 0) return;  // every process of an mpiexec comes here
    std::fflush(stdout);
    std::fputs((std::string(name) + ": " + message + "\n").c_str(), stderr);
    if (hint != nullptr) std::fputs((std::string(hint) + "\n").c_str(), stderr);
  };
  try {
    program();
    require_printed();
    return 0;
  } catch (const tessera::Error& error) {
    report(error.what());
    return error.exit_code();
  } catch (const std::exception& error) {
    report(error.what());
    return 1;
  }
}

}  // namespace examples

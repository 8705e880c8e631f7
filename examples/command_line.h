#pragma once

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>

namespace examples {

/// Parses a command line. For --help and for a mistake it prints what CLI11 has to say and ends the process,
/// with status 0 or 2; under mpiexec rank 0 alone prints. Before all that it reserves standard streams that
/// are closed (dist/standard_streams.h): programs open files before they call dist::run.
void parse_or_exit(CLI::App& app, int argc, char** argv);

/// For CLI::Option::check: a number from `least` on; CLI11's own ranges name the largest double in their
/// message.
[[nodiscard]] CLI::Validator at_least(double least);

/// For CLI::Option::check: a number above 0 and up to `most`.
[[nodiscard]] CLI::Validator above_zero(double most = std::numeric_limits<double>::infinity());

/// Throws FileError if something that was printed to standard output did not arrive there. For a program
/// whose result is what it prints; run_program calls it at the end.
void require_printed();

/// Runs what comes before the ranks and returns main's status: 0, 2 for a user's mistake, 1 for other
/// failures. Errors go to standard error, after the program's name, and `hint` below them, if there is one:
/// where to find more. Under mpiexec rank 0 alone prints.
[[nodiscard]] int run_program(const char* name, const std::function<void()>& program,
                              const char* hint = nullptr) noexcept;

}  // namespace examples

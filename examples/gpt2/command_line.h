#pragma once

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <exception>
#include <functional>

namespace gpt2 {

/// Parses a command line. For --help and for a mistake it prints what CLI11 has to say and ends the process, with status
/// 0 or 2; under mpiexec rank 0 alone prints.
void parse_or_exit(CLI::App& app, int argc, char** argv);

/// Runs a program without ranks and returns main's status: 0, 2 for a user's mistake, 1 for other failures. Errors go to
/// standard error, after the program's name.
[[nodiscard]] int run_program(const char* name, const std::function<void()>& program) noexcept;

}  // namespace gpt2

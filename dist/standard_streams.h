#pragma once

namespace tessera::dist {

/// Takes the numbers of standard input, output and error, where whoever started the process closed them
/// (`program >&-`), so that no file gets one: what is printed would go into a checkpoint or a log. Input is
/// then empty, and writing to output or error fails, as it did before.
///
/// dist::run calls it. A program that opens files before that, or without it, calls it first.
void reserve_standard_streams() noexcept;

}  // namespace tessera::dist

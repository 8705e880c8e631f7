#include "dist/schedule_chunks.h"

#include <fmt/format.h>

#include "kernels/error.h"

namespace tessera::dist::detail {
namespace {

PipelineSize with_chunks(std::string_view schedule, PipelineSize size, int chunks, const char* advice) {
  if (size.chunks != 0 && size.chunks != chunks) {
    throw ConfigError(fmt::format("schedule {}: {} on each rank, but {} were asked for; {}", schedule,
                                  chunks == 1 ? "1 chunk" : "2 chunks", size.chunks, advice));
  }
  size.chunks = chunks;
  return size;
}

}  // namespace

PipelineSize with_one_chunk(std::string_view schedule, PipelineSize size) {
  return with_chunks(schedule, size, 1, "interleaved takes any number");
}

PipelineSize with_two_chunks(std::string_view schedule, PipelineSize size) {
  return with_chunks(schedule, size, 2, "leave the number out, or take interleaved");
}

}  // namespace tessera::dist::detail

#pragma once

// What generators of schedules share. Private to dist/.

#include <string_view>

#include "dist/pipeline_schedule.h"

namespace tessera::dist::detail {

/// `size` with the chunks that the schedule has; ConfigError if others were asked for.
[[nodiscard]] PipelineSize with_one_chunk(std::string_view schedule, PipelineSize size);
[[nodiscard]] PipelineSize with_two_chunks(std::string_view schedule, PipelineSize size);

}  // namespace tessera::dist::detail

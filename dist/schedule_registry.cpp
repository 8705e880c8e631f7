#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <vector>

#include "dist/pipeline_generators.h"
#include "kernels/error.h"
#include "kernels/suggest.h"

namespace tessera::dist {
namespace {

struct Row {
  const char* name;
  Schedule (*generate)(const PipelineSize& size);
};

constexpr std::array<Row, 5> kRows{{{"gpipe", schedule_gpipe},
                                    {"1f1b", schedule_1f1b},
                                    {"interleaved", schedule_interleaved},
                                    {"zb-h1", schedule_zb_h1},
                                    {"zb-v", schedule_zb_v}}};

}  // namespace

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

Schedule make_schedule(std::string_view name, const PipelineSize& size) {
  for (const Row& row : kRows) {
    if (name == row.name) return row.generate(size);
  }
  const std::vector<std::string> names = schedule_names();
  std::string lower(name);
  std::ranges::transform(lower, lower.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const std::string near = near_name(lower, names);
  throw ConfigError(fmt::format("pipeline schedule '{}' is not known; {} are {}", name,
                                near.empty() ? "schedules" : "did you mean '" + near + "'? Schedules",
                                fmt::join(names, ", ")));
}

}  // namespace tessera::dist

#include "dist/non_finite_search.h"

#include <fmt/format.h>

#include <sstream>
#include <utility>
#include <vector>

#include "dist/gather_texts.h"
#include "kernels/kernels.h"
#include "nn/non_finite.h"

namespace tessera::dist {
namespace {

// What a rank knows of where values ceased to be finite, as text for the others.
struct Finding {
  int place = 0;  // 0: in a parameter, 1 + pp index: in an output there
  std::int64_t outputs_before = 0;
  std::string message;

  [[nodiscard]] std::string to_text() const {
    return fmt::format("{} {} {}", place, outputs_before, message);
  }
  static std::optional<Finding> from_text(const std::string& text) {
    Finding finding;
    std::istringstream in(text);
    if (!(in >> finding.place >> finding.outputs_before)) return std::nullopt;
    std::getline(in >> std::ws, finding.message);
    return finding;
  }
};

std::optional<std::string> non_finite_parameter(const NamedTensors& pieces) {
  for (const auto& [name, piece] : pieces) {
    if (piece.num_elements() == 0) continue;
    if (kernels::of(piece.device().type).reductions.first_non_finite(piece.view()) >= 0)
      return fmt::format("the first value that is not finite is in the parameter '{}'", name);
  }
  return std::nullopt;
}

// Of all ranks, the first pass whose loss was not finite, and that loss. A collective.
std::optional<std::pair<std::size_t, std::string>> first_pass(const std::optional<NonFinitePass>& own,
                                                              Communicator& world) {
  std::optional<std::pair<std::size_t, std::string>> first;
  for (const std::string& text : gather_texts(own ? fmt::format("{} {}", own->pass, own->loss) : "", world)) {
    std::size_t pass = 0;
    std::string loss;
    if (!(std::istringstream(text) >> pass >> loss) || (first && first->first <= pass)) continue;
    first = {pass, loss.find("nan") != std::string::npos ? "NaN" : "infinite"};
  }
  return first;
}

}  // namespace

std::optional<NonFiniteFinding> search_non_finite_together(nn::LanguageModel& model, const Mesh& mesh,
                                                           const NamedTensors& pieces,
                                                           const std::optional<NonFinitePass>& own,
                                                           const std::function<void(std::size_t pass)>& run) {
  const auto pass = first_pass(own, mesh.world());
  if (!pass) return std::nullopt;
  const auto found = nn::find_first_non_finite(model, [&] { run(pass->first); });
  Finding mine;
  if (const auto parameter = non_finite_parameter(pieces)) {
    mine.message = *parameter;
  } else if (found && (found->what == "output" || found->what.starts_with("parameter"))) {
    mine.place = found->what == "output" ? 1 + mesh.index(MeshAxis::kPp) : 0;
    mine.outputs_before = found->outputs_before;
    mine.message = found->message;
  }
  const std::vector<std::string> findings =
      gather_texts(mine.message.empty() ? "" : mine.to_text(), mesh.world());
  const auto order = [](const Finding& finding) { return std::pair(finding.place, finding.outputs_before); };
  std::optional<Finding> first;
  NonFiniteFinding result{.loss = pass->second};
  for (std::size_t rank = 0; rank < findings.size(); ++rank) {
    const auto other = Finding::from_text(findings[rank]);
    if (!other || (first && order(*first) <= order(*other))) continue;
    first = other;
    result.rank = static_cast<int>(rank);
    result.message = other->message;
  }
  return result;
}

}  // namespace tessera::dist

#include "tests/parity/replicas.h"

#include <fmt/format.h>

#include <cstddef>
#include <span>
#include <utility>

#include "data/hash.h"

namespace tessera::dist::parity {

void Replicas::add(const std::string& what, const Tensor& tensor) {
  const Tensor whole = tensor.detach().contiguous();
  const auto bytes = static_cast<std::size_t>(whole.num_elements()) * size_bytes(whole.dtype());
  data::detail::Fnv1a hash;
  hash.add(std::span(static_cast<const std::byte*>(whole.view().data), bytes));
  hashes_.emplace_back(what, hash.value());
}

void Replicas::add(const StepReport& report, double loss_scale) {
  const double figures[] = {report.loss,
                            report.grad_norm,
                            report.lr,
                            static_cast<double>(report.targets),
                            static_cast<double>(report.skipped),
                            loss_scale};
  data::detail::Fnv1a hash;
  hash.add(std::as_bytes(std::span(figures)));
  hashes_.emplace_back(fmt::format("the report of step {}", report.step), hash.value());
}

void Replicas::add(const CheckpointSources& sources) {
  for (const auto* part : {&sources.model, &sources.optimizer}) {
    for (const auto& info : part->tensors) add(info.name, part->get(info.name));
  }
}

std::string Replicas::first_difference(Communicator& world) const {
  std::vector<std::int64_t> mine;
  for (const auto& [what, hash] : hashes_) mine.push_back(static_cast<std::int64_t>(hash));
  std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(world.size()));
  world.all_gather(buffer_of(std::as_const(mine)), buffer_of(all));
  for (std::size_t i = 0; i < mine.size(); ++i) {
    for (std::size_t rank = 1; rank < static_cast<std::size_t>(world.size()); ++rank) {
      if (all[rank * mine.size() + i] != all[i])
        return fmt::format("{}: rank {} holds other bits than rank 0", hashes_[i].first, rank);
    }
  }
  return "";
}

}  // namespace tessera::dist::parity

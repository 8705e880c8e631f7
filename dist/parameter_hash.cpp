#include "dist/parameter_hash.h"

#include <span>

#include "data/hash.h"

namespace tessera::dist {
std::vector<std::pair<std::string, std::uint64_t>> parameter_hashes(Engine& engine) {
  std::vector<std::pair<std::string, std::uint64_t>> hashes;
  const CheckpointSources sources = engine.checkpoint_sources();
  for (const auto& info : sources.model.tensors) {
    const Tensor whole = sources.model.get(info.name).contiguous();
    data::detail::Fnv1a hash;
    hash.add({static_cast<const std::byte*>(whole.view().data),
              static_cast<std::size_t>(whole.num_elements()) * size_bytes(whole.dtype())});
    hashes.emplace_back(info.name, hash.value());
  }
  return hashes;
}

std::uint64_t parameter_hash(Engine& engine) {
  data::detail::Fnv1a all;
  for (const auto& [name, hash] : parameter_hashes(engine)) {
    all.add(std::as_bytes(std::span(name)));
    all.add(std::as_bytes(std::span(&hash, 1)));
  }
  return all.value();
}

}  // namespace tessera::dist

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace tessera::nn {

/// Keys and values of the positions that one attention layer has seen.
class LayerCache {
 public:
  /// `capacity`: positions at most.
  explicit LayerCache(std::int64_t capacity) : capacity_(capacity) {}

  struct KeysValues {
    Tensor keys, values;  ///< [B, S, G, K], views
  };

  /// Adds k, v [B, T, G, K] behind what is there; returns everything, laid out as they are. The first call
  /// fixes B, G, K and the dtype, and allocates for `capacity` positions.
  /// Errors   ShapeError for another shape, or more positions than fit; AutogradError if gradients would be
  ///          recorded: a cache belongs under NoGrad.
  KeysValues append(const Tensor& k, const Tensor& v);
  [[nodiscard]] std::int64_t length() const noexcept { return length_; }
  /// Forgets all positions but keeps the memory.
  void clear() noexcept { length_ = 0; }

 private:
  std::int64_t capacity_;
  std::int64_t length_ = 0;
  Tensor keys_, values_;  // [B, capacity, G, K]
};

/// The caches of all layers of a model: with them a new token costs O(T) instead of O(T²).
/// LanguageModel::logits takes one and is then given new tokens only.
///
/// Example   NoGrad no_grad;
///           KvCache cache = model.make_cache();
///           model.logits(prompt, &cache);              // [1, T] ids
///           model.logits(next_token, &cache);          // [1, 1] ids: position T
class KvCache {
 public:
  KvCache(std::int64_t layers, std::int64_t capacity)
      : layers_(static_cast<std::size_t>(layers), LayerCache(capacity)), capacity_(capacity) {}

  [[nodiscard]] LayerCache& layer(std::int64_t i) { return layers_.at(static_cast<std::size_t>(i)); }
  /// Positions held: the next token stands at this position. Of a model in stages, layers that are elsewhere
  /// hold none.
  [[nodiscard]] std::int64_t length() const noexcept {
    std::int64_t length = 0;
    for (const LayerCache& layer : layers_) length = std::max(length, layer.length());
    return length;
  }
  [[nodiscard]] std::int64_t capacity() const noexcept { return capacity_; }
  void clear() noexcept {
    for (LayerCache& layer : layers_) layer.clear();
  }

 private:
  std::vector<LayerCache> layers_;
  std::int64_t capacity_;
};

}  // namespace tessera::nn

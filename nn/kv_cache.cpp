#include "nn/kv_cache.h"

#include <fmt/format.h>

#include "kernels/error.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::nn {

LayerCache::KeysValues LayerCache::append(const Tensor& k, const Tensor& v) {
  if (detail::must_record(k) || detail::must_record(v)) {
    throw AutogradError("KvCache: gradients do not pass through a cache; generate under NoGrad");
  }
  if (!keys_.defined()) {
    const Shape shape{k.dim(0), capacity_, k.dim(2), k.dim(3)};
    keys_ = empty(shape, {.dtype = k.dtype(), .device = k.device()});
    values_ = empty_like(keys_);
  }
  Shape expected = keys_.shape();
  expected[1] = k.dim(1);
  if (k.shape() != expected || v.shape() != expected || length_ + k.dim(1) > capacity_) {
    throw ShapeError(fmt::format(
        "KvCache: it holds {} positions of at most {} and was made for {}; keys {} "
        "and values {} do not fit behind them",
        length_, capacity_, to_string(keys_.shape()), to_string(k.shape()), to_string(v.shape())));
  }
  const std::int64_t end = length_ + k.dim(1);
  keys_.slice(1, length_, end).copy_from(k);
  values_.slice(1, length_, end).copy_from(v);
  length_ = end;
  return {keys_.slice(1, 0, end).set_layout(k.layout()), values_.slice(1, 0, end).set_layout(v.layout())};
}

}  // namespace tessera::nn

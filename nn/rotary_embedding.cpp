#include "nn/rotary_embedding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/indexing.h"
#include "autograd/normalization.h"
#include "kernels/error.h"
#include "nn/token_positions.h"
#include "tensor/create.h"

namespace tessera::nn {

namespace {

double scaled(double frequency, const RotaryScaling& scaling) {
  if (scaling.factor == 1.0) return frequency;
  const double turns = static_cast<double>(scaling.context) * frequency / (2.0 * std::numbers::pi);
  const double kept = std::clamp((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0);
  return (1.0 - kept) * frequency / scaling.factor + kept * frequency;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(std::int64_t head_width, double base, const RotaryScaling& scaling)
    : head_width_(head_width), base_(base), scaling_(scaling) {
  if (head_width < 2 || head_width % 2 != 0) {
    throw ConfigError(fmt::format(
        "rotary embedding: channels are turned in pairs, so the head width must be even, but it is {}",
        head_width));
  }
  if (!(scaling.factor >= 1.0) || !(scaling.low < scaling.high) || scaling.context < 1) {
    throw ConfigError(fmt::format(
        "rotary embedding: scaling needs a factor from 1 on, low below high and a context, but they are {}, "
        "{}, {} and {}",
        scaling.factor, scaling.low, scaling.high, scaling.context));
  }
}

// Computed on the host in f64: an angle of 8192 in f32 would be off by 5e-4 already.
void RotaryEmbedding::make_tables(std::int64_t positions, DType dtype, Device device) {
  const CategoryScope category(MemoryCategory::kWorkspace);
  const std::int64_t pairs = head_width_ / 2;
  const Shape shape{positions, pairs};
  if (device == meta) {
    cosine_ = empty(shape, {.dtype = dtype, .device = meta});
    sine_ = empty(shape, {.dtype = dtype, .device = meta});
    return;
  }
  std::vector<double> frequencies, cosines, sines;
  for (std::int64_t k = 0; k < pairs; ++k) {
    const double exponent = -2.0 * static_cast<double>(k) / static_cast<double>(head_width_);
    frequencies.push_back(scaled(std::pow(base_, exponent), scaling_));
  }
  for (std::int64_t t = 0; t < positions; ++t) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(t) * frequency;
      cosines.push_back(std::cos(angle));
      sines.push_back(std::sin(angle));
    }
  }
  cosine_ = from_vector(cosines, shape).to(dtype);
  sine_ = from_vector(sines, shape).to(dtype);
}

// Tables of at least `positions` positions that serve x.
void RotaryEmbedding::ensure_tables(std::int64_t positions, const Tensor& x) {
  const DType dtype = accumulation_dtype(x.dtype());
  if (cosine_.defined() && cosine_.dim(0) >= positions && cosine_.dtype() == dtype &&
      cosine_.device() == x.device()) {
    return;
  }
  // At least double, so that generation makes them a few times and not for each token.
  const std::int64_t known = cosine_.defined() ? cosine_.dim(0) : 0;
  make_tables(known < positions ? std::max(positions, 2 * known) : known, dtype, x.device());
  chosen_cosine_ = chosen_sine_ = Tensor();
}

Tensor RotaryEmbedding::forward(const Tensor& x, std::int64_t first_position) {
  if (x.dims() != 4 || x.dim(3) != head_width_) {
    throw ShapeError(
        fmt::format("rotary embedding: x must be [B, T, H, {}], but it is {}", head_width_, describe(x)));
  }
  if (holds_part_of_tokens(x)) {
    const std::vector<std::int64_t> positions = token_indices(x, first_position).positions;
    ensure_tables(positions.empty() ? 0 : std::ranges::max(positions) + 1, x);
    if (positions != chosen_positions_ || !chosen_cosine_.defined()) {
      const CategoryScope category(MemoryCategory::kWorkspace);
      const Tensor ids = from_vector<std::int64_t>(positions).to(x.device());
      chosen_cosine_ = embedding(cosine_, ids);
      chosen_sine_ = embedding(sine_, ids);
      chosen_positions_ = positions;
    }
    return rotary(x, chosen_cosine_, chosen_sine_);
  }
  const std::int64_t end = first_position + x.dim(1);
  ensure_tables(end, x);
  return rotary(x, cosine_.slice(0, first_position, end), sine_.slice(0, first_position, end));
}

}  // namespace tessera::nn

// Rotary position embedding (Su et al., "RoFormer", 2021): head elements k and k + K/2 are the coordinates of
// a point, turned by the angle of position t and frequency k.   B batch, T time, H heads, K head width

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"
#include "kernels/cpu/vector/norms.h"

namespace tessera::kernels::TESSERA_ISA {
namespace {

template <class In>
void rotate(const In* x, const Compute<In>* cosine, const Compute<In>* sine, Compute<In> sign,
            std::int64_t half, In* y) {
  using T = Compute<In>;
  for_lanes<T>(
      half, [&](std::int64_t k, auto lanes) __attribute__((always_inline)) {
        const Lanes<T> c = load(cosine + k, lanes), s = sign * load(sine + k, lanes);
        const Lanes<T> x1 = load(x + k, lanes), x2 = load(x + half + k, lanes);
        store(x1 * c - x2 * s, y + k, lanes);
        store(x2 * c + x1 * s, y + half + k, lanes);
      });
}

}  // namespace

void rotary(const ConstView& x, const ConstView& cosine, const ConstView& sine, bool inverse, const View& y) {
  const std::int64_t time = x.shape[1], heads = x.shape[2], width = x.shape[3];
  if (x.num_elements() == 0) return;
  with_float_type(x.dtype, [&](auto tag) {
    using In = typename decltype(tag)::Type;
    using T = Compute<In>;
    parallel_for(
        x.shape[0] * time, larger(1, 8192 / (heads * width)), [&](std::int64_t begin, std::int64_t end) {
          for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t b = row / time, t = row % time;
            const T* c = static_cast<const T*>(cosine.data) + t * cosine.strides[0];
            const T* s = static_cast<const T*>(sine.data) + t * sine.strides[0];
            for (std::int64_t h = 0; h < heads; ++h) {
              rotate<In>(
                  static_cast<const In*>(x.data) + b * x.strides[0] + t * x.strides[1] + h * x.strides[2], c,
                  s, inverse ? T(-1) : T(1), width / 2,
                  static_cast<In*>(y.data) + b * y.strides[0] + t * y.strides[1] + h * y.strides[2]);
            }
          }
        });
  });
}

}  // namespace tessera::kernels::TESSERA_ISA

#pragma once

// Panels for register-blocked products: the elements that one step of a product reads lie side by side.

#include <cstdint>

#include "kernels/cpu/vector/lanes.h"

namespace tessera::kernels::TESSERA_ISA {

/// packed[r · Width + i] = x[i · line + r] for i, r < 4: one block of a transposition.
template <int Width, class T>
TESSERA_INLINE void transpose_4x4(const T* x, std::int64_t line, T* packed) {
  typedef T Quad __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  const Quad x0 = *reinterpret_cast<const Quad*>(x);
  const Quad x1 = *reinterpret_cast<const Quad*>(x + line);
  const Quad x2 = *reinterpret_cast<const Quad*>(x + 2 * line);
  const Quad x3 = *reinterpret_cast<const Quad*>(x + 3 * line);
  const Quad low01 = __builtin_shufflevector(x0, x1, 0, 4, 1, 5);
  const Quad low23 = __builtin_shufflevector(x2, x3, 0, 4, 1, 5);
  const Quad high01 = __builtin_shufflevector(x0, x1, 2, 6, 3, 7);
  const Quad high23 = __builtin_shufflevector(x2, x3, 2, 6, 3, 7);
  *reinterpret_cast<Quad*>(packed) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  *reinterpret_cast<Quad*>(packed + Width) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  *reinterpret_cast<Quad*>(packed + 2 * Width) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  *reinterpret_cast<Quad*>(packed + 3 * Width) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

/// Packs `width` (at most Width) lines of `depth` elements: packed[k·Width + i] = x[i·line + k·step], missing
/// lines 0.
template <int Width, class T, class In>
void pack_sliver(const In* x, std::int64_t width, std::int64_t depth, std::int64_t line, std::int64_t step,
                 T* packed) {
  std::int64_t k = 0;
  if (width == Width && line == 1) {
    for (; k < depth; ++k, x += step, packed += Width) {
      for (int i = 0; i < Width; ++i) packed[i] = widen(x[i]);
    }
    return;
  }
  if (width == Width && step == 1) {
    constexpr int kQuads = Width / 4 * 4;
    T widened[sizeof(In) == sizeof(T) ? 1 : kQuads * 8];
    for (; k + 8 <= depth; k += 8, packed += 8 * Width) {
      const T* source = nullptr;
      std::int64_t source_line = 8;
      if constexpr (sizeof(In) == sizeof(T)) {
        source = x + k;
        source_line = line;
      } else {
        for (int i = 0; i < kQuads; ++i) {
          for (int r = 0; r < 8; ++r) widened[i * 8 + r] = widen(x[i * line + k + r]);
        }
        source = widened;
      }
      for (int i = 0; i < kQuads; i += 4) {
        transpose_4x4<Width>(source + i * source_line, source_line, packed + i);
        transpose_4x4<Width>(source + i * source_line + 4, source_line, packed + 4 * Width + i);
      }
      for (int i = kQuads; i < Width; ++i) {
        for (int r = 0; r < 8; ++r) packed[r * Width + i] = widen(x[i * line + k + r]);
      }
    }
  }
  for (; k < depth; ++k, packed += Width) {
    for (std::int64_t i = 0; i < width; ++i) packed[i] = widen(x[i * line + k * step]);
    for (std::int64_t i = width; i < Width; ++i) packed[i] = T(0);
  }
}

}  // namespace tessera::kernels::TESSERA_ISA

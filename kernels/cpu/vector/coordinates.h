#pragma once

#include "kernels/cpu/loop.h"

namespace tessera::kernels::TESSERA_ISA {

/// Steps through a loop one element at a time and keeps the offset of one operand.
class Walker {
 public:
  TESSERA_INLINE Walker(const Loop& loop, int operand, std::int64_t position)
      : loop_(loop), strides_(loop.operands[operand].strides) {
    for (int d = loop.dims - 1; d >= 0; --d) {
      const std::int64_t quotient = d > 0 ? position / loop.shape[d] : 0;
      coordinates_[d] = position - quotient * loop.shape[d];
      offset_ += coordinates_[d] * strides_[d];
      position = quotient;
    }
  }

  [[nodiscard]] TESSERA_INLINE std::int64_t offset() const { return offset_; }

  TESSERA_INLINE void next() {
    int d = loop_.dims - 1;
    ++coordinates_[d];
    offset_ += strides_[d];
    for (; d > 0 && coordinates_[d] == loop_.shape[d]; --d) {
      offset_ += strides_[d - 1] - loop_.shape[d] * strides_[d];
      coordinates_[d] = 0;
      ++coordinates_[d - 1];
    }
  }

 private:
  const Loop& loop_;
  const std::int64_t* strides_;
  std::int64_t coordinates_[kMaxDims];
  std::int64_t offset_ = 0;
};

}  // namespace tessera::kernels::TESSERA_ISA

#pragma once

#include "kernels/cpu/parallel.h"

namespace tessera::kernels::TESSERA_ISA {

/// Cuts many tensors into chunks of at most `chunk_size` elements, so that one parallel loop goes over all of
/// them: a large tensor is shared among threads, many small ones cost no thread each. The cut is a function
/// of the sizes. `size_of(t)` is the number of elements of tensor t.
template <class SizeOf>
class Chunks {
 public:
  TESSERA_INLINE Chunks(std::int64_t num_tensors, std::int64_t chunk_size, const SizeOf& size_of)
      : num_tensors_(num_tensors), chunk_size_(chunk_size), size_of_(size_of) {
    for (std::int64_t t = 0; t < num_tensors; ++t) num_chunks_ += chunks_of(t);
  }

  [[nodiscard]] TESSERA_INLINE std::int64_t num_chunks() const { return num_chunks_; }

  /// Calls f(chunk, tensor, begin, end), in parallel, for each chunk: elements [begin, end) of a tensor.
  template <class F>
  TESSERA_INLINE void for_each(const F& f) const {
    parallel_for(num_chunks_, 1, [&](std::int64_t first, std::int64_t last) {
      std::int64_t tensor = 0, chunk_of_tensor = first;
      while (chunk_of_tensor >= chunks_of(tensor)) chunk_of_tensor -= chunks_of(tensor++);
      for (std::int64_t chunk = first; chunk < last; ++chunk) {
        const std::int64_t begin = chunk_of_tensor * chunk_size_;
        const std::int64_t size = size_of_(tensor);
        f(chunk, tensor, begin, begin + chunk_size_ < size ? begin + chunk_size_ : size);
        ++chunk_of_tensor;
        while (tensor < num_tensors_ && chunk_of_tensor >= chunks_of(tensor)) {
          chunk_of_tensor = 0;
          ++tensor;
        }
      }
    });
  }

 private:
  TESSERA_INLINE std::int64_t chunks_of(std::int64_t tensor) const {
    return (size_of_(tensor) + chunk_size_ - 1) / chunk_size_;
  }

  std::int64_t num_tensors_;
  std::int64_t chunk_size_;
  const SizeOf& size_of_;
  std::int64_t num_chunks_ = 0;
};

}  // namespace tessera::kernels::TESSERA_ISA

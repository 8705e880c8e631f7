#include "kernels/cpu/vector/indexing.h"

#include "kernels/cpu/index_errors.h"
#include "kernels/cpu/ordering.h"
#include "kernels/cpu/vector/families.h"
#include "kernels/cpu/vector/tile.h"

namespace tessera::kernels::TESSERA_ISA {

void check_indices(const char* operation, const char* what, const ConstView& indices, std::int64_t limit,
                   std::int64_t lowest) {
  const Loop loop = make_loop(LoopOrder::kRowMajor, indices);
  const std::uint64_t first = static_cast<std::uint64_t>(lowest);
  parallel_for(loop.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    TileInput<std::int64_t> input(loop, 0);
    std::int64_t position = begin;
    for_each_tile(loop, begin, end, [&](const Tile& tile) {
      const std::int64_t* values = input.load(tile);
      int outside = 0;
#pragma omp simd reduction(| : outside)
      for (std::int64_t i = 0; i < tile.size; ++i) {
        outside |= static_cast<std::uint64_t>(values[i]) - first >= static_cast<std::uint64_t>(limit) - first
                       ? 1
                       : 0;
      }
      for (std::int64_t i = 0; outside != 0 && i < tile.size; ++i) {
        if (values[i] < lowest || values[i] >= limit)
          throw_index_error(operation, what, values[i], position + i, limit);
      }
      position += tile.size;
    });
  });
}

namespace {

class CpuIndexing final : public Indexing {
 public:
  void embedding(const ConstView& table, const ConstView& ids, const View& y) const override {
    embedding_rows(table, ids, y);
  }
  void embedding_backward(const ConstView& dy, const ConstView& ids, const View& dtable) const override {
    embedding_backward_rows(dy, ids, dtable);
  }
  void gather(const ConstView& x, int dim, const ConstView& index, const View& y) const override {
    gather_elements(x, dim, index, y);
  }
  void scatter_add(const View& y, int dim, const ConstView& index, const ConstView& src) const override {
    scatter_add_elements(y, dim, index, src);
  }
  void top_k(const ConstView& x, std::int64_t k, const View& values, const View& indices) const override {
    top_k_rows(x, k, values, indices);
  }
  void sort(const ConstView& x, bool descending, const View& values, const View& indices) const override {
    sort_rows(x, descending, values, indices);
  }
};

constinit const CpuIndexing instance{};

}  // namespace

const Indexing& indexing() noexcept { return instance; }

}  // namespace tessera::kernels::TESSERA_ISA

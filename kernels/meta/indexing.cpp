#include <bit>

#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

/// Bytes of as many elements of `table` as `like` has: what indices pick, each pick counted.
std::int64_t picked_bytes(const ConstView& table, const ConstView& like) {
  return like.num_elements() * static_cast<std::int64_t>(size_bytes(table.dtype));
}

/// ⌈log₂ n⌉: rounds of a merge sort.
std::int64_t sort_rounds(std::int64_t n) {
  return n > 1 ? static_cast<std::int64_t>(std::bit_width(static_cast<std::uint64_t>(n - 1))) : 0;
}

class MetaIndexing final : public Indexing {
 public:
  // 0; of the table, the rows that are picked are read.
  void embedding(const ConstView& table, const ConstView& ids, const View& y) const override {
    Count().reads_bytes(picked_bytes(table, y)).reads(ids).writes(y);
  }

  // 1 per element of dy; of the table, the rows that are picked are read and written.
  void embedding_backward(const ConstView& dy, const ConstView& ids, const View& dtable) const override {
    const std::int64_t rows = picked_bytes(dtable, dy);
    Count().flops(dy.num_elements()).reads(dy).reads(ids).reads_bytes(rows).writes_bytes(rows);
  }

  // 0; of x, the elements that are picked are read.
  void gather(const ConstView& x, int /*dim*/, const ConstView& index, const View& y) const override {
    Count().reads_bytes(picked_bytes(x, y)).reads(index).writes(y);
  }

  // 1 per element of src; of y, the elements that are picked are read and written.
  void scatter_add(const View& y, int /*dim*/, const ConstView& index, const ConstView& src) const override {
    const std::int64_t picked = picked_bytes(y, src);
    Count()
        .flops(float_operations(y.dtype, src.num_elements()))
        .reads(src)
        .reads(index)
        .reads_bytes(picked)
        .writes_bytes(picked);
  }

  // One comparison per element: with the smallest of the k kept, which most elements do not reach.
  void top_k(const ConstView& x, std::int64_t /*k*/, const View& values, const View& indices) const override {
    Count().flops(float_operations(x.dtype, x.num_elements())).reads(x).writes(values).writes(indices);
  }

  // ⌈log₂ D⌉ comparisons per element, those of a merge sort.
  void sort(const ConstView& x, bool /*descending*/, const View& values, const View& indices) const override {
    const std::int64_t rounds = sort_rounds(x.shape[x.dims - 1]);
    Count()
        .flops(float_operations(x.dtype, rounds * x.num_elements()))
        .reads(x)
        .writes(values)
        .writes(indices);
  }
};

}  // namespace

const Indexing& indexing() noexcept {
  static const MetaIndexing family;
  return family;
}

}  // namespace tessera::kernels::meta_device

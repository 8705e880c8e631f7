// B samples, T tokens, N = B·T rows, I inputs and O outputs of this rank.

#include "dist/invariant_linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/invariant_tokens.h"
#include "kernels/error.h"
#include "kernels/kernels.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;

}  // namespace

int largest_leaf_ranks(std::int64_t most) noexcept {
  int largest = 1;
  for (const int ranks : kLeafRanks)
    if (ranks <= most) largest = ranks;
  return largest;
}

namespace {

std::vector<ContractionLeaves::RankCut> for_all_ranks(const Cut& cut) {
  std::vector<ContractionLeaves::RankCut> cuts;
  for (const int ranks : kLeafRanks) cuts.push_back({ranks, cut});
  return cuts;
}

}  // namespace

ContractionLeaves::ContractionLeaves(std::int64_t size, const Cut& cut)
    : ContractionLeaves(size, for_all_ranks(cut)) {}

ContractionLeaves::ContractionLeaves(std::int64_t size, std::vector<RankCut> cuts)
    : cuts_(std::move(cuts)), blocks_(cuts_.front().cut.blocks), block_size_(size / blocks_), bounds_{0} {
  for (const RankCut& each : cuts_) {
    for (int r = 0; r < each.ranks; ++r) bounds_.push_back(own_rows(each.ranks, r).end);
  }
  bounds_.push_back(block_size_);
  std::ranges::sort(bounds_);
  bounds_.erase(std::unique(bounds_.begin(), bounds_.end()), bounds_.end());
}

Range ContractionLeaves::own_rows(int num_ranks, int rank) const {
  if (num_ranks == 1) return {0, block_size_};
  const auto found = std::ranges::find(cuts_, num_ranks, &RankCut::ranks);
  if (found == cuts_.end()) throw IndexError(fmt::format("leaves: {} ranks make no cut here", num_ranks));
  const std::int64_t units = found->cut.units == 0 ? block_size_ : found->cut.units;
  const std::int64_t begin = shard_begin(units, num_ranks, rank);
  const std::int64_t unit = block_size_ / units;
  return {begin * unit, (begin + shard_size(units, num_ranks, rank)) * unit};
}

LeafOwners ContractionLeaves::owners(int num_ranks) const {
  LeafOwners owners{.num_leaves = count(), .runs = {}};
  const auto leaf_at = [this](std::int64_t row) {
    return static_cast<std::int64_t>(std::ranges::lower_bound(bounds_, row) - bounds_.begin());
  };
  for (int r = 0; r < num_ranks; ++r) {
    const Range own = own_rows(num_ranks, r);
    owners.runs.push_back({leaf_at(own.begin), leaf_at(own.end)});
  }
  return owners;
}

std::vector<Range> ContractionLeaves::in_part(std::int64_t leaf, int num_ranks, int rank) const {
  const auto i = static_cast<std::size_t>(leaf);
  const Range own = own_rows(num_ranks, rank);
  std::vector<Range> ranges;
  for (std::int64_t block = 0; block < blocks_; ++block) {
    const std::int64_t first = block * (own.end - own.begin) - own.begin;
    ranges.push_back({first + bounds_[i], first + bounds_[i + 1]});
  }
  return ranges;
}

namespace {

void multiply(const Tensor& a, const Tensor& b, Tensor c, bool accumulate = false) {
  kernels::of(a.device().type)
      .matmul.matmul(a.view(), b.view(), c.mutable_view(), {.accumulate = accumulate});
}

std::int64_t num_rows(const Tensor& x) {
  std::int64_t rows = 1;
  for (int d = 0; d + 1 < x.dims(); ++d) rows *= x.dim(d);
  return rows;
}

Tensor as_rows(const Tensor& x) { return x.detach().set_layout({}).reshape({num_rows(x), x.dim(-1)}); }

class Layer {
 public:
  Layer(LinearCut side, const ContractionLeaves& leaves, const Mesh& mesh, bool is_whole)
      : side_(side),
        leaves_(leaves),
        ranks_(is_whole ? 1 : mesh.size(kTp)),
        rank_(is_whole ? 0 : mesh.index(kTp)),
        owners_(leaves.owners(ranks_)),
        mesh_(mesh) {}

  [[nodiscard]] const Mesh& mesh() const { return mesh_; }
  [[nodiscard]] bool cuts_outputs() const { return side_ == LinearCut::kOutputs; }
  [[nodiscard]] Layout layout_of(const Tensor& x) const;
  [[nodiscard]] Tensor forward(const Tensor& x, const Tensor& weight, const Tensor& bias) const;
  [[nodiscard]] Tensor input_gradient(const Tensor& dy, const Tensor& weight) const;

 private:
  [[nodiscard]] Tensor contract(const Tensor& a, const Tensor& b) const;

  LinearCut side_;
  ContractionLeaves leaves_;
  int ranks_, rank_;  // over which the layer is cut
  LeafOwners owners_;
  const Mesh& mesh_;
};

// Σ over the leaves of all ranks of a[:, leaf]·b[leaf, :], in f32 for 16-bit factors.
Tensor Layer::contract(const Tensor& a, const Tensor& b) const {
  const TensorOptions wide{.dtype = accumulation_dtype(a.dtype()), .device = a.device()};
  const LeafRange own = owners_.runs[static_cast<std::size_t>(rank_)];
  TreeAccumulator sum(own, owners_.num_leaves);
  for (std::int64_t leaf = own.begin; leaf < own.end; ++leaf) {
    Tensor product = empty({a.dim(0), b.dim(1)}, wide);
    bool is_first = true;
    for (const Range& range : leaves_.in_part(leaf, ranks_, rank_)) {
      multiply(a.slice(1, range.begin, range.end), b.slice(0, range.begin, range.end), product,
               !std::exchange(is_first, false));
    }
    sum.add(std::move(product));
  }
  if (ranks_ == 1) return sum.nodes().front();
  Tensor result = empty({a.dim(0), b.dim(1)}, wide);
  tree_all_reduce(sum.nodes(), owners_, mesh_.group(kTp), result);
  return result;
}

Layout Layer::layout_of(const Tensor& x) const {
  if (!RankContext::current().check_layouts) return {};
  const int last = x.dims() - 1;
  const AxisLayout on_tp = x.layout()[kTp];
  if (ranks_ == 1) return x.layout();
  const bool fits = cuts_outputs() ? on_tp.is_invariant() : on_tp.is_sharded() && on_tp.dim() == last;
  if (!fits) {
    throw LayoutError(fmt::format("linear (invariant): on tp, x must be {}, but it is {} ({})",
                                  cuts_outputs() ? "I" : "cut along its last dimension", to_string(on_tp),
                                  describe(x)));
  }
  const auto order = leaves_.blocks() == 1 ? AxisLayout::Order::kInOrder : AxisLayout::Order::kPacked;
  return x.layout().with(kTp, cuts_outputs() ? AxisLayout::sharded(last, order) : AxisLayout::invariant());
}

Tensor Layer::forward(const Tensor& x, const Tensor& weight, const Tensor& bias) const {
  const NoGrad no_grad;
  const LayoutChecks no_layout_checks(false);
  const Tensor rows = as_rows(x);
  const Tensor own_weight = weight.detach().set_layout({});
  const Tensor own_bias = bias.defined() ? bias.detach().set_layout({}) : Tensor();
  Shape shape = x.shape();
  shape[-1] = weight.dim(0);
  // An element of y has whole rows of x and W: no leaves are needed.
  if (cuts_outputs()) return linear(rows, own_weight, own_bias).reshape(shape);
  Tensor y = contract(rows, own_weight.transpose(0, 1));
  if (own_bias.defined()) y = y + own_bias.to(y.dtype());
  return y.to(x.dtype()).reshape(shape);
}

// dx = dy·W
Tensor Layer::input_gradient(const Tensor& dy, const Tensor& weight) const {
  const Tensor rows = as_rows(dy);
  if (cuts_outputs()) return contract(rows, weight).to(dy.dtype());
  Tensor dx = empty({rows.dim(0), weight.dim(1)}, {.dtype = dy.dtype(), .device = dy.device()});
  multiply(rows, weight, dx);
  return dx;
}

}  // namespace

nn::Linear::Function invariant_linear(LinearCut side, const ContractionLeaves& leaves, const Mesh& mesh,
                                      bool is_whole) {
  const auto layer = std::make_shared<const Layer>(side, leaves, mesh, is_whole);
  return [layer](const Tensor& x, const Tensor& weight, const Tensor& bias) {
    const Layout layout = layer->layout_of(x);
    Tensor y = layer->forward(x, weight, bias);
    if (!layout.is_invariant()) y.set_layout(layout);
    // With dy and x as rows [N, O] and [N, I]:  dx = dy·W,  dW = dyᵀ·x,  db = Σ_N dy
    return record(
        "linear", y, {x, weight, bias},
        [layer, x = saved_if(weight.requires_grad(), x), weight = saved_if(x.requires_grad(), weight),
         x_shape = x.shape(), inputs = weight.dim(1), outputs = weight.dim(0),
         weight_dtype = gradient_dtype(weight),
         bias_dtype = bias.defined() ? gradient_dtype(bias) : kF32](const Tensor& dy, Needs needs) -> Grads {
          Grads grads(3);
          if (needs[0])
            grads[0] = layer->input_gradient(dy, weight.get().detach().set_layout({})).reshape(x_shape);
          if (!needs[1] && !needs[2]) return grads;
          const Tensor dy_rows = as_rows(over_cp(dy, layer->mesh()));
          const Range own = own_share(outputs, layer->mesh());
          const Tensor own_dy = dy_rows.slice(1, own.begin, own.end);
          const auto zeros_of = [&](const Shape& shape, DType dtype) {
            return zeros(shape, {.dtype = dtype, .device = dy.device()});
          };
          if (needs[1]) {
            const Tensor x_rows = as_rows(over_cp(x.get(), layer->mesh()));
            grads[1] = zeros_of({outputs, inputs}, weight_dtype);
            multiply(own_dy.transpose(0, 1), x_rows, grads[1].slice(0, own.begin, own.end));
          }
          if (needs[2]) {
            // As a product: its sums do not depend on how many columns stand beside each other.
            const Tensor each = ones({1, dy_rows.dim(0)}, {.dtype = dy.dtype(), .device = dy.device()});
            grads[2] = zeros_of({1, outputs}, bias_dtype);
            multiply(each, own_dy, grads[2].slice(1, own.begin, own.end));
            grads[2] = grads[2].reshape({outputs});
          }
          return grads;
        });
  };
}

}  // namespace tessera::dist

// Long, for it is one table: each family of operations has a function of a screen or less, and what they
// share (messages, alignment of broadcast dimensions, views) is read beside all of them.

#include "autograd/layout_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "autograd/graph.h"
#include "kernels/error.h"
#include "tensor/context.h"

namespace tessera::layout_rules {
namespace {

bool nothing_to_check(Inputs inputs) {
  const bool all_invariant = std::ranges::all_of(inputs, [](const Input& input) {
    return !input.tensor.defined() || input.tensor.layout().is_invariant();
  });
  return all_invariant || !RankContext::current().check_layouts;
}

bool wants_gradient(const Tensor& x) { return RankContext::current().grad_enabled && x.requires_grad(); }

// "x [4, 8] (dp S(0), tp P) and weight [8, 8] (dp R)"
std::string list(Inputs inputs) {
  std::string text;
  for (const Input& input : inputs) {
    if (!input.tensor.defined()) continue;
    text += fmt::format("{}{} {} ({})", text.empty() ? "" : " and ", input.name,
                        to_string(input.tensor.shape()), to_string(input.tensor.layout()));
  }
  return text;
}

[[noreturn]] void refuse(const char* operation, MeshAxis axis, const std::string& why, Inputs inputs) {
  throw LayoutError(fmt::format("{}: on {}, {}; came {}", operation, name(axis), why, list(inputs)));
}

// What one input is on one axis, with its dimension counted from the last (−1), as broadcasting aligns them.
struct Part {
  const char* name;
  const Tensor& tensor;
  AxisLayout on_axis;
  int from_last;
  bool wants_gradient;
  bool is_defined;

  Part(const Input& input, MeshAxis axis)
      : name(input.name),
        tensor(input.tensor),
        on_axis(input.tensor.defined() ? input.tensor.layout()[axis] : AxisLayout::invariant()),
        from_last(input.tensor.defined() ? on_axis.dim() - input.tensor.dims() : 0),
        wants_gradient(input.tensor.defined() && layout_rules::wants_gradient(input.tensor)),
        is_defined(input.tensor.defined()) {}
  [[nodiscard]] bool is_whole() const { return on_axis.is_invariant() || on_axis.is_replicated(); }
  /// Whether another part has the same indices, whatever its dimension is called.
  [[nodiscard]] bool has_order_of(const Part& other) const {
    return on_axis.moved_to(0) == other.on_axis.moved_to(0);
  }
};

constexpr const char* kReduceFirst =
    "dist::all_reduce (P to I) or dist::reduce_scatter (P to S) must come first";

void refuse_partial(const char* operation, MeshAxis axis, const Part& part, Inputs inputs) {
  if (!part.on_axis.is_partial()) return;
  refuse(operation, axis,
         fmt::format("{} is a partial sum (P), and {} of a part is not a part of {}: {}", part.name,
                     operation, operation, kReduceFirst),
         inputs);
}

// An I that wants a gradient, beside something that differs from rank to rank in value or in gradient.
void refuse_invariant(const char* operation, MeshAxis axis, const Part& part, Inputs inputs) {
  if (!part.on_axis.is_invariant() || !part.wants_gradient) return;
  refuse(
      operation, axis,
      fmt::format("each rank would get its own part of the gradient of {}, which is invariant (I): "
                  "dist::copy_to_ranks (I to R) is missing before it, or a parameter must be laid out as R",
                  part.name),
      inputs);
}

void refuse_other_order(const char* operation, MeshAxis axis, const Part& a, const Part& b, Inputs inputs) {
  if (a.has_order_of(b)) return;
  refuse(operation, axis,
         fmt::format("{} and {} have different indices of the dimension that is cut: cut both in one order",
                     a.name, b.name),
         inputs);
}

// Something whole that has the dimension along which `sharded` is cut, longer than what is broadcast.
void refuse_whole_beside(const char* operation, MeshAxis axis, const Part& sharded, const Part& other,
                         Inputs inputs) {
  if (!other.is_defined || other.on_axis.is_sharded()) return;
  if (other.tensor.dims() + sharded.from_last < 0 || other.tensor.dim(sharded.from_last) == 1) return;
  refuse(
      operation, axis,
      fmt::format("{} is cut along dimension {}, and {} is not, though it has that dimension: if it is a "
                  "part too, its layout must say so (set_layout); if it is whole, dist::own_piece must cut "
                  "it",
                  sharded.name, sharded.on_axis.dim(), other.name),
      inputs);
}

// Of S(d) and of R: what all inputs must agree on where none is a partial sum.
AxisLayout whole_or_sharded(const char* operation, MeshAxis axis, Inputs inputs, int result_dims) {
  const Input* first_cut = nullptr;
  bool any_replicated = false;
  for (const Input& input : inputs) {
    const Part part(input, axis);
    any_replicated = any_replicated || part.on_axis.is_replicated();
    if (!part.on_axis.is_sharded()) continue;
    if (first_cut == nullptr) {
      first_cut = &input;
      continue;
    }
    const Part sharded(*first_cut, axis);
    if (sharded.from_last != part.from_last) {
      refuse(operation, axis,
             fmt::format("{} and {} are cut along different dimensions: dist::all_to_all or dist::all_gather "
                         "must bring them together",
                         sharded.name, part.name),
             inputs);
    }
    refuse_other_order(operation, axis, sharded, part, inputs);
  }
  if (first_cut == nullptr && !any_replicated) return AxisLayout::invariant();
  for (const Input& input : inputs) refuse_invariant(operation, axis, Part(input, axis), inputs);
  if (first_cut == nullptr) return AxisLayout::replicated();
  const Part sharded(*first_cut, axis);
  for (const Input& input : inputs) {
    refuse_whole_beside(operation, axis, sharded, Part(input, axis), inputs);
  }
  return sharded.on_axis.moved_to(sharded.from_last + result_dims);
}

int result_dims(Inputs inputs) {
  int dims = 0;
  for (const Input& input : inputs) {
    if (input.tensor.defined()) dims = std::max(dims, input.tensor.dims());
  }
  return dims;
}

AxisLayout sum_on(const char* operation, MeshAxis axis, Inputs inputs, int dims) {
  const Input *partial = nullptr, *other = nullptr;
  for (const Input& input : inputs) {
    if (input.tensor.defined()) (input.tensor.layout()[axis].is_partial() ? partial : other) = &input;
  }
  if (partial == nullptr) return whole_or_sharded(operation, axis, inputs, dims);
  if (other == nullptr) return AxisLayout::partial();
  refuse(
      operation, axis,
      fmt::format("{} is a partial sum (P) and {} is not, so that {} would be added once on every rank: {}",
                  partial->name, other->name, other->name, kReduceFirst),
      inputs);
}

// A partial sum times something that is the same on every rank.
AxisLayout partial_product(const char* operation, MeshAxis axis, const Part& a, const Part& b,
                           Inputs inputs) {
  const Part& partial = a.on_axis.is_partial() ? a : b;
  const Part& other = a.on_axis.is_partial() ? b : a;
  if (!other.is_whole()) {
    refuse(operation, axis,
           fmt::format("{} is a partial sum (P), and {} differs from rank to rank: {}", partial.name,
                       other.name, kReduceFirst),
           inputs);
  }
  refuse_invariant(operation, axis, other, inputs);
  return AxisLayout::partial();
}

// I meets I on most axes: their rules need not be asked.
template <class Rule>
Layout on_each_axis(Inputs inputs, Rule rule) {
  Layout layout;
  for (const MeshAxis axis : kMeshAxes) {
    const bool all_invariant = std::ranges::all_of(inputs, [axis](const Input& input) {
      return !input.tensor.defined() || input.tensor.layout()[axis].is_invariant();
    });
    if (!all_invariant) layout = layout.with(axis, rule(axis));
  }
  return layout;
}

void refuse_cut(const char* operation, MeshAxis axis, const Part& part, int from_last, const char* advice,
                Inputs inputs) {
  if (!part.on_axis.is_sharded() || part.from_last != from_last) return;
  refuse(operation, axis,
         fmt::format("{} is cut along dimension {}, which {} needs whole: {}", part.name, part.on_axis.dim(),
                     operation, advice),
         inputs);
}

}  // namespace

// --- Element by element ------------------------------------------------------------------------------------

Layout sum(const char* operation, Inputs inputs) {
  if (nothing_to_check(inputs)) return {};
  const int dims = result_dims(inputs);
  return on_each_axis(inputs, [&](MeshAxis axis) { return sum_on(operation, axis, inputs, dims); });
}

Layout product(const char* operation, Inputs inputs) {
  if (nothing_to_check(inputs)) return {};
  const int dims = result_dims(inputs);
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part a(inputs[0], axis), b(inputs[1], axis);
    if (a.on_axis.is_partial() && b.on_axis.is_partial()) refuse_partial(operation, axis, a, inputs);
    if (a.on_axis.is_partial() || b.on_axis.is_partial())
      return partial_product(operation, axis, a, b, inputs);
    return whole_or_sharded(operation, axis, inputs, dims);
  });
}

Layout quotient(const char* operation, Inputs inputs) {
  if (nothing_to_check(inputs)) return {};
  for (const MeshAxis axis : kMeshAxes) refuse_partial(operation, axis, Part(inputs[1], axis), inputs);
  return product(operation, inputs);
}

Layout nonlinear(const char* operation, Inputs inputs) {
  if (nothing_to_check(inputs)) return {};
  const int dims = result_dims(inputs);
  return on_each_axis(inputs, [&](MeshAxis axis) {
    for (const Input& input : inputs) refuse_partial(operation, axis, Part(input, axis), inputs);
    return whole_or_sharded(operation, axis, inputs, dims);
  });
}

Layout linear(const Tensor& x) { return RankContext::current().check_layouts ? x.layout() : Layout(); }

// --- Products of matrices ----------------------------------------------------------------------------------

namespace {

// Where a factor is cut: the contracted dimension, the one that it alone gives to the result, or one that
// stands before both (a batch).
enum class Cut { kNone, kContracted, kOwn, kBatch };

Cut cut_of(const Part& part, int contracted, int own) {
  if (!part.on_axis.is_sharded()) return Cut::kNone;
  return part.from_last == contracted ? Cut::kContracted : part.from_last == own ? Cut::kOwn : Cut::kBatch;
}

AxisLayout contraction_on(const char* operation, MeshAxis axis, Inputs inputs, bool b_transposed, int dims) {
  const Part a(inputs[0], axis), b(inputs[1], axis);
  if (a.on_axis.is_partial() && b.on_axis.is_partial()) refuse_partial(operation, axis, a, inputs);
  if (a.on_axis.is_partial() || b.on_axis.is_partial()) return partial_product(operation, axis, a, b, inputs);
  const Cut a_cut = cut_of(a, -1, -2), b_cut = cut_of(b, b_transposed ? -1 : -2, b_transposed ? -2 : -1);
  if (a_cut == Cut::kContracted && b_cut == Cut::kContracted) {
    refuse_other_order(operation, axis, a, b, inputs);
    return AxisLayout::partial();
  }
  if (a_cut == Cut::kContracted || b_cut == Cut::kContracted) {
    refuse(
        operation, axis,
        fmt::format("the dimension over which the product sums is cut in {} alone: dist::all_gather it, or "
                    "cut {} in the same way",
                    a_cut == Cut::kContracted ? a.name : b.name, a_cut == Cut::kContracted ? b.name : a.name),
        inputs);
  }
  if ((a_cut == Cut::kOwn && b_cut == Cut::kOwn) ||
      (a_cut != Cut::kNone && b_cut != Cut::kNone && (a_cut != b_cut || a.from_last != b.from_last))) {
    refuse(operation, axis,
           "each rank would have only the block of its own rows and its own columns: one of the two must be "
           "whole (dist::all_gather)",
           inputs);
  }
  if (b_cut == Cut::kOwn) {
    refuse_invariant(operation, axis, a, inputs);
    return b.on_axis.moved_to(dims - 1);
  }
  if (a_cut == Cut::kOwn) {
    refuse_invariant(operation, axis, b, inputs);
    return a.on_axis.moved_to(a.from_last + dims);
  }
  return whole_or_sharded(operation, axis, inputs, dims);
}

}  // namespace

Layout contraction(const char* operation, Input a, Input b, bool b_transposed) {
  const Input inputs[]{a, b};
  if (nothing_to_check(inputs)) return {};
  const int dims = result_dims(inputs);
  return on_each_axis(
      inputs, [&](MeshAxis axis) { return contraction_on(operation, axis, inputs, b_transposed, dims); });
}

Layout linear_layer(const char* operation, Input x, Input weight, const Tensor& bias) {
  if (nothing_to_check({x, weight, {"bias", bias}})) return {};
  const Layout product = contraction(operation, x, weight, /*b_transposed=*/true);
  if (!bias.defined()) return product;
  // A handle that stands for the product: its shape's number of dimensions, its layout, its wish for a
  // gradient.
  Tensor stand_in = x.tensor.detach().set_layout(product);
  stand_in.set_autograd_meta(x.tensor.requires_grad() ? x.tensor.autograd_meta()
                                                      : weight.tensor.autograd_meta());
  return sum(operation, {{"x · weightᵀ", stand_in}, {"bias", bias}});
}

// --- Along dimensions --------------------------------------------------------------------------------------

Layout reduction(const char* operation, const Tensor& x, const Over& over, Reduced how) {
  const Input inputs[]{{"x", x}};
  if (nothing_to_check(inputs)) return {};
  bool reduced[kMaxDims] = {};
  for (const int d : over.dims) reduced[x.shape().normalize(d)] = true;
  if (over.dims.size() == 0) std::fill_n(reduced, x.dims(), true);
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part part(inputs[0], axis);
    if (how == Reduced::kOther) refuse_partial(operation, axis, part, inputs);
    if (!part.on_axis.is_sharded()) return part.on_axis;
    if (!reduced[part.on_axis.dim()]) {
      int dim = part.on_axis.dim();
      for (int d = 0; !over.keep_dims && d < part.on_axis.dim(); ++d) dim -= reduced[d] ? 1 : 0;
      return part.on_axis.moved_to(dim);
    }
    if (how == Reduced::kSum) return AxisLayout::partial();
    refuse(operation, axis,
           how == Reduced::kMean
               ? fmt::format("x is cut along dimension {}, and each rank would divide by its own count: take "
                             "the sum, dist::all_reduce it, and divide by the count over all ranks",
                             part.on_axis.dim())
               : fmt::format("x is cut along dimension {}, which {} needs whole: dist::all_gather it",
                             part.on_axis.dim(), operation),
           inputs);
  });
}

Layout along(const char* operation, const Tensor& x, int dim, bool is_linear) {
  const Input inputs[]{{"x", x}};
  if (nothing_to_check(inputs)) return {};
  const int from_last = x.shape().normalize(dim) - x.dims();
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part part(inputs[0], axis);
    if (!is_linear) refuse_partial(operation, axis, part, inputs);
    refuse_cut(operation, axis, part, from_last, "dist::all_gather it, or cut another dimension", inputs);
    return part.on_axis;
  });
}

Layout concat(std::span<const Tensor> tensors, int dim) {
  for (const Tensor& x : tensors) static_cast<void>(along("concat", x, dim, /*is_linear=*/true));
  std::vector<Input> inputs;
  inputs.reserve(tensors.size());
  for (const Tensor& x : tensors) inputs.push_back({inputs.empty() ? "the first" : "another", x});
  return sum("concat", Inputs(inputs));
}

Layout gather(const Tensor& x, int dim, const Tensor& index) {
  const Input inputs[]{{"x", x}, {"index", index}};
  if (nothing_to_check(inputs)) return {};
  static_cast<void>(along("gather", x, dim, /*is_linear=*/true));
  const int from_last = x.shape().normalize(dim) - x.dims();
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part values(inputs[0], axis), places(inputs[1], axis);
    refuse_partial("gather", axis, places, inputs);
    if (places.on_axis.is_sharded() && places.from_last == from_last) {
      if (!values.is_whole()) {
        refuse("gather", axis,
               "indices are cut along the dimension in which they point, and x is not whole: "
               "dist::all_gather it",
               inputs);
      }
      refuse_invariant("gather", axis, values, inputs);
      return places.on_axis;
    }
    if (values.on_axis.is_partial()) return partial_product("gather", axis, values, places, inputs);
    return whole_or_sharded("gather", axis, inputs, x.dims());
  });
}

Layout scatter_add(const Tensor& x, int dim, const Tensor& index, const Tensor& src) {
  const Input inputs[]{{"x", x}, {"index", index}, {"src", src}};
  if (nothing_to_check(inputs)) return {};
  const int from_last = x.shape().normalize(dim) - x.dims();
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part places(inputs[1], axis);
    for (const Input& input : inputs) {
      refuse_cut("scatter_add", axis, Part(input, axis), from_last,
                 "each rank would add only its own rows: dist::all_gather them", inputs);
    }
    refuse_partial("scatter_add", axis, places, inputs);
    const Input summands[]{inputs[0], inputs[2]};
    if (!Part(inputs[0], axis).on_axis.is_partial() && !Part(inputs[2], axis).on_axis.is_partial())
      return whole_or_sharded("scatter_add", axis, inputs, x.dims());
    if (!places.is_whole()) {
      refuse("scatter_add", axis, "the indices of a partial sum must be the same on every rank", inputs);
    }
    return sum_on("scatter_add", axis, summands, x.dims());
  });
}

Layout rows(const char* operation, Inputs inputs) {
  if (nothing_to_check(inputs)) return {};
  const int dims = result_dims(inputs);
  return on_each_axis(inputs, [&](MeshAxis axis) {
    for (const Input& input : inputs) {
      if (!input.tensor.defined()) continue;
      const Part part(input, axis);
      refuse_partial(operation, axis, part, inputs);
      refuse_cut(operation, axis, part, -1, "dist::all_gather it, or cut another dimension", inputs);
    }
    return whole_or_sharded(operation, axis, inputs, dims);
  });
}

// --- Layers ------------------------------------------------------------------------------------------------

Layout pictures(const char* operation, Inputs inputs, int whole_from) {
  if (nothing_to_check(inputs)) return {};
  return on_each_axis(inputs, [&](MeshAxis axis) {
    bool any_replicated = false;
    for (const Input& input : inputs) {
      if (!input.tensor.defined()) continue;
      const Part part(input, axis);
      refuse_partial(operation, axis, part, inputs);
      const int allowed = &input == &inputs[0] ? whole_from : 0;
      if (part.on_axis.is_sharded() && part.on_axis.dim() >= allowed) {
        refuse(operation, axis,
               fmt::format("{} is cut along dimension {}, which {} needs whole: dist::all_gather it",
                           part.name, part.on_axis.dim(), operation),
               inputs);
      }
      any_replicated = any_replicated || part.on_axis.is_replicated();
    }
    const AxisLayout of_x = inputs[0].tensor.layout()[axis];
    if (!of_x.is_sharded() && !any_replicated) return AxisLayout::invariant();
    for (const Input& input : inputs) refuse_invariant(operation, axis, Part(input, axis), inputs);
    return of_x.is_sharded() ? of_x : AxisLayout::replicated();
  });
}

Layout embedding(const Tensor& table, const Tensor& ids) {
  const Input inputs[]{{"table", table}, {"ids", ids}};
  if (nothing_to_check(inputs)) return {};
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part rows(inputs[0], axis), index(inputs[1], axis);
    const bool cut_by_rows = rows.on_axis.is_sharded() && rows.on_axis.dim() == 0;
    if (cut_by_rows != index.on_axis.is_partial()) {
      refuse("embedding", axis,
             cut_by_rows ? "the table is cut along its rows, and a rank can look up its own ids only: "
                           "dist::mask_foreign_ids must come first"
                         : "ids are masked (P), but the table is not cut along its rows",
             inputs);
    }
    if (cut_by_rows) return AxisLayout::partial();
    refuse_partial("embedding", axis, rows, inputs);
    if (rows.on_axis.is_sharded()) {
      if (index.on_axis.is_sharded()) {
        refuse("embedding", axis, "both are cut: each rank would have some channels of some ids", inputs);
      }
      return rows.on_axis.moved_to(ids.dims());
    }
    if (!index.is_whole()) {
      refuse_invariant("embedding", axis, rows, inputs);
      return index.on_axis;  // dimensions of ids come first in the result
    }
    return whole_or_sharded("embedding", axis, inputs, ids.dims() + 1);
  });
}

namespace {

// Heads are cut; what comes out has its heads one after the other. Keys and values need not be cut in the
// queries' order: a rank has those that its queries read.
AxisLayout cut_heads(const char* operation, MeshAxis axis, const Part& queries, Inputs inputs) {
  const Part keys(inputs[1], axis), values(inputs[2], axis);
  if (!keys.is_defined) {
    if (queries.on_axis.order() == AxisLayout::Order::kPacked) return AxisLayout::sharded(2);
    refuse(operation, axis,
           "queries, keys and values that are packed must each be cut by heads (S(2, packed)): in one piece "
           "after the other, the first ranks would have queries alone",
           inputs);
  }
  const Input read[]{inputs[1], inputs[2]};
  const AxisLayout of_read = whole_or_sharded(operation, axis, read, keys.tensor.dims());
  if (of_read.is_sharded() && of_read.dim() != 2) return whole_or_sharded(operation, axis, inputs, 4);
  for (const Part* part : {&keys, &values}) {
    refuse_invariant(operation, axis, *part, inputs);
    refuse_whole_beside(operation, axis, queries, *part, inputs);
  }
  return AxisLayout::sharded(2);
}

AxisLayout attention_on(const char* operation, MeshAxis axis, Inputs inputs) {
  for (const Input& input : inputs) {
    const Part part(input, axis);
    refuse_partial(operation, axis, part, inputs);
    if (!part.on_axis.is_sharded()) continue;
    if (part.on_axis.dim() == 1) {
      refuse(operation, axis,
             fmt::format("{} is cut along the sequence, and every query needs the keys before it: "
                         "dist::ring_attention or dist::ulysses_attention takes it so",
                         part.name),
             inputs);
    }
    if (part.on_axis.dim() == 3) {
      refuse(operation, axis, fmt::format("{} is cut inside of its heads", part.name), inputs);
    }
  }
  const Part queries(inputs[0], axis);
  if (queries.on_axis.is_sharded() && queries.on_axis.dim() == 2)
    return cut_heads(operation, axis, queries, inputs);
  return whole_or_sharded(operation, axis, inputs, result_dims(inputs));
}

}  // namespace

Layout attention(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v) {
  const Input inputs[]{{"q", q}, {"k", k}, {"v", v}};
  if (nothing_to_check(inputs)) return {};
  return on_each_axis(inputs, [&](MeshAxis axis) { return attention_on(operation, axis, inputs); });
}

Layout attention_over_ranks(const char* operation, const Tensor& q, const Tensor& k, const Tensor& v,
                            MeshAxis sequence_axis) {
  const Input inputs[]{{"q", q}, {"k", k}, {"v", v}};
  if (!RankContext::current().check_layouts) return {};
  for (const Input& input : inputs) {
    const AxisLayout on_axis = input.tensor.layout()[sequence_axis];
    if (on_axis.is_sharded() && on_axis.dim() == 1) continue;
    refuse(operation, sequence_axis,
           fmt::format("{} must be cut along the sequence, S(1), and its layout must say so", input.name),
           inputs);
  }
  return on_each_axis(inputs, [&](MeshAxis axis) {
    return axis == sequence_axis ? whole_or_sharded(operation, axis, inputs, q.dims())
                                 : attention_on(operation, axis, inputs);
  });
}

Layout row_losses(const char* operation, const Tensor& logits, const Tensor& targets) {
  const Input inputs[]{{"logits", logits}, {"targets", targets}};
  if (nothing_to_check(inputs)) return {};
  return on_each_axis(inputs, [&](MeshAxis axis) {
    const Part of_logits(inputs[0], axis), of_targets(inputs[1], axis);
    refuse_partial(operation, axis, of_logits, inputs);
    refuse_cut(operation, axis, of_logits, -1,
               "dist::vocab_parallel_cross_entropy takes it so, and never gathers logits", inputs);
    const bool one_is_cut = of_logits.on_axis.is_sharded() || of_targets.on_axis.is_sharded();
    if (one_is_cut && of_logits.on_axis != of_targets.on_axis) {
      refuse(operation, axis,
             "logits and targets must be cut in the same way, and the layouts of both must say so", inputs);
    }
    return of_logits.on_axis;
  });
}

}  // namespace tessera::layout_rules

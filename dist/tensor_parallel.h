#pragma once

// Tensor parallelism (Shoeybi et al., "Megatron-LM", 2019) and sequence parallelism (Korthikanti et al.,
// "Reducing activation recomputation in large transformer models", 2022), laid over a model that knows of
// neither: a plan says by name how each module is cut, and `lay_out` changes the shapes of its parameters and
// hangs collectives on its doors.
//
//   a block, tensor parallel (t ranks)          the same, sequence parallel as well
//
//   x        I                                  x        S(1): T/t tokens each
//   norm     I                                  norm     S(1), gain R
//     enter  copy_to_ranks   I → R                enter  all_gather      S(1) → R
//   c_attn   R · S(0)        → S(2)             c_attn   R · S(0)        → S(2)
//   heads    own heads       S(2)               heads    own heads       S(2)
//   c_proj   S(2) · S(1)     → P                c_proj   S(2) · S(1)     → P
//     leave  all_reduce      P → I                leave  reduce_scatter  P → S(1)
//   + bias   once, after the reduction          + bias   R
//
// and the same for the two layers of the MLP: 4 all-reduces of [B, T, D] a block and micro-batch, two forward
// and two (the gradients of enter) backward; or 4 pairs of all_gather and reduce_scatter, which send the same
// bytes and leave each rank T/t tokens of everything outside.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dist/mesh.h"
#include "dist/placement.h"
#include "nn/module.h"

namespace tessera::dist {

/// What happens to a module whose path matches.
enum class Role : std::uint8_t {
  /// Its input enters the part of the network that is cut: copy_to_ranks, or all_gather of the tokens. Put it
  /// on the module around several that share an input: attention, an MLP.
  kEnter,
  /// nn::Linear, its outputs cut: weight S(0), bias S(0).
  kColumn,
  /// nn::Linear, its inputs cut: weight S(1); its product is reduced before the bias is added.
  kRow,
  /// nn::Embedding, its rows cut by id; or an nn::Linear that gives logits, tied or not.
  kVocabulary,
  /// Attention: told which of the heads it computes (cut like the units of its projections).
  kHeads,
  /// nn::Linear for the keys or values of fewer heads than there are ranks: whole on every rank (R), and its
  /// outputs are those heads that the rank's queries read. Otherwise as kColumn.
  kKeyValue,
  /// Its parameters are used on tokens that are cut under sequence parallelism (norms, a table of positions):
  /// R then, I without.
  kTokens,
};

/// One line of a plan: modules by glob (`h.*.attn.c_attn`, as optim::matches), and how.
struct PlanRow {
  std::string pattern;
  Role role;
  /// kColumn: parts of the output that are cut each by itself. kHeads: query heads of a unit. kKeyValue:
  /// query heads that read one key/value head.
  std::int64_t blocks = 1;
  /// How many there are of what is never cut through, as heads; 0: single rows.
  std::int64_t units = 0;
};
using Plan = std::vector<PlanRow>;

/// The plans of Tessera's own models on `tp` ranks. ConfigError for another model, unless tp is 1.
[[nodiscard]] Plan tensor_parallel_plan(const nn::Module& model, int tp);

struct TensorParallelOptions {
  bool sequence_parallel = false;
  /// Layers, on one rank too, add up in an order that does not depend on the cut (dist/invariant_linear.h).
  bool invariant = false;
};

/// What `lay_out` made of a model: where each parameter lies.
class LaidOut {
 public:
  /// IndexError for an unknown name.
  [[nodiscard]] const Placement& placement(const std::string& parameter) const;
  /// Null for an unknown name.
  [[nodiscard]] const Placement* find(const std::string& parameter) const;
  [[nodiscard]] bool sequence_parallel() const noexcept { return sequence_parallel_; }
  /// All ranks' parts of a parameter (or of a state of its shape), joined. A collective of the tp axis.
  [[nodiscard]] Tensor whole(const std::string& parameter, const Tensor& part, const Mesh& mesh) const;
  /// A table for people: parameter, whole shape, own shape, layout.
  [[nodiscard]] std::string to_string() const;

 private:
  friend LaidOut lay_out(nn::Module&, const Plan&, const Mesh&, const TensorParallelOptions&);
  std::map<std::string, Placement> placements_;
  std::map<std::string, Layout> layouts_;
  bool sequence_parallel_ = false;
};

/// Gives memory to the parameters of a model that was laid out, and the initial values of their parts. For
/// programs without dist::Zero, which does it for what a rank keeps.
void materialize(nn::Module& model, const LaidOut& laid_out);

/// Lays `model` over the mesh's tp axis by `plan`: gives every parameter its layout on all axes (R on dp and
/// cp) and its own shape, and adds the hooks. `mesh` outlives the model's graphs. With tp = 1 it sets layouts
/// only, unless it is to be invariant. Tells this rank's RankContext its place on every axis.
///
/// Calling   On the model on meta, before it is materialised (Placement::fill_initial gives the values).
///           Under sequence parallelism a model that is called with ids [B, T] takes T from them; who calls
///           parts of it by themselves, or cuts sequences over cp as well, sets RankContext::sequence_length.
/// Errors    ConfigError for a pattern that matches no module (the nearest is named), a module of another
///           type than the role needs, fewer heads or rows than ranks where none may be empty; DeviceError
///           for a model that has memory.
[[nodiscard]] LaidOut lay_out(nn::Module& model, const Plan& plan, const Mesh& mesh,
                              const TensorParallelOptions& options = {});

}  // namespace tessera::dist

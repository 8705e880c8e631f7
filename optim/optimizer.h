#pragma once

// What all optimizers share. A training step, with every piece visible:
//
//   optim::AdamW optimizer(model.named_parameters(), {.lr = 6e-4, .weight_decay = 0.1},
//                          optim::no_decay_for_biases_and_norms());
//   for (std::int64_t step = 0; step < steps; ++step) {
//     optimizer.set_lr(optim::lr_at(schedule, step));
//     loss(model, batch).backward();
//     const auto norm = optim::global_grad_norm(optimizer.parameters());
//     optimizer.step({.grad_scale = optim::clip_factor(norm, 1.0)});   // clips while updating: no extra pass
//     optimizer.zero_grad();
//   }

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "optim/parameter_groups.h"
#include "optim/piece_exchange.h"
#include "tensor/tensor.h"

namespace tessera::optim {

struct StepOptions {
  /// Every gradient is multiplied by it on the way into the update: clipping factor, 1 / loss scale and 1 /
  /// count all go here, and none costs a pass over the gradients.
  double grad_scale = 1.0;
};

enum class ZeroGrad : std::uint8_t {
  /// The gradient's memory goes back to the pool; a parameter that the next pass does not reach is then
  /// skipped. A gradient that is a view of a larger storage (a bucket that several share) is zeroed instead:
  /// its place is fixed.
  kDrop,
  /// Buffers stay and are filled with zeros.
  kKeep,
};

/// A β must lie in [0, 1): one of 1 would never look at a gradient.
[[nodiscard]] constexpr bool is_decay_rate(double beta) { return beta >= 0.0 && beta < 1.0; }

/// Changes parameters by their gradients.
///
/// Precision  The update runs in f32 (f64 for f64 parameters) whatever the gradient's dtype. A bf16 or f16
///            parameter has an f32 master copy, made from the parameter at the first step; the rounded copy
///            is written in the same pass. Parameters must be contiguous. Adam can keep all of it in 16-bit
///            numbers (AdamConfig::state_dtype).
/// Memory     Moments and masters are allocated at construction, zeroed, as MemoryCategory::kOptimizerState:
///            what does not fit fails before the first step, a dry run on meta counts it, and state() has the
///            same names from the start. A parameter that requires no gradient then gets its moments if it
///            ever has a gradient.
/// Cost       One pass over parameters, gradients and moments for all parameters of a group.
/// Steps      Counted for each parameter: one without a gradient is skipped, and its bias correction waits.
/// Pieces     Parameters may be pieces of larger ones (ZeRO), empty ones too. An optimizer whose update is
///            not element by element (LAMB, Muon) then takes a PieceExchange, and its step is a collective:
///            the ranks agree first on which parameters have a gradient. Where some rank has one, a piece
///            without takes it for zero; where no rank has, all skip the parameter.
/// Threads    Used by the rank that made it.
/// Errors     Constructors: ConfigError for a setting out of range, or a name given twice; DTypeError,
///            ShapeError for a parameter that is not floating or not contiguous. A tensor listed under two
///            names (tied embeddings) is updated once, under the first.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// One update of every parameter that has a gradient. In place; counts as a change for autograd.
  /// Errors   NonFiniteError for a grad_scale that is not finite; ShapeError, DeviceError for a gradient that
  ///          does not fit its parameter. All are found before anything is changed.
  void step(const StepOptions& options = {});

  void zero_grad(ZeroGrad how = ZeroGrad::kDrop);

  /// Learning rate of groups with lr_scale 1.
  void set_lr(double lr);
  [[nodiscard]] double lr() const noexcept { return lr_; }
  /// The momentum of SGD and Muon's matrices, β₁ of Adam, Lion and LAMB, in every group: for schedules that
  /// cycle it (OneCycle). ConfigError from Adagrad, which has none.
  virtual void set_momentum(double momentum) = 0;

  /// All that a checkpoint needs besides the parameters: for each parameter NAME
  ///   NAME/step     i64, no dimensions (a copy)
  ///   NAME/master   f32, only of 16-bit parameters (a copy where the state is bf16)
  ///   NAME/moment1, NAME/moment2 (Adam, LAMB), NAME/velocity (SGD with momentum), NAME/momentum (Lion,
  ///   Muon's matrices), NAME/sum_of_squares (Adagrad)
  /// The tensors are handles of the live state: clone what must outlive the next step.
  [[nodiscard]] NamedTensors state();
  /// The same one by one, for who saves: copies exist while they are held.
  struct StateEntry {
    std::string name;
    DType dtype = kF32;
    std::function<Tensor()> get;  ///< of a live optimizer
  };
  [[nodiscard]] std::vector<StateEntry> state_entries();
  /// Continues from what state() gave, of an optimizer with f32 state or with bf16 state: moments are
  /// converted, masters are the same. Nothing is changed on an error.
  ///
  /// Parameters are loaded by their owner. With bf16 state they hold half of each master, so they are set
  /// here too, and an owner who loads them afterwards gives them bf16_weight_of the masters: that differs
  /// from what an f32 state saved where a master is half-way between two weights.
  /// Errors   DataError that names what is missing, unknown, or of another shape.
  void load_state(const NamedTensors& state);

  /// The next step makes the f32 masters anew from the 16-bit parameters: after weights were loaded from
  /// elsewhere.
  void reset_masters() noexcept;

  /// The parameters that this optimizer updates, each once.
  [[nodiscard]] const NamedTensors& parameters() const noexcept { return parameters_; }
  /// Index in the constructor's groups, or kNoGroup, of a parameter. IndexError for an unknown name.
  [[nodiscard]] std::size_t group_of(const std::string& name) const;
  /// One line a group: its patterns, settings, and how many parameters and elements it holds.
  [[nodiscard]] std::string describe() const;

 protected:
  static constexpr std::size_t kMaxMoments = 2;

  Optimizer(const char* type, double lr, const NamedTensors& parameters, std::vector<ParameterGroup> groups,
            std::shared_ptr<PieceExchange> exchange = nullptr);

  /// Called at the end of a derived constructor: `moments_of(i)` names the moments of parameter i, which
  /// start at `initial_value`.
  using MomentNames = std::vector<const char*>;
  void allocate_state(const std::function<MomentNames(std::size_t parameter)>& moments_of,
                      double initial_value = 0.0);
  /// The same in 16-bit numbers, zeroed. DTypeError for a parameter that is not bf16.
  void allocate_bf16_state(const MomentNames& moments);

  /// Groups with a last one for what matches none.
  [[nodiscard]] std::span<const ParameterGroup> groups() const noexcept { return groups_; }
  /// Index in groups() of parameter i.
  [[nodiscard]] std::size_t group_at(std::size_t parameter) const { return slots_[parameter].group; }
  [[nodiscard]] const std::string& name_at(std::size_t parameter) const {
    return parameters_[parameter].first;
  }
  [[nodiscard]] Tensor& moment_at(std::size_t parameter, std::size_t moment) {
    return slots_[parameter].moments[moment];
  }
  /// What updates of parameter i change: its f32 master, or itself. Current within update_all. Not of bf16
  /// state, whose masters are nowhere whole.
  [[nodiscard]] Tensor values_at(std::size_t parameter) const {
    const Slot& slot = slots_[parameter];
    return (slot.master.defined() ? slot.master : parameters_[parameter].second).detach();
  }
  /// Null if parameters are whole.
  [[nodiscard]] PieceExchange* exchange() const noexcept { return exchange_.get(); }

  /// One parameter that is updated in this step.
  struct Update {
    std::size_t parameter = 0;  ///< index in parameters()
    std::size_t group = 0;      ///< index in groups()
    std::int64_t step = 1;      ///< which update of this parameter it is, from 1
    Tensor grad;                ///< contiguous, of the parameter's shape
    kernels::UpdateItem item;   ///< views of its master (or itself), gradient, moments and rounded copy
  };
  /// Updates that a kernel does in one call: of one group, step and device.
  struct Batch {
    std::size_t group = 0;
    std::int64_t step = 1;
    double lr = 0.0;  ///< lr() · lr_scale of the group
    const kernels::Updates* kernels = nullptr;
    std::vector<kernels::UpdateItem> items;
    std::vector<std::size_t> updates;  ///< items[i] is of updates[this[i]]
  };
  /// After equal histories, one batch for each group and device.
  [[nodiscard]] std::vector<Batch> batches_of(std::span<const Update> updates) const;

  /// Does the updates of one step, which stand in the order of parameters().
  virtual void update_all(std::span<const Update> updates, double grad_scale) = 0;
  /// A group's settings, for describe().
  [[nodiscard]] virtual std::string describe_settings(std::size_t group) const = 0;

 private:
  struct Slot {
    std::size_t group = 0;
    std::int64_t step = 0;
    bool allocated = false;
    bool master_is_current = false;
    Tensor master{};      // undefined for f32 and f64 parameters, and where the state is bf16:
    Tensor master_low{};  // there u8 [2 · elements], the low halves; the parameter has the high ones
    MomentNames moment_names{};
    std::array<Tensor, kMaxMoments> moments{};
  };

  void allocate(std::size_t index);
  void agree_on_gradients(std::vector<Tensor>& grads);
  void make_master_current(std::size_t index);
  [[nodiscard]] Tensor master_of(std::size_t index);
  void set_master(std::size_t index, const Tensor& master);

  const char* type_;
  double lr_;
  NamedTensors parameters_;
  std::vector<Slot> slots_;  // slots_[i] belongs to parameters_[i]
  std::vector<ParameterGroup> groups_;
  std::shared_ptr<PieceExchange> exchange_;
  double initial_moment_ = 0.0;
  bool state_is_bf16_ = false;
};

/// What an optimizer with bf16 state has as the weight of an f32 master: rounded to bf16, and from half-way
/// between two numbers to the one farther from 0 (kernels/bf16_state.h).
[[nodiscard]] Tensor bf16_weight_of(const Tensor& master);

/// The names "0", "1", ... for parameters without any.
[[nodiscard]] NamedTensors numbered(const std::vector<Tensor>& parameters);

}  // namespace tessera::optim

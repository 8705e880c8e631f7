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
#include <span>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "optim/parameter_groups.h"
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

/// Changes parameters by their gradients.
///
/// Precision  The update runs in f32 (f64 for f64 parameters) whatever the gradient's dtype. A bf16 or f16
///            parameter has an f32 master copy, made from the parameter at the first step; the rounded copy
///            is written in the same pass. Parameters must be contiguous.
/// Memory     Moments and masters are allocated at construction, zeroed, as MemoryCategory::kOptimizerState:
///            what does not fit fails before the first step, a dry run on meta counts it, and state() has the
///            same names from the start. A parameter that requires no gradient then gets its moments if it
///            ever has a gradient.
/// Cost       One pass over parameters, gradients and moments for all parameters of a group.
/// Steps      Counted for each parameter: one without a gradient is skipped, and its bias correction waits.
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
  /// SGD's momentum, or Adam's β₁, of every group: for schedules that cycle it (OneCycle).
  virtual void set_momentum(double momentum) = 0;

  /// All that a checkpoint needs besides the parameters: for each parameter NAME
  ///   NAME/step     i64, no dimensions (a copy)
  ///   NAME/master   f32, only of 16-bit parameters
  ///   NAME/moment1, NAME/moment2 (Adam) or NAME/velocity (SGD with momentum)
  /// The tensors are handles of the live state: clone what must outlive the next step.
  [[nodiscard]] NamedTensors state();
  /// Continues from what state() gave; the parameters are loaded by their owner. Nothing is changed on an
  /// error.
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

  Optimizer(const char* type, double lr, const NamedTensors& parameters, std::vector<ParameterGroup> groups);

  /// Called at the end of a derived constructor: `moments(group)` names the moments of a group's parameters.
  using MomentNames = std::vector<const char*>;
  void allocate_state(std::vector<MomentNames> moments_by_group);

  /// Groups with a last one for what matches none.
  [[nodiscard]] std::span<const ParameterGroup> groups() const noexcept { return groups_; }

  /// Runs the kernel over parameters of one group and device that are all at their `step`-th update (from 1).
  virtual void update(std::size_t group, std::int64_t step, double lr, double grad_scale,
                      const kernels::Updates& updates, std::span<const kernels::UpdateItem> items) = 0;
  /// A group's settings, for describe().
  [[nodiscard]] virtual std::string describe_settings(std::size_t group) const = 0;

 private:
  struct Slot {
    std::size_t group = 0;
    std::int64_t step = 0;
    bool allocated = false;
    bool master_is_current = false;
    Tensor master{};  // undefined for f32 and f64 parameters
    std::array<Tensor, kMaxMoments> moments{};
  };

  void allocate(std::size_t index);
  void make_master_current(std::size_t index);

  const char* type_;
  double lr_;
  NamedTensors parameters_;
  std::vector<Slot> slots_;  // slots_[i] belongs to parameters_[i]
  std::vector<ParameterGroup> groups_;
  std::vector<MomentNames> moments_by_group_;
};

/// The names "0", "1", ... for parameters without any.
[[nodiscard]] NamedTensors numbered(const std::vector<Tensor>& parameters);

}  // namespace tessera::optim

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/mesh.h"
#include "dist/zero_plan.h"
#include "nn/module.h"
#include "optim/piece_exchange.h"

namespace tessera::dist {

namespace detail {
struct ZeroState;
}

/// Writes the initial values of a parameter's local part (what this rank's tensor parallelism holds) into
/// `local`, which has the shape of record.tensor.
using FillParameter = std::function<void(const nn::ParameterRecord& record, Tensor& local)>;

/// A backward pass of one micro-batch through one of this rank's stages; without a pipeline there is one.
struct BackwardPass {
  enum class Gradients : std::uint8_t {
    kAll,
    kInputs,   ///< of activations: those of weights are deferred (autograd/backward.h) ...
    kWeights,  ///< ... and come in a pass of their own
  };
  bool last = true;  ///< of the accumulation, for this stage
  std::size_t stage = 0;
  Gradients gradients = Gradients::kAll;
  /// For ZeroOptions::tree_sums: the number of the sample in the step's batch. None for a pass of a rank that
  /// has no more samples while others have.
  std::optional<std::int64_t> sample{};
};

/// Data parallelism in which parameters, gradients and optimizer state may each be cut over the data ranks
/// (Rajbhandari et al., 2020; see ZeroPlacement). A part that is cut is gathered before its use and released
/// after it, so that what a rank holds shrinks with the number of ranks; what it computes does not change.
///
///     DeviceScope on_meta(meta);
///     nn::Gpt2 model(config);                                          // no memory yet
///     dist::Zero zero(model, mesh, {.placement = ZeroPlacement::stage(3)});
///     optim::AdamW optimizer(zero.pieces(), {.lr = 6e-4});             // sees this rank's part of all
///     for (micro = 0; micro < accumulation; ++micro) {
///       const Tensor loss = loss_sum(model, micro) / global_token_count;
///       zero.begin_backward(micro == accumulation - 1);
///       loss.backward();
///       zero.end_backward();
///     }
///     zero.finish_gradients();                                         // pieces have the sum over all ranks
///     const double norm = std::sqrt(zero.global_grad_sum_of_squares());
///     optimizer.step({.grad_scale = optim::clip_factor(norm, 1.0)});
///     zero.after_update();                                             // and the model the new values
///     zero.zero_gradients();
///
/// Units     A transformer's block, or any other module with parameters of its own. Its parameters lie one
///           behind the other in a *flat* storage, padded so that it can be cut evenly; rank d holds the d-th
///           slice. Where parameters are cut, hooks on the unit gather the flat before its forward and its
///           backward pass, and drop it afterwards: handles and what autograd saved of them stay valid.
/// Order     Gathers follow one schedule on all ranks: the model's order at first, after the first step the
///           order in which units ran. A rank that skips a unit takes part in its gather all the same. A unit
///           that the schedule does not hold must be used by all ranks.
/// Prefetch  From the second step on gathers of the next units are under way while one computes, within
///           ZeroOptions::prefetch_elements and max_live_parameters.
/// Gradients Sums over the data ranks (dp and cp, whatever a layout says of these), never means; f32 for
///           16-bit parameters. A flat is reduced when its last gradient is complete, while the backward pass
///           goes on, in the same order on all ranks. A parameter that no rank used has gradient 0, so weight
///           decay shrinks it. Parameters whose layout is R on a further axis are summed over that axis too.
///           grad() of the model's own parameters is the local one, if any.
/// Frozen    Parameters that require no gradient are cut where parameters are, and have no piece.
/// Evaluation Forward passes under NoGrad gather and release as well: all ranks run them together.
/// Memory    Parameters and gradients between steps as predict_memory() says, to the byte.
/// Lifetime  The model and the mesh outlive this. Without it a model with cut parameters can't be used.
/// Errors    ConfigError as plan_zero, and for a parameter frozen or unfrozen later; AutogradError for a
///           backward pass outside of begin_backward() and end_backward(), or calls in another order than
///           above; CommError as any collective.
/// Threads   Of its rank.
class Zero {
 public:
  /// Gives the model memory for what this rank holds, parameter by parameter, and buffers whole. Parameters
  /// that have values already keep them; those on meta are filled by `fill`, by default with the initial
  /// values of their records. Collective where groups are made.
  Zero(nn::Module& model, const Mesh& mesh, const ZeroOptions& options, FillParameter fill = nullptr);
  ~Zero();
  Zero(const Zero&) = delete;
  Zero& operator=(const Zero&) = delete;

  /// For the optimizer: this rank's part of every trainable parameter, in the model's order, on every rank
  /// under the same names. Not cut: of the parameter's shape. Cut: one-dimensional, of 0 elements where this
  /// rank has none. grad() is this rank's part of the reduced gradient, after finish_gradients().
  [[nodiscard]] const NamedTensors& pieces() const noexcept;

  /// With ZeroOptions::tree_sums, before the first pass of a step: how many samples it has, over all ranks.
  void begin_step(std::int64_t num_samples);

  /// Around the forward pass of a stage of a pipeline; the model's own forward passes need neither.
  void begin_forward(std::size_t stage);
  void end_forward();

  /// Before loss.backward(), after the forward pass. `last_micro_batch` ends the accumulation.
  void begin_backward(bool last_micro_batch);
  void begin_backward(const BackwardPass& pass);
  /// After it: starts what has not started, waits for what was reduced, releases what was gathered.
  void end_backward();
  /// After the last one: the pieces' gradients are sums over all ranks.
  void finish_gradients();
  /// After the optimizer's step: brings the new values to wherever parameters are cut less than pieces.
  void after_update();
  /// Zeroes gradients. Called or not, the backward pass after finish_gradients() begins from zero. Also gives
  /// up a step that an exception ended, in a backward pass or between two: a collective then, of what is left
  /// of the pass.
  void zero_gradients();

  /// Σ g² over the whole model, every logical element once, the same on every rank; with tree_sums exact, so
  /// that it does not depend on who has which elements. NaN if one is not finite, or a rank says `is_spoilt`.
  /// A collective of the world.
  [[nodiscard]] double global_grad_sum_of_squares(bool is_spoilt = false) const;

  /// Whether this rank's stages have the parameter.
  [[nodiscard]] bool has(const std::string& name) const;

  // --- Whole tensors, one at a time, for checkpoints. IndexError for an unknown name.
  /// The values of a parameter, from all ranks. A collective of all ranks that hold parts of it.
  [[nodiscard]] Tensor whole(const std::string& name) const;
  /// The whole of anything that has an element for each element of the piece: a moment, a master copy.
  [[nodiscard]] Tensor whole(const std::string& name, const Tensor& piece) const;
  /// This rank's part of a whole tensor, of the shape of the piece.
  [[nodiscard]] Tensor piece(const std::string& name, const Tensor& whole) const;
  /// Sets a parameter to values that every rank gives whole. Moves nothing between ranks.
  void load(const std::string& name, const Tensor& whole);

  /// The same for optimizers that need whole tensors (LAMB, Muon). Lives as long as this.
  [[nodiscard]] optim::PieceExchange& exchange() noexcept;

  [[nodiscard]] const ZeroPlan& plan() const noexcept;
  /// See predict_memory.
  [[nodiscard]] ZeroMemory predicted_memory(std::int64_t optimizer_bytes_per_element) const;
  /// See predict_traffic.
  [[nodiscard]] std::vector<ZeroTraffic> predicted_traffic(int accumulation) const;

 private:
  std::shared_ptr<detail::ZeroState> state_;  // shared with the hooks
  std::unique_ptr<optim::PieceExchange> exchange_;
};

}  // namespace tessera::dist

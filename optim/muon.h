#pragma once

#include "optim/optimizer.h"

namespace tessera::optim {

/// The nearest thing to the orthogonal factor of a matrix that five products give: x = U S Vᵀ → about U Vᵀ.
///
/// Formula   X ← x / max(‖x‖, 1e-7), then `steps` times   X ← a X + (b A + c A²) X,  A = X Xᵀ,
///           with (a, b, c) = (3.4445, −4.7750, 2.0315): every singular value s ≤ 1 becomes
///           a s + b s³ + c s⁵, over and over, and ends between about 0.7 and 1.2. The coefficients trade
///           exactness for a steep start: what is 1/400 of the norm is there after five.
/// Shapes    x [M, N] → [M, N], of the same dtype. A matrix of zeros stays one.
/// Cost      2 · steps · k² (2 max(M, N) + k) operations, k = min(M, N); memory of about two more matrices.
/// Precision That of x; torch.optim.Muon rounds x and all products to bf16.
/// Errors    ShapeError for another number of dimensions than two.
/// Source    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the iteration is
///           Kovarik's and Björck & Bowie's (1970, 1971).
[[nodiscard]] Tensor newton_schulz(const Tensor& x, int steps = 5);

/// How long the step of a matrix [M, N] is, besides lr. PyTorch's adjust_lr_fn calls them "original",
/// "match_rms_adamw" and "spectral_unclamped".
enum class MuonScale : std::uint8_t {
  kSpectral,  ///< √max(1, M/N): Jordan et al., 2024
  kAdamRms,   ///< 0.2 √max(M, N): elements move about as far as AdamW's, one lr for both (Liu et al., 2025)
  /// √(M/N), below 1 for wide matrices too: a layer's outputs then change by about lr, whatever its width
  /// (Yang et al., "A spectral condition for feature learning", 2023)
  kSpectralUnclamped,
};

/// Names that Muon leaves to AdamW in transformers: biases and gains of norms, embeddings (`wte`, `wpe`,
/// `embed...`), the head (`lm_head`).
[[nodiscard]] std::vector<std::string> all_but_hidden_matrices();

struct MuonConfig {
  double lr = 0.02;  ///< of the matrices
  double momentum = 0.95;
  bool nesterov = true;
  int newton_schulz_steps = 5;
  MuonScale scale = MuonScale::kSpectral;
  double weight_decay = 0.0;  ///< decoupled, of matrices and others
  /// Names (globs, as in parameter groups) of the parameters that AdamW updates. All others are matrices.
  std::vector<std::string> adamw = all_but_hidden_matrices();
  double adamw_lr_scale = 0.015;  ///< AdamW's lr is this times lr: 3e-4 for 0.02
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
};

/// Muon (Jordan et al., 2024): the momentum of a hidden matrix, made orthogonal: all its directions are
/// learned at one pace. With g = grad_scale · grad:
///
///   m ← μ m + (1 − μ) g
///   O = newton_schulz(μ m + (1 − μ) g)  with Nesterov's momentum, newton_schulz(m) without
///   p ← (1 − lr · weight_decay) p − lr · scale · O
///
/// What is no hidden matrix goes to AdamW, inside of this optimizer. Which is which is said by name, never by
/// shape: a piece of a matrix has one dimension, and an embedding has two.
///
/// The formula is torch.optim.Muon's, with other defaults: docs/optim.md sets the two side by side.
///
/// Memory    For a matrix one momentum in f32 (f64); for others AdamW's two moments; masters for 16-bit ones.
///           While one matrix is updated, about four times its whole size in f32.
/// Cost      See newton_schulz. With an exchange every rank does the products of all matrices, and each is
///           all-gathered once in f32: four bytes an element, twice what ZeRO-3's gather of bf16 sends.
/// Calling   With an exchange, step() is a collective.
/// Errors    ConfigError for a matrix without two dimensions: from the constructor if parameters are whole,
///           else from the first step, where its whole shape is seen first.
/// Example   optim::Muon optimizer(model.named_parameters(), {.lr = 0.02, .weight_decay = 0.01});
class Muon final : public Optimizer {
 public:
  explicit Muon(const NamedTensors& parameters, const MuonConfig& config = {},
                std::vector<ParameterGroup> groups = {}, std::shared_ptr<PieceExchange> exchange = nullptr);

  /// Of the matrices; AdamW's β₁ stays.
  void set_momentum(double momentum) override;
  /// False for what AdamW updates. IndexError for an unknown name.
  [[nodiscard]] bool is_matrix(const std::string& name) const;

 private:
  struct MatrixSettings {
    double momentum = 0.95;
    double weight_decay = 0.0;
  };

  void update_all(std::span<const Update> updates, double grad_scale) override;
  void update_matrix(const Update& update, double grad_scale);
  void check_matrix(const std::string& name, const Shape& whole) const;
  [[nodiscard]] std::string describe_settings(std::size_t group) const override;

  MuonConfig config_;
  std::vector<bool> is_matrix_;              // by parameter
  std::vector<MatrixSettings> matrices_;     // by group
  std::vector<kernels::AdamOptions> adamw_;  // by group
};

}  // namespace tessera::optim

#pragma once

// Which parameter gets which settings: by its name, never by its shape. A shard of a matrix may be
// one-dimensional, so a rule on shapes would decay other elements on 8 ranks than on 1.
//
//   optim::AdamW optimizer(model.named_parameters(), {.lr = 6e-4, .weight_decay = 0.1},
//                          {{.patterns = {"wte.*", "wpe.*"}, .lr_scale = 0.5},
//                           {.patterns = {"*.bias", "*ln*"}, .weight_decay = 0.0}});

#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace tessera::optim {

/// Settings of the parameters whose names match. What is not set comes from the optimizer's own
/// configuration; a setting that the optimizer does not have (`momentum` of AdamW, `beta1` of SGD) is a
/// ConfigError.
struct ParameterGroup {
  std::vector<std::string> patterns;  ///< globs, see `matches`
  double lr_scale = 1.0;              ///< this group's learning rate is lr_scale · lr()
  std::optional<double> weight_decay = std::nullopt;
  std::optional<double> beta1 = std::nullopt;
  std::optional<double> beta2 = std::nullopt;
  std::optional<double> epsilon = std::nullopt;
  std::optional<double> momentum = std::nullopt;
};

/// True if the whole of `name` matches `pattern`: `*` stands for any characters (dots too, also none), `?`
/// for one.
///
/// Example   matches("*.bias", "h.0.attn.bias") and matches("h.?.ln*", "h.3.ln_1.weight"), but not
///           matches("*.bias", "bias")
[[nodiscard]] bool matches(std::string_view pattern, std::string_view name) noexcept;

/// What `group_index` returns for a name that matches no group.
inline constexpr std::size_t kNoGroup = std::numeric_limits<std::size_t>::max();

/// Index of the first group with a pattern that matches: earlier groups win over later ones.
[[nodiscard]] std::size_t group_index(std::span<const ParameterGroup> groups, std::string_view name) noexcept;

/// The usual rule for transformers: biases and the gains of normalisations are not decayed, matrices and
/// embeddings are. One group with weight_decay 0; everything else has the optimizer's own.
///
/// Names     bias, gain, or a module named ln..., norm... or ...norm: GPT-2's (`h.0.ln_1.weight`,
///           `h.0.mlp.c_fc.bias`) and Llama's (`layers.0.input_layernorm.weight`, `norm.weight`).
/// Source    Radford et al., 2018, section 4.1: "on all non bias or gain weights".
[[nodiscard]] std::vector<ParameterGroup> no_decay_for_biases_and_norms();

}  // namespace tessera::optim

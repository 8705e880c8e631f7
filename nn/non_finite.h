#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "nn/module.h"

namespace tessera::nn {

/// The first tensor with a value that is NaN or infinite.
struct NonFinite {
  std::string module;   ///< its path: "h.3.mlp.c_fc"
  std::string what;     ///< "parameter 'weight'", "output", "gradient of the output", "gradient of 'weight'"
  std::string message;  ///< a sentence with the module, the tensor, the element and its value
  /// Outputs of modules that were looked at before: of ranks that run one model together, the one with the
  /// least met it first. 0 for a parameter.
  std::int64_t outputs_before = 0;
};

/// Runs `run` (a forward pass, or forward and backward) and watches every module below `model`: for who must
/// find out where a NaN loss comes from. Random numbers have no hidden state, so running a failed step again
/// with the same parameters, batch, step and sample offset shows what happened. Looks at parameters first,
/// then at the outputs of modules as they come (an inner one before the one around it), at gradients of
/// outputs, and last at gradients of parameters. Nothing if all are finite.
///
/// Ranks    `run` runs in any case, once, so that collectives in it match on ranks that find something else.
///          What is dropped or on meta is not looked at.
/// Cost     Only while it runs: it attaches hooks and removes them, also after an exception of `run`, which
///          passes on.
/// Example  if (!std::isfinite(loss.item())) {
///            auto culprit = find_first_non_finite(model, [&] { model.loss(ids, targets).backward(); });
///            throw NonFiniteError(culprit ? culprit->message : "the loss is not finite");
///          }
[[nodiscard]] std::optional<NonFinite> find_first_non_finite(Module& model, const std::function<void()>& run);

}  // namespace tessera::nn

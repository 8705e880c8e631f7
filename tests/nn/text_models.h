#pragma once

// Models whose texts do not depend on rounding, for tests of generation.

#include <memory>
#include <string>

#include "autograd/arithmetic.h"
#include "autograd/grad_mode.h"
#include "nn/model_factory.h"

namespace tessera::nn {

/// In f64, with weights large enough that logits of different tokens lie apart: with a cache sums run in
/// another order, and the 1e-15 that this makes must not decide between two tokens.
inline std::unique_ptr<LanguageModel> make_model(const std::string& sizes) {
  std::unique_ptr<LanguageModel> model = make_language_model(sizes, 23);
  model->to(kF64);
  const NoGrad no_grad;
  for (const auto& [name, parameter] : model->named_parameters()) {
    Tensor weights = parameter;
    if (parameter.dims() == 2) weights.copy_from(parameter.detach() * 10.0);
  }
  return model;
}

inline constexpr const char* kGpt2 = "layers=2,heads=2,width=16,context=12";
inline constexpr const char* kLlama = "family=llama,layers=2,heads=4,kv_heads=2,width=16,context=12";

}  // namespace tessera::nn

#pragma once

#include "nn/module.h"

namespace tessera::nn {

/// A module in evaluation mode for the length of a scope, then in the mode that it had: also where an
/// exception leaves it, so that dropout does not stay off in the training that goes on.
class EvaluationScope {
 public:
  explicit EvaluationScope(Module& module) : module_(module), was_training_(module.training()) {
    module.eval();
  }
  ~EvaluationScope() { module_.train(was_training_); }
  EvaluationScope(const EvaluationScope&) = delete;
  EvaluationScope& operator=(const EvaluationScope&) = delete;

 private:
  Module& module_;
  bool was_training_;
};

}  // namespace tessera::nn

#pragma once

#include "tensor/context.h"

namespace tessera {

/// Operations in the scope are not recorded, and tensors that require gradients may be changed in place: for
/// evaluation and for optimizers.
class NoGrad {
 public:
  NoGrad() : previous_(RankContext::current().grad_enabled) { RankContext::current().grad_enabled = false; }
  ~NoGrad() { RankContext::current().grad_enabled = previous_; }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool previous_;
};

/// Operations in the scope are recorded again, inside a NoGrad.
class EnableGrad {
 public:
  EnableGrad() : previous_(RankContext::current().grad_enabled) {
    RankContext::current().grad_enabled = true;
  }
  ~EnableGrad() { RankContext::current().grad_enabled = previous_; }
  EnableGrad(const EnableGrad&) = delete;
  EnableGrad& operator=(const EnableGrad&) = delete;

 private:
  bool previous_;
};

/// Whether operations in the scope compute and check layouts (autograd/layout_rules.h); results of those that
/// do not are I everywhere. Off inside of backward passes, on again in recomputed forward passes.
class LayoutChecks {
 public:
  explicit LayoutChecks(bool on) : previous_(RankContext::current().check_layouts) {
    RankContext::current().check_layouts = on;
  }
  ~LayoutChecks() { RankContext::current().check_layouts = previous_; }
  LayoutChecks(const LayoutChecks&) = delete;
  LayoutChecks& operator=(const LayoutChecks&) = delete;

 private:
  bool previous_;
};

}  // namespace tessera

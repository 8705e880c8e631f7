#pragma once

// Private to nn/: what Module::hooks_ points to.

#include "nn/module.h"

namespace tessera::nn {

struct Module::Hooks {
  template <class F>
  using List = std::vector<std::pair<HookId, F>>;

  List<ForwardHook> before_forward;
  List<ForwardHook> after_forward;
  List<BackwardHook> before_backward;
  List<BackwardHook> after_backward;
  HookId last_id = 0;

  [[nodiscard]] bool empty() const {
    return before_forward.empty() && after_forward.empty() && before_backward.empty() &&
           after_backward.empty();
  }
};

}  // namespace tessera::nn

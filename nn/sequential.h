#pragma once

#include <type_traits>

#include "nn/module.h"

namespace tessera::nn {

/// Modules one after the other, named "0", "1", ...
///
/// Example   Sequential model;
///           model.add<Linear>(2, 64);
///           model.add<Relu>();
///           model.add<Linear>(64, 3);
///           Tensor logits = model(x);
class Sequential final : public UnaryModule {
 public:
  /// Makes a module at the end; returns it.
  template <class T, class... Args>
  T& add(Args&&... args) {
    static_assert(std::is_base_of_v<UnaryModule, T>,
                  "Sequential holds modules from one tensor to one tensor");
    T& module = add_module<T>(std::to_string(layers_.size()), std::forward<Args>(args)...);
    layers_.push_back(&module);
    return module;
  }

  Tensor forward(const Tensor& x) override {
    Tensor y = x;
    for (UnaryModule* layer : layers_) y = (*layer)(y);
    return y;
  }

  [[nodiscard]] std::size_t size() const noexcept { return layers_.size(); }

 private:
  std::vector<UnaryModule*> layers_;
};

}  // namespace tessera::nn

#include "nn/non_finite.h"

#include <fmt/format.h>

#include "kernels/kernels.h"

namespace tessera::nn {
namespace {

// Row-major index of the first such element, or −1.
std::int64_t first_non_finite(const Tensor& x) {
  if (!x.defined() || !is_floating(x.dtype()) || x.device() == meta || x.storage().is_dropped()) return -1;
  return kernels::of(x.device().type).reductions.first_non_finite(x.view());
}

std::string element_name(const Tensor& x, std::int64_t index) {
  std::string text;
  for (int d = x.dims() - 1; d >= 0; --d) {
    text = std::to_string(index % x.dim(d)) + (text.empty() ? "" : ", ") + text;
    index /= x.dim(d);
  }
  return "[" + text + "]";
}

class Watch {
 public:
  explicit Watch(Module& model) {
    for (Module* module : model.modules()) {
      const auto outputs = [this](Module& where, std::span<Tensor> tensors) {
        for (const Tensor& x : tensors) look_at(x, where, "output");
        ++outputs_;
      };
      const auto gradients = [this](Module& where, std::span<const Tensor> tensors) {
        for (const Tensor& x : tensors) look_at(x, where, "gradient of the output");
      };
      hooks_.emplace_back(module, module->add_forward_hook(outputs));
      hooks_.emplace_back(module, module->add_backward_pre_hook(gradients));
    }
  }
  ~Watch() {
    for (auto& [module, id] : hooks_) module->remove_hook(id);
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  void look_at(const Tensor& x, const Module& where, const std::string& what) {
    if (found) return;
    const std::int64_t index = first_non_finite(x);
    if (index < 0) return;
    const double value = x.detach().set_layout({}).reshape({x.num_elements()}).at({index});
    const std::string place = where.name().empty() ? where.type_name() : "'" + where.name() + "'";
    found = {where.name(), what,
             fmt::format("the first value that is not finite is in the {} of {}: {} at element {} of {}",
                         what, place, value, element_name(x, index), describe(x)),
             outputs_};
  }

  void look_at_parameters(Module& model, bool gradients) {
    for (Module* module : model.modules()) {
      for (const auto& [name, parameter] : module->own_parameters()) {
        if (gradients) {
          look_at(parameter.grad(), *module, fmt::format("gradient of '{}'", name));
        } else {
          look_at(parameter, *module, fmt::format("parameter '{}'", name));
        }
      }
    }
  }

  std::optional<NonFinite> found;

 private:
  std::int64_t outputs_ = 0;
  std::vector<std::pair<Module*, HookId>> hooks_;
};

}  // namespace

std::optional<NonFinite> find_first_non_finite(Module& model, const std::function<void()>& run) {
  Watch watch(model);
  watch.look_at_parameters(model, /*gradients=*/false);
  run();
  if (!watch.found) watch.look_at_parameters(model, /*gradients=*/true);
  return watch.found;
}

}  // namespace tessera::nn

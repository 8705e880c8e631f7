#include "kernels/meta/count.h"
#include "kernels/meta/families.h"

namespace tessera::kernels::meta_device {
namespace {

/// A copy in another dtype than the parameter's, whatever its shape, or none. A parameter may have no
/// dimensions, so only the dtype tells on meta, where no view has data.
bool has_low_precision(const UpdateItem& item) {
  return item.low_precision.data != nullptr || size_bytes(item.low_precision.dtype) == 2;
}

class MetaUpdates final : public Updates {
 public:
  // 15 per element: gradient's scale 1; m ← β₁·m + (1 − β₁)·g 3; v ← β₂·v + (1 − β₂)·g² 4; their bias
  // corrections 2; √v + ε 2; m / that, · lr, subtract 3. Weight decay: decoupled 1 (the parameter shrinks),
  // else 2 (added to g). The rounding of 16-bit state is done on integers.
  void adam(std::span<const UpdateItem> items, const AdamOptions& options) const override {
    const std::int64_t decay = options.weight_decay == 0.0 ? 0 : options.decoupled ? 1 : 2;
    Count count(KernelKind::kUpdate);
    for (const UpdateItem& item : items) {
      count.flops((15 + decay) * item.parameter.num_elements()).reads(item.grad);
      count.updates(item.parameter).updates(item.moment1).updates(item.moment2);
      if (item.parameter.dtype == DType::kBF16) {
        count.updates(item.master_low);
      } else if (has_low_precision(item)) {
        count.writes(item.low_precision);
      }
    }
  }

  // 3 per element: gradient's scale, · lr, subtract. Weight decay 2; velocity ← μ·velocity + (1 −
  // dampening)·g 3, but on the first step a copy; Nesterov's g + μ·velocity 2.
  void sgd(std::span<const UpdateItem> items, const SgdOptions& options) const override {
    const bool has_velocity = options.momentum != 0.0;
    const std::int64_t per_element = 3 + (options.weight_decay != 0.0 ? 2 : 0) +
                                     (has_velocity && !options.first_step ? 3 : 0) +
                                     (has_velocity && options.nesterov ? 2 : 0);
    Count count(KernelKind::kUpdate);
    for (const UpdateItem& item : items) {
      count.flops(per_element * item.parameter.num_elements()).reads(item.grad).updates(item.parameter);
      if (has_velocity) count.writes(item.moment1);
      if (has_velocity && !options.first_step) count.reads(item.moment1);
      if (has_low_precision(item)) count.writes(item.low_precision);
    }
  }

  // 8 per element: gradient's scale; s ← s + g² 2; √s + ε 2; g / that, · lr, subtract 3. Weight decay 2.
  void adagrad(std::span<const UpdateItem> items, const AdagradOptions& options) const override {
    count_one_moment(items, 8 + (options.weight_decay == 0.0 ? 0 : 2));
  }

  // 10 per element: gradient's scale; β₁·m + (1 − β₁)·g 3; its sign; β₂·m + (1 − β₂)·g 3; · lr, subtract 2.
  // Weight decay 1.
  void lion(std::span<const UpdateItem> items, const LionOptions& options) const override {
    count_one_moment(items, 10 + (options.weight_decay == 0.0 ? 0 : 1));
  }

  // Adam's 8 for g, m and v; the direction (below); two squares, added up 4.
  void lamb_moments(std::span<const UpdateItem> items, const AdamOptions& options,
                    std::span<LambSquares> squares) const override {
    Count count(KernelKind::kUpdate);
    for (const UpdateItem& item : items) {
      count.flops((8 + direction_flops(options) + 4) * item.parameter.num_elements());
      count.reads(item.grad).reads(item.parameter).updates(item.moment1).updates(item.moment2);
    }
    for (LambSquares& sums : squares) sums = {};
  }

  // The direction, · lr · trust, subtract 2.
  void lamb(std::span<const UpdateItem> items, const AdamOptions& options,
            std::span<const double> /*trust*/) const override {
    Count count(KernelKind::kUpdate);
    for (const UpdateItem& item : items) {
      count.flops((direction_flops(options) + 2) * item.parameter.num_elements());
      count.updates(item.parameter).reads(item.moment1).reads(item.moment2);
      if (has_low_precision(item)) count.writes(item.low_precision);
    }
  }

  void split_masters(const ConstView& master, const View& high, const View& low) const override {
    Count(KernelKind::kUpdate).reads(master).writes(high).writes(low);
  }

  void join_masters(const ConstView& high, const ConstView& low, const View& master) const override {
    Count(KernelKind::kUpdate).reads(high).reads(low).writes(master);
  }

 private:
  // Bias corrections 2, √v + ε 2, the quotient 1; weight decay 2.
  static std::int64_t direction_flops(const AdamOptions& options) {
    return 5 + (options.weight_decay == 0.0 ? 0 : 2);
  }

  static void count_one_moment(std::span<const UpdateItem> items, std::int64_t per_element) {
    Count count(KernelKind::kUpdate);
    for (const UpdateItem& item : items) {
      count.flops(per_element * item.parameter.num_elements()).reads(item.grad);
      count.updates(item.parameter).updates(item.moment1);
      if (has_low_precision(item)) count.writes(item.low_precision);
    }
  }
};

}  // namespace

const Updates& updates() noexcept {
  static const MetaUpdates family;
  return family;
}

}  // namespace tessera::kernels::meta_device

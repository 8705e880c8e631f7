#pragma once

// Layers and models. A module owns named parameters and named child modules, which register themselves where
// they are made, in the constructor:
//
//   class Classifier : public nn::UnaryModule {
//    public:
//     Classifier(std::int64_t inputs, std::int64_t width, std::int64_t classes)
//         : hidden_(add_module<nn::Linear>("hidden", inputs, width)),
//           output_(add_module<nn::Linear>("output", width, classes)) {}
//     Tensor forward(const Tensor& x) override { return output_(relu(hidden_(x))); }
//
//    private:
//     nn::Linear& hidden_;
//     nn::Linear& output_;
//   };
//
//   Classifier model(2, 64, 3);
//   optim::AdamW optimizer(model.named_parameters());     // hidden.weight, hidden.bias, output.weight, ...
//   nn::cross_entropy(model(x), labels).backward();       // model(x), not model.forward(x): runs the hooks
//
// A model may be built without memory and filled later, with the same values as if it had been built there at
// once:
//
//   DeviceScope scope(meta);
//   nn::Gpt2 model(nn::Gpt2Config::gpt2_xl());
//   model.materialize(cpu);

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/checkpoint.h"
#include "nn/init.h"
#include "tensor/context.h"
#include "tensor/tensor.h"

namespace tessera::nn {

class Module;

/// Sees, and may replace, the inputs of a module (before forward) or its outputs (after it).
using ForwardHook = std::function<void(Module& module, std::span<Tensor> tensors)>;
/// Sees the gradients of a module's outputs (before its backward pass) or of its inputs (after it), one for
/// each output or input in its order; undefined where no gradient came or none is wanted.
using BackwardHook = std::function<void(Module& module, std::span<const Tensor> gradients)>;
using HookId = std::uint64_t;

/// All that is known of a parameter: what it takes to give any rank its part of the initial values.
struct ParameterRecord {
  std::string name;  ///< dotted, from the module that was asked
  Tensor tensor;
  Init init;
  std::string stream;  ///< of its random numbers; fixed at construction
};

/// Base of layers and models; see the example above.
///
/// Names     A parameter's name is the path to it, joined by dots: "h.0.attn.c_attn.weight". It is known from
///           the start, since a child is made inside of `add_module`. The name is also the stream of the
///           parameter's initial values; top-level modules after a rank's first get a number before it, so
///           that two of them do not begin with equal weights.
/// Lifetime  A module owns its children and stays where it is made: it can't be copied or moved. Parameters
///           are shared handles and may outlive it. With hooks on backward, it must outlive the graphs
///           recorded through it.
/// Threads   One module is used by one rank at a time.
class Module {
 public:
  virtual ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // --- Structure
  /// Path from the top-level module: "h.0.attn"; empty for the top-level module itself.
  [[nodiscard]] std::string name() const;
  /// The class: "CausalSelfAttention".
  [[nodiscard]] std::string type_name() const;
  /// Direct children by their names here.
  [[nodiscard]] std::vector<std::pair<std::string, Module*>> children() const;
  /// This module and all below, parents first, in the order of registration.
  [[nodiscard]] std::vector<Module*> modules();
  /// The module at a path from this one. IndexError that names the nearest for an unknown path.
  [[nodiscard]] Module& find_module(std::string_view path);

  // --- Parameters
  /// Every parameter below this module by its path from here, each once: a tied one under its owner's name,
  /// or its first where the owner is not below.
  [[nodiscard]] NamedTensors named_parameters() const;
  [[nodiscard]] std::vector<Tensor> parameters() const;
  /// Those registered in this module itself, not below; tied ones too.
  [[nodiscard]] NamedTensors own_parameters() const;
  [[nodiscard]] std::vector<ParameterRecord> parameter_records() const;
  /// IndexError that names the nearest for an unknown path.
  [[nodiscard]] Tensor find_parameter(std::string_view path) const;
  /// Elements of all parameters; tied ones count once.
  [[nodiscard]] std::int64_t num_parameters() const;
  /// Drops all gradients: their memory goes back to the pool.
  void zero_grad();

  /// Gives memory to parameters and buffers on meta, on `device`, and writes their initial values: the same
  /// as if the module had been built there. With a filter, only to those whose path it accepts. Handles stay
  /// what they are, so tied weights stay tied and optimizers keep their parameters.
  using NameFilter = std::function<bool(std::string_view path)>;
  void materialize(Device device = cpu, const NameFilter& filter = nullptr);
  /// Converts floating parameters and buffers; handles stay, gradients are dropped. Gradients of 16-bit
  /// parameters accumulate in f32. Make the optimizer afterwards.
  void to(DType dtype);

  // --- State
  /// Parameters and saved buffers, each once: what a checkpoint holds. The handles are live: clone what must
  /// last.
  [[nodiscard]] NamedTensors state() const;
  /// Copies values in, converting dtypes. A tied parameter may stand under any of its names.
  /// Errors   DataError that lists every missing, unexpected, doubled and misshapen name; DeviceError for one
  ///          on meta. Nothing is changed then.
  void load_state(const NamedTensors& state);

  // --- Modes
  /// Training mode (the default) or evaluation, here and below: evaluation turns dropout off.
  void train(bool on = true);
  void eval() { train(false); }
  [[nodiscard]] bool training() const noexcept { return training_; }

  /// Selective recomputation, here and below (Korthikanti et al., 2022): values that are cheap to make again,
  /// of norms and activation functions, are made again in the backward pass instead of kept. The gradients
  /// are the same bits. Off by default.
  void recompute_cheap_values(bool on = true);
  [[nodiscard]] bool recomputes_cheap_values() const noexcept { return recompute_cheap_values_; }

  // --- Hooks, run by operator() around forward
  /// Pre-hooks run in the order in which they were added, hooks after forward in the reverse order: the first
  /// added is the outermost around the module. After an exception the hooks that have not run yet are
  /// skipped.
  HookId add_forward_pre_hook(ForwardHook hook);
  HookId add_forward_hook(ForwardHook hook);
  /// Before the backward pass of the module: gradients of its outputs have arrived. Under recomputation it
  /// runs after the second forward pass.
  HookId add_backward_pre_hook(BackwardHook hook);
  /// After the backward pass of the module: gradients of its inputs and (unless deferred) of its parameters
  /// are there. Not called if no input needs a gradient, as of a first layer: see register_accumulated_hook
  /// in autograd/graph.h.
  HookId add_backward_hook(BackwardHook hook);
  /// Without effect for an id that is gone.
  void remove_hook(HookId id);

  /// A table of modules and parameters for people; equal neighbours, as the blocks of a transformer, share a
  /// line.
  [[nodiscard]] std::string summary() const;

 protected:
  Module();

  /// Makes a child, owned by this module. `name` may contain dots ("h.0") but no colon. ConfigError for a
  /// name taken.
  template <class T, class... Args>
  T& add_module(std::string_view name, Args&&... args) {
    const ChildScope scope(*this, name);
    auto child = std::make_unique<T>(std::forward<Args>(args)...);
    T& result = *child;
    children_.emplace_back(std::string(name), std::move(child));
    return result;
  }

  /// Makes a parameter that requires gradients, on the rank's default device. ConfigError for a name taken.
  Tensor add_parameter(std::string_view name, const Shape& shape, const Init& init, DType dtype = kF32);
  /// Registers a parameter of another module under a name here: both are one.
  Tensor tie_parameter(std::string_view name, const Tensor& parameter);
  /// A tensor that is not trained; in state() unless `saved` is false.
  Tensor add_buffer(std::string_view name, const Shape& shape, const Init& init, bool saved = true,
                    DType dtype = kF32);

  /// The name of a random stream of this module: stream_name("dropout") == "h.0.attn.dropout".
  [[nodiscard]] std::string stream_name(std::string_view what) const { return prefix_ + std::string(what); }

  /// function(inputs...), a value that costs little to compute and much to keep: the graph does not keep it
  /// if recompute_cheap_values() is on. `function` is a pure function of tensors; it captures by value.
  ///
  /// Example   Tensor forward(const Tensor& x) override {
  ///             return c_proj_(cheap([](const Tensor& f) { return gelu(f); }, c_fc_(x)));
  ///           }
  template <class F, class... Inputs>
  [[nodiscard]] Tensor cheap(F function, const Inputs&... inputs) const {
    static_assert((std::is_same_v<Inputs, Tensor> && ...), "a function of tensors; capture everything else");
    if (!recompute_cheap_values_) return function(inputs...);
    const std::array<Tensor, sizeof...(Inputs)> all{inputs...};
    return recomputed(
        [function = std::move(function)](std::span<const Tensor> again) {
          return [&]<std::size_t... i>(std::index_sequence<i...>) { return function(again[i]...); }
          (std::index_sequence_for<Inputs...>());
        },
        std::span<const Tensor>(all));
  }

  /// Runs `forward` between the hooks; operator() of every module is made of it. `forward` takes the tensors
  /// `inputs` and returns a Tensor or a std::array of them. Without hooks it costs one comparison.
  ///
  /// Example   Tensor operator()(const Tensor& x, const Tensor& m) {
  ///             return run_hooks([this](const Tensor& a, const Tensor& b) { return forward(a, b); }, x, m);
  ///           }
  template <class Forward, class... Inputs>
  auto run_hooks(Forward&& forward, const Inputs&... inputs) {
    static_assert((std::is_same_v<Inputs, Tensor> && ...), "hooks see tensors; capture everything else");
    if (hooks_ == nullptr) return forward(inputs...);
    std::array<Tensor, sizeof...(Inputs)> hooked{inputs...};
    before_forward(hooked);
    auto outputs = std::apply(forward, hooked);
    if constexpr (std::is_same_v<decltype(outputs), Tensor>) {
      after_forward(std::span(&outputs, 1));
    } else {
      after_forward(std::span<Tensor>(outputs));
    }
    return outputs;
  }

 private:
  enum class Role : std::uint8_t { kParameter, kTied, kBuffer, kUnsavedBuffer };
  struct Entry {
    std::string name;
    Tensor tensor;
    Init init;
    std::string stream;
    Role role;
    [[nodiscard]] bool is_parameter() const { return role == Role::kParameter || role == Role::kTied; }
  };
  struct NamedEntry {
    std::string path;
    const Entry* entry;
  };
  struct Hooks;

  // Extends RankContext::module_path while a child is made.
  class ChildScope {
   public:
    ChildScope(const Module& parent, std::string_view name);
    ~ChildScope();
    ChildScope(const ChildScope&) = delete;
    ChildScope& operator=(const ChildScope&) = delete;

   private:
    std::string previous_;
  };

  void check_name(std::string_view name) const;
  Tensor add_entry(std::string_view name, const Shape& shape, const Init& init, DType dtype, Role role);
  // All entries below in the order of registration, aliases of tied parameters included.
  void collect_entries(const std::string& path, std::vector<NamedEntry>& entries) const;
  [[nodiscard]] std::vector<NamedEntry> entries() const;
  [[nodiscard]] std::vector<NamedEntry> unique_entries() const;
  void collect_modules(std::vector<Module*>& modules);
  Hooks& hooks();
  void before_forward(std::span<Tensor> inputs);
  void after_forward(std::span<Tensor> outputs);

  std::string prefix_;  // of stream names: "h.0.attn.", or "model2:h.0.attn." below a second top-level module
  bool training_ = true;
  bool recompute_cheap_values_ = false;
  std::vector<Entry> entries_;
  std::vector<std::pair<std::string, std::unique_ptr<Module>>> children_;
  std::unique_ptr<Hooks> hooks_;  // null while there are none

  friend class SummaryTable;
};

/// A module from one tensor to one tensor: most layers, and everything that fits into Sequential.
class UnaryModule : public Module {
 public:
  virtual Tensor forward(const Tensor& x) = 0;
  Tensor operator()(const Tensor& x) {
    return run_hooks([this](const Tensor& input) { return forward(input); }, x);
  }
};

}  // namespace tessera::nn

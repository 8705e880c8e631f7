#include "nn/module.h"

#include <cxxabi.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <typeinfo>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "kernels/error.h"
#include "kernels/suggest.h"
#include "nn/module_hooks.h"
#include "tensor/create.h"

namespace tessera::nn {
namespace {

std::string join(const std::string& path, const std::string& name) {
  return path.empty() ? name : path + "." + name;
}

void name_storage(const Tensor& x, const std::string& name) {
  Storage storage = x.storage();
  storage.set_name(name);
}

}  // namespace

// --- Construction

Module::Module() {
  RankContext& context = RankContext::current();
  prefix_ = context.module_path;
  if (prefix_.empty() && ++context.num_root_modules > 1)
    prefix_ = fmt::format("model{}:", context.num_root_modules);
}

Module::~Module() = default;

Module::ChildScope::ChildScope(const Module& parent, std::string_view name)
    : previous_(RankContext::current().module_path) {
  parent.check_name(name);
  RankContext::current().module_path = parent.prefix_ + std::string(name) + ".";
}

Module::ChildScope::~ChildScope() { RankContext::current().module_path = previous_; }

void Module::check_name(std::string_view name) const {
  const bool well_formed =
      !name.empty() && name.front() != '.' && name.back() != '.' && name.find(':') == std::string_view::npos;
  const bool taken =
      std::ranges::any_of(entries_, [name](const Entry& entry) { return entry.name == name; }) ||
      std::ranges::any_of(children_, [name](const auto& child) { return child.first == name; });
  if (well_formed && !taken) return;
  throw ConfigError(fmt::format("{} '{}': the name '{}' {}", type_name(), this->name(), name,
                                taken ? "is taken; each parameter and child needs its own"
                                      : "must not be empty, begin or end with a dot, or hold a colon"));
}

Tensor Module::add_entry(std::string_view name, const Shape& shape, const Init& init, DType dtype,
                         Role role) {
  check_name(name);
  const CategoryScope category(MemoryCategory::kParameter);
  Entry entry{std::string(name), empty(shape, {.dtype = dtype}), init, stream_name(name), role};
  init.fill(entry.tensor, entry.stream);
  name_storage(entry.tensor, entry.stream);
  entries_.push_back(std::move(entry));
  return entries_.back().tensor;
}

Tensor Module::add_parameter(std::string_view name, const Shape& shape, const Init& init, DType dtype) {
  return add_entry(name, shape, init, dtype, Role::kParameter).set_requires_grad();
}

Tensor Module::add_buffer(std::string_view name, const Shape& shape, const Init& init, bool saved,
                          DType dtype) {
  return add_entry(name, shape, init, dtype, saved ? Role::kBuffer : Role::kUnsavedBuffer);
}

Tensor Module::tie_parameter(std::string_view name, const Tensor& parameter) {
  check_name(name);
  // Init and stream are those of the owner, which is the one that is asked for them.
  entries_.push_back({std::string(name), parameter, Init::zeros(), parameter.storage().name(), Role::kTied});
  return parameter;
}

// --- Structure

std::string Module::name() const {
  const std::size_t root_end = prefix_.find(':');
  std::string path = root_end == std::string::npos ? prefix_ : prefix_.substr(root_end + 1);
  if (!path.empty()) path.pop_back();
  return path;
}

std::string Module::type_name() const {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(typeid(*this).name(), nullptr, nullptr, &status), std::free);
  std::string type = status == 0 ? demangled.get() : typeid(*this).name();
  const std::size_t scope = type.rfind("::");
  return scope == std::string::npos ? type : type.substr(scope + 2);
}

std::vector<std::pair<std::string, Module*>> Module::children() const {
  std::vector<std::pair<std::string, Module*>> result;
  for (const auto& [name, child] : children_) result.emplace_back(name, child.get());
  return result;
}

void Module::collect_modules(std::vector<Module*>& modules) {
  modules.push_back(this);
  for (const auto& child : children_) child.second->collect_modules(modules);
}

std::vector<Module*> Module::modules() {
  std::vector<Module*> result;
  collect_modules(result);
  return result;
}

Module& Module::find_module(std::string_view path) {
  const std::string full = name().empty() ? std::string(path) : join(name(), std::string(path));
  std::vector<std::string> names;
  for (Module* module : modules()) {
    if (path.empty() || module->name() == full) return *module;
    if (module != this) names.push_back(module->name().substr(name().empty() ? 0 : name().size() + 1));
  }
  throw IndexError(fmt::format("{} '{}' has no module '{}'{}", type_name(), name(), path,
                               names.empty() ? "" : "; the nearest is '" + nearest_name(path, names) + "'"));
}

void Module::collect_entries(const std::string& path, std::vector<NamedEntry>& entries) const {
  for (const Entry& entry : entries_) entries.push_back({join(path, entry.name), &entry});
  for (const auto& [name, child] : children_) child->collect_entries(join(path, name), entries);
}

std::vector<Module::NamedEntry> Module::entries() const {
  std::vector<NamedEntry> result;
  collect_entries("", result);
  return result;
}

std::vector<Module::NamedEntry> Module::unique_entries() const {
  const std::vector<NamedEntry> all = entries();
  std::vector<NamedEntry> result;
  for (const NamedEntry& named : all) {
    const auto is_same = [&named](const NamedEntry& other) {
      return other.entry->tensor.is_same(named.entry->tensor);
    };
    const auto is_owner = [&is_same](const NamedEntry& other) {
      return other.entry->role != Role::kTied && is_same(other);
    };
    // The owner stands for a tied parameter, before or behind it; elsewhere than below its owner the first
    // stands for itself.
    const bool is_alias = named.entry->role == Role::kTied &&
                          (std::ranges::any_of(result, is_same) || std::ranges::any_of(all, is_owner));
    if (!is_alias) result.push_back(named);
  }
  return result;
}

// --- Parameters

std::vector<ParameterRecord> Module::parameter_records() const {
  std::vector<ParameterRecord> result;
  for (const NamedEntry& named : unique_entries()) {
    const Entry& entry = *named.entry;
    if (entry.is_parameter()) result.push_back({named.path, entry.tensor, entry.init, entry.stream});
  }
  return result;
}

NamedTensors Module::named_parameters() const {
  NamedTensors result;
  for (const NamedEntry& named : unique_entries()) {
    if (named.entry->is_parameter()) result.emplace_back(named.path, named.entry->tensor);
  }
  return result;
}

std::vector<Tensor> Module::parameters() const {
  std::vector<Tensor> result;
  for (const NamedEntry& named : unique_entries()) {
    if (named.entry->is_parameter()) result.push_back(named.entry->tensor);
  }
  return result;
}

NamedTensors Module::own_parameters() const {
  NamedTensors result;
  for (const Entry& entry : entries_) {
    if (entry.is_parameter()) result.emplace_back(entry.name, entry.tensor);
  }
  return result;
}

Tensor Module::find_parameter(std::string_view path) const {
  std::vector<std::string> names;
  for (const NamedEntry& named : entries()) {
    if (!named.entry->is_parameter()) continue;
    if (named.path == path) return named.entry->tensor;
    names.push_back(named.path);
  }
  throw IndexError(fmt::format("{} '{}' has no parameter '{}'{}", type_name(), name(), path,
                               names.empty() ? "" : "; the nearest is '" + nearest_name(path, names) + "'"));
}

std::int64_t Module::num_parameters() const {
  std::int64_t total = 0;
  for (const Tensor& parameter : parameters()) total += parameter.num_elements();
  return total;
}

void Module::zero_grad() {
  for (Tensor& parameter : parameters()) {
    if (parameter.requires_grad()) parameter.set_grad({});
  }
}

// --- Elements that come later, or change

void Module::materialize(Device device, const NameFilter& filter) {
  const CategoryScope category(MemoryCategory::kParameter);
  for (const NamedEntry& named : unique_entries()) {
    Tensor tensor = named.entry->tensor;
    if (tensor.device() != meta || device == meta || (filter && !filter(named.path))) continue;
    if (named.entry->role == Role::kTied) {
      throw DeviceError(
          fmt::format("materialize: '{}' is tied to a parameter outside of {} '{}'; materialize the "
                      "module that owns both",
                      named.path, type_name(), name()));
    }
    Tensor values = empty(tensor.shape(), {.dtype = tensor.dtype(), .device = device});
    named.entry->init.fill(values, named.entry->stream);
    if (GradInfo* info = grad_info(tensor)) info->grad = {};
    tensor.rebind(values);
    name_storage(tensor, named.entry->stream);
  }
}

void Module::to(DType dtype) {
  if (!is_floating(dtype)) {
    throw DTypeError(
        fmt::format("to: parameters are floating numbers and can't become {}", tessera::name(dtype)));
  }
  const NoGrad no_grad;
  const CategoryScope category(MemoryCategory::kParameter);
  for (const NamedEntry& named : unique_entries()) {
    Tensor tensor = named.entry->tensor;
    if (!is_floating(tensor.dtype()) || tensor.dtype() == dtype) continue;
    const std::string storage_name = tensor.storage().name();
    // Nothing is to be converted on meta, and nothing to be counted.
    tensor.rebind(tensor.device() == meta ? empty(tensor.shape(), {.dtype = dtype, .device = meta})
                                          : tensor.detach().to(dtype));
    name_storage(tensor, storage_name);
    if (GradInfo* info = grad_info(tensor)) {
      info->grad = {};
      info->grad_dtype = accumulation_dtype(dtype);
    }
  }
}

void Module::train(bool on) {
  training_ = on;
  for (const auto& child : children_) child.second->train(on);
}

void Module::recompute_cheap_values(bool on) {
  recompute_cheap_values_ = on;
  for (const auto& child : children_) child.second->recompute_cheap_values(on);
}

}  // namespace tessera::nn

// The state of a module: what a checkpoint holds, by dotted name.

#include <fmt/format.h>

#include <algorithm>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "nn/module_hooks.h"

namespace tessera::nn {
namespace {

// "a, b, c and 9 more"
std::string enumerate(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  const std::size_t shown = std::min(names.size(), kShown);
  std::string text;
  for (std::size_t i = 0; i < shown; ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

}  // namespace

NamedTensors Module::state() const {
  NamedTensors result;
  for (const NamedEntry& named : unique_entries()) {
    if (named.entry->role != Role::kUnsavedBuffer) result.emplace_back(named.path, named.entry->tensor);
  }
  return result;
}

void Module::load_state(const NamedTensors& state) {
  const std::vector<NamedEntry> known = entries();
  const auto find = [&known](const std::string& name) {
    return std::ranges::find_if(known, [&name](const NamedEntry& named) {
      return named.path == name && named.entry->role != Role::kUnsavedBuffer;
    });
  };
  std::vector<std::pair<Tensor, Tensor>> copies;  // target, source
  std::vector<std::string> missing, unexpected, misshapen, on_meta;
  for (const auto& [name, source] : state) {
    const auto found = find(name);
    if (found == known.end()) {
      unexpected.push_back(name);
      continue;
    }
    const Tensor& target = found->entry->tensor;
    if (target.shape() != source.shape()) {
      misshapen.push_back(fmt::format("{} (here {}, there {})", name, to_string(target.shape()),
                                      to_string(source.shape())));
    } else if (target.device() == meta) {
      on_meta.push_back(name);
    }
    copies.emplace_back(target, source);
  }
  for (const NamedEntry& named : unique_entries()) {
    if (named.entry->role == Role::kUnsavedBuffer) continue;
    const bool present = std::ranges::any_of(
        copies, [&named](const auto& copy) { return copy.first.is_same(named.entry->tensor); });
    if (!present) missing.push_back(named.path);
  }
  if (!missing.empty() || !unexpected.empty() || !misshapen.empty()) {
    std::string message = fmt::format("load_state: the state does not fit {}.", type_name());
    if (!missing.empty()) message += fmt::format(" Missing: {}.", enumerate(missing));
    if (!unexpected.empty()) message += fmt::format(" Unexpected: {}.", enumerate(unexpected));
    if (!misshapen.empty()) message += fmt::format(" Of another shape: {}.", enumerate(misshapen));
    throw DataError(message);
  }
  if (!on_meta.empty()) {
    throw DeviceError(fmt::format("load_state: {} on meta, where values have no place; materialize the module first",
                                  on_meta.size() == 1 ? on_meta[0] + " is" : enumerate(on_meta) + " are"));
  }
  const NoGrad no_grad;
  for (auto& [target, source] : copies) target.copy_from(source);
}

}  // namespace tessera::nn

// The state of a module: what a checkpoint holds, by dotted name.

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "autograd/grad_mode.h"
#include "kernels/error.h"
#include "kernels/suggest.h"
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

// "hidden.bais (did you mean hidden.bias?)" if the nearest of the missing names shares half of itself with
// `name`, at its beginning or at its end.
std::string with_suggestion(const std::string& name, const std::vector<std::string>& missing) {
  const std::string nearest = nearest_name(name, missing);
  const auto prefix =
      std::mismatch(name.begin(), name.end(), nearest.begin(), nearest.end()).first - name.begin();
  const auto suffix =
      std::mismatch(name.rbegin(), name.rend(), nearest.rbegin(), nearest.rend()).first - name.rbegin();
  const bool alike = 2 * std::max(prefix, suffix) > static_cast<std::ptrdiff_t>(nearest.size());
  return alike ? fmt::format("{} (did you mean {}?)", name, nearest) : name;
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
  std::vector<std::string> missing, unexpected, twice, misshapen, on_meta;
  std::unordered_set<std::string> seen;
  for (const auto& [name, source] : state) {
    if (!seen.insert(name).second) twice.push_back(name);
    const auto found = find(name);
    if (found == known.end()) {
      unexpected.push_back(name);
      continue;
    }
    const Tensor& target = found->entry->tensor;
    if (target.shape() != source.shape()) {
      misshapen.push_back(
          fmt::format("{} (here {}, there {})", name, to_string(target.shape()), to_string(source.shape())));
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
  if (!missing.empty() || !unexpected.empty() || !twice.empty() || !misshapen.empty()) {
    for (std::string& name : unexpected) name = with_suggestion(name, missing);
    std::string message = fmt::format("load_state: the state does not fit {}.", type_name());
    if (!missing.empty()) message += fmt::format(" Missing: {}.", enumerate(missing));
    if (!unexpected.empty()) message += fmt::format(" Unexpected: {}.", enumerate(unexpected));
    if (!twice.empty()) message += fmt::format(" Given twice: {}.", enumerate(twice));
    if (!misshapen.empty()) message += fmt::format(" Of another shape: {}.", enumerate(misshapen));
    throw DataError(message);
  }
  if (!on_meta.empty()) {
    throw DeviceError(
        fmt::format("load_state: {} on meta, where values have no place; materialize the module first",
                    on_meta.size() == 1 ? on_meta[0] + " is" : enumerate(on_meta) + " are"));
  }
  const NoGrad no_grad;
  for (auto& [target, source] : copies) target.copy_from(source);
}

}  // namespace tessera::nn

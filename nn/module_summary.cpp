// Module::summary(): the tree of modules as a table.
//
//   name                 type                 shape        parameters
//   ─────────────────────────────────────────────────────────────────
//   Gpt2                                                          972
//     wte                Embedding                                200
//       weight                                f32 [50, 4]         200
//     h.0 … h.2          3 × Gpt2Block                        3 × 244
//       ...
//     lm_head            Linear                                   200
//       weight           = wte.weight         f32 [50, 4]       (200)
//   ─────────────────────────────────────────────────────────────────
//   972 parameters, 3.9 kB

#include <fmt/format.h>

#include <algorithm>

#include "kernels/readable.h"
#include "nn/module_hooks.h"

namespace tessera::nn {
namespace {

// "17.9 kB"
std::string size(std::int64_t bytes) {
  const auto number = static_cast<double>(bytes);
  if (number < 1e6) return fmt::format("{:.1f} kB", number / 1e3);
  return number < 1e9 ? fmt::format("{:.1f} MB", number / 1e6) : fmt::format("{:.2f} GB", number / 1e9);
}

struct Row {
  std::string name, type, shape, parameters;
};

}  // namespace

class SummaryTable {
 public:
  explicit SummaryTable(const Module& root) {
    const std::string name = root.name();
    add(root, name.empty() ? root.type_name() : name, name.empty() ? "" : root.type_name(), 1, 0);
    std::int64_t bytes = 0;
    bool all_on_meta = true;
    for (const Tensor& parameter : root.parameters()) {
      bytes += parameter.size_bytes();
      all_on_meta = all_on_meta && parameter.device() == meta;
    }
    total_ = fmt::format("{} parameters, {}{}", with_commas(root.num_parameters()), size(bytes),
                         all_on_meta && bytes > 0 ? " once materialised" : "");
  }

  [[nodiscard]] std::string text() const {
    const Row head{"name", "type", "shape", "parameters"};
    std::size_t name = width(head.name), type = width(head.type), shape = width(head.shape),
                parameters = width(head.parameters);
    for (const Row& row : rows_) {
      name = std::max(name, width(row.name));
      type = std::max(type, width(row.type));
      shape = std::max(shape, width(row.shape));
      parameters = std::max(parameters, width(row.parameters));
    }
    std::string line;
    for (std::size_t i = 0; i < name + type + shape + parameters + 6; ++i) line += "─";
    const auto format = [&](const Row& row) {
      std::string text = fmt::format("{:<{}}  {:<{}}  {:<{}}  {:>{}}", row.name, name, row.type, type,
                                     row.shape, shape, row.parameters, parameters);
      text.erase(text.find_last_not_of(' ') + 1);
      return text + "\n";
    };
    std::string text = format(head) + line + "\n";
    for (const Row& row : rows_) text += format(row);
    return text + line + "\n" + total_ + "\n";
  }

 private:
  // Characters of UTF-8: bytes that do not continue one.
  static std::size_t width(const std::string& text) {
    return static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; }));
  }

  // What makes two modules share a line: everything that would be printed of them but their names.
  static std::string structure(const Module& module) {
    std::string result = module.type_name() + "(";
    for (const auto& entry : module.entries_) result += entry.name + describe(entry.tensor) + ";";
    for (const auto& child : module.children_) result += child.first + structure(*child.second);
    return result + ")";
  }

  void add(const Module& module, const std::string& name, const std::string& type, std::int64_t copies,
           int depth) {
    const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
    const std::int64_t count = module.num_parameters();
    rows_.push_back({indent + name, type, "",
                     count == 0   ? ""
                     : copies > 1 ? fmt::format("{} × {}", copies, with_commas(count))
                                  : with_commas(count)});
    for (const auto& entry : module.entries_) {
      const bool tied = entry.role == Module::Role::kTied;
      const bool buffer = !entry.is_parameter();
      const std::string elements = with_commas(entry.tensor.num_elements());
      // A tied parameter counts where its owner stands.
      rows_.push_back({indent + "  " + entry.name,
                       tied     ? "= " + entry.stream.substr(entry.stream.find(':') + 1)
                       : buffer ? "buffer"
                                : "",
                       describe(entry.tensor),
                       tied     ? "(" + elements + ")"
                       : buffer ? ""
                                : elements});
    }
    const auto& children = module.children_;
    for (std::size_t i = 0; i < children.size();) {
      std::size_t end = i + 1;
      while (end < children.size() && structure(*children[end].second) == structure(*children[i].second))
        ++end;
      // Two alike are quicker read than explained; the children of a line that stands for many are those of
      // the first.
      if (end - i < 3) end = i + 1;
      const auto repeats = static_cast<std::int64_t>(end - i);
      const std::string child_type = children[i].second->type_name();
      add(*children[i].second,
          repeats == 1 ? children[i].first : children[i].first + " … " + children[end - 1].first,
          repeats == 1 ? child_type : fmt::format("{} × {}", repeats, child_type), repeats, depth + 1);
      i = end;
    }
  }

  std::vector<Row> rows_;
  std::string total_;
};

std::string Module::summary() const { return SummaryTable(*this).text(); }

}  // namespace tessera::nn

#include "kernels/cpu/onednn_matmul.h"

#include <fmt/format.h>
#include <omp.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string_view>
#include <unordered_map>

#include "kernels/context.h"
#include "kernels/error.h"

namespace tessera::kernels {
namespace {

/// Rows of a matrix as BLAS sees them: a leading stride, and whether columns or rows are contiguous.
struct Layout {
  std::int64_t leading = 0;
  bool transposed = false;
};

/// False if no dimension is contiguous, or if rows overlap (an expanded view).
bool layout_of(std::int64_t rows, std::int64_t columns, std::int64_t row_stride, std::int64_t column_stride,
               Layout* layout) {
  if (columns == 1 || column_stride == 1) {
    *layout = {rows == 1 ? columns : row_stride, false};
    if (layout->leading >= columns) return true;
  }
  if (rows == 1 || row_stride == 1) {
    *layout = {columns == 1 ? rows : column_stride, true};
    if (layout->leading >= rows) return true;
  }
  return false;
}

/// Everything that a primitive is made for.
struct Key {
  std::int64_t m, n, k, a_leading, b_leading, c_leading;
  std::int32_t num_threads;  // oneDNN plans its blocking for a number of threads
  DType input, output;
  bool a_transposed, b_transposed, has_bias, accumulate;
  std::array<char, 2> padding{};

  bool operator==(const Key& other) const = default;
};

struct KeyHash {
  std::size_t operator()(const Key& key) const noexcept {
    std::size_t hash = 0xCBF29CE484222325u;
    const auto mix = [&hash](std::int64_t x) {
      hash = (hash ^ static_cast<std::size_t>(x)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    };
    mix(key.m);
    mix(key.n);
    mix(key.k);
    mix(key.a_leading);
    mix(key.b_leading);
    mix(key.c_leading);
    mix(key.num_threads);
    mix((static_cast<int>(key.input) << 12) | (static_cast<int>(key.output) << 8) | (key.a_transposed << 3) |
        (key.b_transposed << 2) | (key.has_bias << 1) | static_cast<int>(key.accumulate));
    return hash;
  }
};

/// A created primitive with its memory objects, whose pointers change from call to call.
struct Entry {
  dnnl::matmul primitive;
  dnnl::memory a, b, c, bias, scratchpad;
  std::unordered_map<int, dnnl::memory> arguments;
  std::size_t scratchpad_bytes = 0;
  bool usable = false;
};

/// The primitives of one rank. Creating one takes tens of microseconds or more, looking one up far less than
/// one.
class PrimitiveCache : public DeviceCache {
 public:
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};

  Entry& find(const Key& key) {
    if (last_ != nullptr && key == last_key_) return *last_;
    auto found = entries_.find(key);
    if (found == entries_.end()) {
      // Shapes that keep changing (a growing key/value cache, say) must not fill the memory.
      if (entries_.size() >= kMaxEntries) {
        last_ = nullptr;
        entries_.clear();
      }
      found = entries_.emplace(key, create(key)).first;
    }
    last_key_ = key;
    last_ = &found->second;
    return *last_;
  }

 private:
  static constexpr std::size_t kMaxEntries = 2048;

  static dnnl::memory::data_type type_of(DType dtype) {
    return dtype == DType::kBF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
  }

  Entry create(const Key& key) const {
    Entry entry;
    const auto desc = [](std::int64_t rows, std::int64_t columns, std::int64_t leading, bool transposed,
                         DType dtype) {
      const dnnl::memory::dims strides =
          transposed ? dnnl::memory::dims{1, leading} : dnnl::memory::dims{leading, 1};
      return dnnl::memory::desc({rows, columns}, type_of(dtype), strides);
    };
    const dnnl::memory::desc a = desc(key.m, key.k, key.a_leading, key.a_transposed, key.input);
    const dnnl::memory::desc b = desc(key.k, key.n, key.b_leading, key.b_transposed, key.input);
    const dnnl::memory::desc c = desc(key.m, key.n, key.c_leading, false, key.output);
    const dnnl::memory::desc bias = desc(1, key.n, key.n, false, key.input);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (key.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::desc operation =
        key.has_bias ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    const dnnl::matmul::primitive_desc description(operation, attributes, engine, /*allow_empty=*/true);
    // The reference implementation is a plain triple loop.
    if (!description || std::string_view(description.impl_info_str()).find("ref") != std::string_view::npos) {
      return entry;
    }
    entry.primitive = dnnl::matmul(description);
    entry.a = dnnl::memory(a, engine, nullptr);
    entry.b = dnnl::memory(b, engine, nullptr);
    entry.c = dnnl::memory(c, engine, nullptr);
    entry.arguments = {{DNNL_ARG_SRC, entry.a}, {DNNL_ARG_WEIGHTS, entry.b}, {DNNL_ARG_DST, entry.c}};
    if (key.has_bias) {
      entry.bias = dnnl::memory(bias, engine, nullptr);
      entry.arguments.emplace(DNNL_ARG_BIAS, entry.bias);
    }
    entry.scratchpad_bytes = description.scratchpad_desc().get_size();
    if (entry.scratchpad_bytes > 0) {
      entry.scratchpad = dnnl::memory(description.scratchpad_desc(), engine, nullptr);
      entry.arguments.emplace(DNNL_ARG_SCRATCHPAD, entry.scratchpad);
    }
    entry.usable = true;
    return entry;
  }

  std::unordered_map<Key, Entry, KeyHash> entries_;
  Key last_key_{};
  Entry* last_ = nullptr;
};

PrimitiveCache& primitive_cache(KernelContext& context) {
  auto* cache = dynamic_cast<PrimitiveCache*>(context.cpu_cache.get());
  if (cache == nullptr) {
    auto created = std::make_unique<PrimitiveCache>();
    cache = created.get();
    context.cpu_cache = std::move(created);
  }
  return *cache;
}

}  // namespace

bool onednn_has_fast(DType dtype) {
  if (dtype == DType::kF32) return true;
  if (dtype != DType::kBF16) return false;
  static const bool bf16 = [] {
    const int wanted = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
    return (static_cast<int>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
  }();
  return bf16;
}

bool onednn_matmul(const GemmProblem& p) {
  Layout a, b, c;
  if (!layout_of(p.m, p.k, p.a_row, p.a_column, &a) || !layout_of(p.k, p.n, p.b_row, p.b_column, &b) ||
      !layout_of(p.m, p.n, p.c_row, p.c_column, &c) || (p.bias != nullptr && p.bias_stride != 1 && p.n > 1)) {
    return false;
  }
  if (c.transposed) {
    // cᵀ = bᵀ·aᵀ; oneDNN has no bias along rows.
    if (p.bias != nullptr) return false;
    GemmProblem swapped = p;
    swapped.m = p.n;
    swapped.n = p.m;
    swapped.a = p.b;
    swapped.a_row = p.b_column;
    swapped.a_column = p.b_row;
    swapped.b = p.a;
    swapped.b_row = p.a_column;
    swapped.b_column = p.a_row;
    swapped.c_row = p.c_column;
    swapped.c_column = p.c_row;
    return onednn_matmul(swapped);
  }

  KernelContext& context = kernel_context();
  // The setting belongs to the calling thread, hence to its rank. oneDNN has no other way to be told.
  if (omp_get_max_threads() != context.num_threads) omp_set_num_threads(context.num_threads);
  const Key key{
      p.m,     p.n,      p.k,          a.leading,    b.leading,         c.leading,   context.num_threads,
      p.input, p.output, a.transposed, b.transposed, p.bias != nullptr, p.accumulate};
  try {
    PrimitiveCache& cache = primitive_cache(context);
    Entry& entry = cache.find(key);
    if (!entry.usable) return false;
    const Workspace scratchpad(entry.scratchpad_bytes);
    // oneDNN's handles are not const; it reads a, b and bias only.
    entry.a.set_data_handle(const_cast<void*>(p.a));
    entry.b.set_data_handle(const_cast<void*>(p.b));
    entry.c.set_data_handle(p.c);
    if (key.has_bias) entry.bias.set_data_handle(const_cast<void*>(p.bias));
    if (entry.scratchpad_bytes > 0) entry.scratchpad.set_data_handle(scratchpad.data());
    entry.primitive.execute(cache.stream, entry.arguments);
    return true;
  } catch (const dnnl::error& error) {
    throw Error(fmt::format("matmul: oneDNN failed on {} [{}, {}] · [{}, {}]: {} (status {})",
                            tessera::name(p.input), p.m, p.k, p.k, p.n, error.what(),
                            static_cast<int>(error.status)));
  }
}

}  // namespace tessera::kernels

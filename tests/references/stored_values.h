#pragma once

// Reads the files of values beside it, which other frameworks' numbers are in: stored_values.py has the
// format.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tensor/create.h"

namespace tessera::reference {

/// n numbers of 32 bits: hashed of stored_values.py.
inline std::vector<std::uint32_t> hashed(std::int64_t k, std::int64_t n) {
  std::vector<std::uint32_t> numbers;
  for (std::int64_t i = 1; i <= n; ++i) {
    auto h = static_cast<std::uint32_t>(i * 0x9E3779B9 + (k + 1) * 0x85EBCA6B);
    h = (h ^ (h >> 16)) * 0x7FEB352D;
    numbers.push_back(h ^ (h >> 15));
  }
  return numbers;
}

/// Multiples of 1/128 in [−1/2, 1/2), plus offset, in f64: exact in bf16, f16 and f32.
inline Tensor noise(std::int64_t k, const Shape& shape, double offset = 0.0) {
  std::vector<double> values;
  for (const std::uint32_t h : hashed(k, shape.num_elements()))
    values.push_back(h % 128 / 128.0 - 0.5 + offset);
  return from_vector(values, shape);
}

inline Tensor whole_numbers(std::int64_t k, const Shape& shape, std::int64_t count) {
  std::vector<std::int64_t> values;
  for (const std::uint32_t h : hashed(k, shape.num_elements())) values.push_back(h % count);
  return from_vector(values, shape);
}

struct StoredTensor {
  std::vector<std::int64_t> shape;
  std::vector<double> values;  ///< of f64
  /// How far the other framework itself is from them, by dtype: ‖a − b‖ / ‖b‖.
  std::map<DType, double> own_error;
};

inline double squared_norm(const std::vector<double>& x) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  return squares;
}

/// ‖a − b‖ / ‖b‖ over all elements; ‖a‖ where b is 0.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return INFINITY;
  double squares = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) squares += (got[i] - expected[i]) * (got[i] - expected[i]);
  const double norm = squared_norm(expected);
  return std::sqrt(norm > 0.0 ? squares / norm : squares);
}

/// max |a − b| / max |b|: stricter, one wrong element of a large tensor is not lost among the others.
inline double largest_relative_error(const std::vector<double>& got, const std::vector<double>& expected) {
  if (got.size() != expected.size()) return INFINITY;
  double difference = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = std::fabs(got[i] - expected[i]);
    difference = std::isnan(d) ? INFINITY : std::max(difference, d);
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return largest > 0.0 ? difference / largest : difference;
}

/// The tensors of a file, by name. Each that is asked for is ticked off.
class StoredValues {
 public:
  /// std::runtime_error if the file is not what it should be.
  explicit StoredValues(std::string path) : path_(std::move(path)) {
    std::ifstream file(path_);
    std::string line, current;
    int exponent = 0;
    while (std::getline(file, line)) {
      if (line.starts_with("#")) continue;
      std::istringstream words(line);
      if (line.starts_with("tensor ")) {
        current = read_heading(words, exponent);
        continue;
      }
      double integer = 0.0;
      while (words >> integer) tensors_.at(current).values.push_back(std::ldexp(integer, exponent));
    }
    for (const auto& [key, tensor] : tensors_) {
      std::int64_t elements = 1;
      for (const std::int64_t size : tensor.shape) elements *= size;
      if (elements != static_cast<std::int64_t>(tensor.values.size()))
        fail(key + " has another number of elements");
    }
    if (tensors_.empty()) fail("there is no tensor in it");
  }

  [[nodiscard]] const StoredTensor& at(const std::string& name) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("it has no " + name);
    unread_.erase(name);
    return found->second;
  }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  /// What no test has asked for.
  [[nodiscard]] const std::set<std::string>& unread() const noexcept { return unread_; }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw std::runtime_error(path_ + ": " + what); }

  // "tensor logits (2,11,97) -20 2.2e-07 0.00079 -": the name.
  std::string read_heading(std::istringstream& words, int& exponent) {
    std::string tensor, name, shape, f32, f16, bf16;
    words >> tensor >> name >> shape >> exponent >> f32 >> f16 >> bf16;
    if (!words) fail("a heading has too few words");
    StoredTensor& stored = tensors_[name];
    unread_.insert(name);
    std::istringstream sizes(shape.substr(1, shape.size() - 2));
    for (std::string size; std::getline(sizes, size, ',');) stored.shape.push_back(std::stoll(size));
    for (const auto& [dtype, error] : {std::pair{kF32, f32}, {kF16, f16}, {kBF16, bf16}}) {
      if (error != "-") stored.own_error[dtype] = std::stod(error);
    }
    return name;
  }

  std::string path_;
  std::map<std::string, StoredTensor> tensors_;
  std::set<std::string> unread_;
};

}  // namespace tessera::reference

#include "dist/exact_sum.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "tensor/context.h"

namespace tessera::dist {
namespace {

constexpr int kDigitBits = 32;
constexpr int kLowest = -1074;                                  // exponent of the smallest double's only bit
constexpr std::int64_t kMostAdditions = std::int64_t{1} << 30;  // of numbers below 2^32, far from overflow
constexpr std::int64_t kDigit = (std::int64_t{1} << kDigitBits) - 1;
constexpr std::int64_t kGrain = 16384;  // elements worth a thread
__extension__ using Wide = unsigned __int128;

}  // namespace

// mantissa · 2^exponent, laid over three digits.
void ExactSumOfSquares::add_square(double square) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(square);
  const int biased = static_cast<int>(bits >> 52 & 0x7ff);
  if (biased == 0x7ff) {
    ++digits_[kNumDigits];
    return;
  }
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  const std::uint64_t mantissa = biased == 0 ? fraction : fraction | std::uint64_t{1} << 52;
  const int position = biased == 0 ? 0 : biased - 1;  // of its lowest bit, counted from 2^kLowest
  const auto digit = static_cast<std::size_t>(position / kDigitBits);
  const int shift = position % kDigitBits;
  const std::uint64_t low = mantissa << shift;
  const std::uint64_t high = shift == 0 ? 0 : mantissa >> (64 - shift);
  digits_[digit] += static_cast<std::int64_t>(low & static_cast<std::uint64_t>(kDigit));
  digits_[digit + 1] += static_cast<std::int64_t>(low >> kDigitBits);
  digits_[digit + 2] += static_cast<std::int64_t>(high);
  if (++additions_ == kMostAdditions) carry();
}

void ExactSumOfSquares::carry() noexcept {
  for (std::size_t i = 0; i + 1 < kNumDigits; ++i) {
    digits_[i + 1] += digits_[i] >> kDigitBits;
    digits_[i] &= kDigit;
  }
  additions_ = 0;
}

void ExactSumOfSquares::add(const ExactSumOfSquares& other) {
  ExactSumOfSquares carried = other;
  carried.carry();
  carry();
  for (std::size_t i = 0; i < digits_.size(); ++i) digits_[i] += carried.digits_[i];
  carry();
}

void ExactSumOfSquares::add(const Tensor& x) {
  if (x.device() == meta) return;
  const Tensor flat =
      (x.dtype() == kF32 || x.dtype() == kF64 ? x.detach() : x.detach().to(kF32)).contiguous();
  const void* data = flat.view().data;
  const bool wide = flat.dtype() == kF64;
  std::mutex mutex;
  kernels::parallel_for(flat.num_elements(), kGrain, [&](std::int64_t begin, std::int64_t end) {
    ExactSumOfSquares part;
    for (std::int64_t i = begin; i < end; ++i) {
      const double value = wide ? static_cast<const double*>(data)[i]
                                : static_cast<double>(static_cast<const float*>(data)[i]);
      part.add_square(value * value);
    }
    const std::lock_guard lock(mutex);
    add(part);
  });
}

void ExactSumOfSquares::all_reduce(std::span<ExactSumOfSquares> sums, Communicator& group) {
  if (group.size() == 1) return;
  std::vector<std::int64_t> digits;
  for (ExactSumOfSquares& sum : sums) {
    sum.carry();
    digits.insert(digits.end(), sum.digits_.begin(), sum.digits_.end());
  }
  group.all_reduce(buffer_of(digits));
  auto next = digits.cbegin();
  for (ExactSumOfSquares& sum : sums) {
    std::copy_n(next, sum.digits_.size(), sum.digits_.begin());
    next += static_cast<std::ptrdiff_t>(sum.digits_.size());
    sum.carry();
  }
}

double ExactSumOfSquares::value() const {
  ExactSumOfSquares carried = *this;
  carried.carry();
  const auto& digits = carried.digits_;
  if (digits[kNumDigits] != 0) return std::numeric_limits<double>::quiet_NaN();
  int top = kNumDigits - 1;
  while (top > 0 && digits[static_cast<std::size_t>(top)] == 0) --top;
  // The highest three digits hold more bits than a double; all others only say whether there is more.
  std::uint64_t sticky = 0;
  for (int i = 0; i < top - 2; ++i) sticky |= static_cast<std::uint64_t>(digits[static_cast<std::size_t>(i)]);
  Wide leading = 0;
  const int lowest = std::max(0, top - 2);
  for (int i = top; i >= lowest; --i)
    leading = leading << kDigitBits | static_cast<std::uint64_t>(digits[static_cast<std::size_t>(i)]);
  if (sticky != 0) leading |= 1;
  return std::ldexp(static_cast<double>(leading), kLowest + kDigitBits * lowest);
}

}  // namespace tessera::dist

#include "dist/comm_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

#include "kernels/readable.h"

namespace tessera::dist {
namespace {

auto key(const TapeTotal& row) { return std::tie(row.group, row.op); }

const TapeTotal* find_same(const std::vector<TapeTotal>& rows, const TapeTotal& row) {
  const auto found = std::ranges::find_if(rows, [&row](const auto& other) { return key(other) == key(row); });
  return found == rows.end() ? nullptr : &*found;
}

void add(TapeTotal& sum, const TapeTotal& row, int sign) {
  sum.calls += sign * row.calls;
  sum.elements += sign * row.elements;
  sum.sent_bytes += sign * row.sent_bytes;
  sum.num_hosts = std::max(sum.num_hosts, row.num_hosts);
  sum.seconds += sign * row.seconds;
  sum.wait_seconds += sign * row.wait_seconds;
}

std::string mean(std::int64_t sum, std::int64_t steps) {
  if (sum % steps == 0) return with_commas(sum / steps);
  const std::int64_t tenths = (10 * sum + steps / 2) / steps;
  return fmt::format("{}.{}", with_commas(tenths / 10), tenths % 10);
}

}  // namespace

void CommSummary::begin_step() { before_ = world_->tape().totals(); }

std::vector<TapeTotal> CommSummary::end_step() {
  std::vector<TapeTotal> step = world_->tape().totals();
  for (TapeTotal& row : step) {
    if (const TapeTotal* before = find_same(before_, row)) add(row, *before, -1);
  }
  std::erase_if(step, [](const TapeTotal& row) { return row.calls == 0; });
  for (const TapeTotal& row : step) {
    if (const TapeTotal* sum = find_same(totals_, row)) {
      add(totals_[static_cast<std::size_t>(sum - totals_.data())], row, 1);
    } else {
      totals_.insert(std::ranges::upper_bound(totals_, key(row), {}, key), row);
    }
  }
  if (++steps_ == 1) first_ = step;
  return step;
}

std::int64_t CommSummary::sent_bytes() const noexcept {
  std::int64_t sum = 0;
  for (const TapeTotal& row : totals_) sum += row.sent_bytes;
  return sum;
}

std::string CommSummary::table() const {
  constexpr const char* kLine = "\n{:<12} {:<15} {:>11} {:>16} {:>12}";
  const bool one_host = world_->num_hosts() == 1;
  const bool is_first_apart = steps_ > 1;
  const std::int64_t steps = std::max<std::int64_t>(is_first_apart ? steps_ - 1 : steps_, 1);
  std::string text =
      fmt::format("sent by rank {} of {}{}, a step (mean of {}{}):", world_->rank(), world_->size(),
                  one_host ? "" : fmt::format(" on {} hosts", world_->num_hosts()), with_commas(steps),
                  is_first_apart ? ", the first apart" : "");
  text += fmt::format(fmt::runtime(kLine), "group", "operation", "calls", "bytes", "waited ms");
  const auto line = [&](const std::string& group, const char* operation, const TapeTotal& row,
                        std::int64_t of_steps) {
    text += fmt::format(fmt::runtime(kLine), group, operation, mean(row.calls, of_steps),
                        mean(row.sent_bytes, of_steps),
                        fmt::format("{:.3f}", 1e3 * row.wait_seconds / static_cast<double>(of_steps)));
  };
  TapeTotal all, over_hosts, first;
  for (TapeTotal row : totals_) {
    if (const TapeTotal* begun = find_same(first_, row); is_first_apart && begun != nullptr) {
      add(first, *begun, 1);
      add(row, *begun, -1);
    }
    add(all, row, 1);
    if (row.num_hosts > 1) add(over_hosts, row, 1);
    if (row.calls == 0) continue;
    line(row.group, name(row.op), row, steps);
    if (row.num_hosts > 1) text += fmt::format("  over {} hosts", row.num_hosts);
  }
  if (!one_host) line("over hosts", "", over_hosts, steps);
  line("all", "", all, steps);
  text += fmt::format("  ({})", with_byte_unit(all.sent_bytes / steps));
  if (is_first_apart) line("first step", "", first, 1);
  return text;
}

}  // namespace tessera::dist

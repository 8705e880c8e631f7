#include "dist/tape.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kernels/error.h"

namespace tessera::dist {

const char* name(Collective op) noexcept {
  switch (op) {
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kSend:
      return "send";
    case Collective::kRecv:
      return "recv";
    case Collective::kBarrier:
      return "barrier";
    case Collective::kSplit:
      return "split";
    case Collective::kFinish:
      return "finish (the rank has left the program)";
  }
  return "?";
}

std::int64_t sent_bytes(Collective op, std::int64_t elements, DType dtype, int num_ranks, int rank,
                        int root) noexcept {
  const std::int64_t n = elements, R = num_ranks, b = static_cast<std::int64_t>(size_bytes(dtype));
  switch (op) {
    case Collective::kAllReduce: {
      const std::int64_t slice = n / R + (rank < n % R ? 1 : 0);
      return ((n - slice) + (R - 1) * slice) * b;
    }
    case Collective::kReduceScatter:
    case Collective::kAllGather:
    case Collective::kAllToAll:
      return (R - 1) * n * b;
    case Collective::kBroadcast:
      return (rank + 1) % num_ranks == root ? 0 : n * b;
    case Collective::kSend:
      return n * b;
    case Collective::kRecv:
    case Collective::kBarrier:
    case Collective::kSplit:
    case Collective::kFinish:
      return 0;
  }
  return 0;
}

double steady_seconds() noexcept {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Tape::Tape(std::size_t capacity) : capacity_(std::max<std::size_t>(capacity, 1)) {
  entries_.reserve(capacity_);  // so that a step never asks for memory to be remembered
}

std::uint64_t Tape::begin(TapeEntry entry) {
  const std::lock_guard lock(mutex_);
  entry.start_seconds = seconds();
  entry.end_seconds = -1.0;
  TapeTotal& total = totals_[{entry.group, entry.op}];
  total.group = entry.group;
  total.op = entry.op;
  total.num_ranks = entry.num_ranks;
  total.calls += 1;
  total.elements += entry.elements;
  total.sent_bytes += entry.sent_bytes;
  total.num_hosts = std::max(total.num_hosts, entry.num_hosts);
  const std::uint64_t ticket = next_ticket_++;
  const std::size_t slot = ticket % capacity_;
  if (slot == entries_.size()) {
    entries_.push_back(std::move(entry));
  } else {
    entries_[slot] = std::move(entry);
  }
  return ticket;
}

// Null if the ring has come round: more than `capacity` calls under way.
TapeEntry* Tape::find_locked(std::uint64_t ticket) noexcept {
  return ticket + capacity_ < next_ticket_ ? nullptr : &entries_[ticket % capacity_];
}

void Tape::add_wait_locked(const TapeEntry& entry, double seconds) noexcept {
  const auto total = totals_.find({entry.group, entry.op});
  if (total != totals_.end()) total->second.wait_seconds += seconds;
}

void Tape::was_inside(std::uint64_t ticket, double seconds) noexcept {
  const std::lock_guard lock(mutex_);
  TapeEntry* const entry = find_locked(ticket);
  if (entry == nullptr) return;
  entry->inside_seconds += seconds;
  add_wait_locked(*entry, seconds);
}

void Tape::waited(std::uint64_t ticket, double seconds) noexcept {
  const std::lock_guard lock(mutex_);
  TapeEntry* const entry = find_locked(ticket);
  if (entry == nullptr) return;
  entry->wait_seconds += seconds;  // of several waits, where some had a limit
  entry->wait_end_seconds = this->seconds();
  add_wait_locked(*entry, seconds);
}

void Tape::end(std::uint64_t ticket) noexcept {
  const std::lock_guard lock(mutex_);
  TapeEntry* const entry = find_locked(ticket);
  if (entry == nullptr) return;
  entry->end_seconds = seconds();
  const auto total = totals_.find({entry->group, entry->op});
  if (total != totals_.end()) total->second.seconds += entry->end_seconds - entry->start_seconds;
}

std::int64_t Tape::total_sent_bytes() const {
  const std::lock_guard lock(mutex_);
  std::int64_t sum = 0;
  for (const auto& [key, total] : totals_) sum += total.sent_bytes;
  return sum;
}

std::int64_t Tape::total_sent_bytes(const std::string& group) const {
  const std::lock_guard lock(mutex_);
  std::int64_t sum = 0;
  for (const auto& [key, total] : totals_) sum += key.first == group ? total.sent_bytes : 0;
  return sum;
}

std::int64_t Tape::total_sent_bytes(const std::string& group, Collective op) const {
  const std::lock_guard lock(mutex_);
  const auto total = totals_.find({group, op});
  return total == totals_.end() ? 0 : total->second.sent_bytes;
}

std::vector<TapeTotal> Tape::totals() const {
  const std::lock_guard lock(mutex_);
  std::vector<TapeTotal> rows;
  for (const auto& [key, total] : totals_) rows.push_back(total);
  return rows;
}

void Tape::reset_totals() {
  const std::lock_guard lock(mutex_);
  totals_.clear();
}

std::vector<TapeEntry> Tape::recent_locked() const {
  std::vector<TapeEntry> result;
  result.reserve(entries_.size());
  for (std::uint64_t ticket = next_ticket_ - entries_.size(); ticket < next_ticket_; ++ticket) {
    result.push_back(entries_[ticket % capacity_]);
  }
  return result;
}

std::vector<TapeEntry> Tape::recent() const {
  const std::lock_guard lock(mutex_);
  return recent_locked();
}

std::string Tape::dump(std::size_t max_entries) const {
  const std::lock_guard lock(mutex_);
  std::string text;
  const std::vector<TapeEntry> entries = recent_locked();
  for (std::size_t i = entries.size() - std::min(entries.size(), max_entries); i < entries.size(); ++i) {
    const TapeEntry& e = entries[i];
    const std::string duration =
        e.end_seconds < 0 ? "under way" : fmt::format("{:.6f} s", e.end_seconds - e.start_seconds);
    text +=
        fmt::format("{:12.6f} s  {} #{} {}{} {} {}, sends {} bytes, {}, {}:{}\n", e.start_seconds, e.group,
                    e.sequence, name(e.op), e.peer < 0 ? "" : fmt::format(" (rank {})", e.peer), e.elements,
                    name(e.dtype), e.sent_bytes, duration, e.where.file_name(), e.where.line());
  }
  return text;
}

}  // namespace tessera::dist

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

// Private to data/.
namespace tessera::data::detail {

/// Numbers distinct words 0, 1, 2, ... in the order in which they are first met. Open addressing with linear
/// probing; the words' bytes lie one behind the other, so that a word costs no allocation of its own.
class WordTable {
 public:
  static constexpr std::uint32_t kAbsent = std::numeric_limits<std::uint32_t>::max();

  WordTable() : slots_(1024) {}

  [[nodiscard]] std::uint32_t size() const noexcept { return static_cast<std::uint32_t>(begins_.size()); }

  /// Bytes of all words together.
  [[nodiscard]] std::size_t num_bytes() const noexcept { return bytes_.size(); }

  /// The bytes of a word; valid until the next insert.
  [[nodiscard]] std::string_view word(std::uint32_t number) const noexcept {
    const std::size_t begin = begins_[number];
    const std::size_t end = number + 1 < begins_.size() ? begins_[number + 1] : bytes_.size();
    return std::string_view(bytes_).substr(begin, end - begin);
  }

  /// The number of `word`, or kAbsent.
  [[nodiscard]] std::uint32_t find(std::string_view word) const noexcept {
    const std::uint64_t hash = hash_of(word);
    return slots_[slot_of(word, hash)].number;
  }

  /// The number of `word`, which is added (and then equal to the old size()) if it is new.
  std::uint32_t find_or_insert(std::string_view word) {
    const std::uint64_t hash = hash_of(word);
    std::size_t slot = slot_of(word, hash);
    if (slots_[slot].number != kAbsent) return slots_[slot].number;
    if (2 * (begins_.size() + 1) > slots_.size()) {
      grow();
      slot = slot_of(word, hash);
    }
    const auto number = static_cast<std::uint32_t>(begins_.size());
    slots_[slot] = {hash, number};
    begins_.push_back(bytes_.size());
    bytes_.append(word);
    return number;
  }

  void clear() {
    slots_.assign(slots_.size(), Slot{});
    begins_.clear();
    bytes_.clear();
  }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t number = kAbsent;
  };

  // Eight bytes a step; the length goes in so that trailing zero bytes count.
  static std::uint64_t hash_of(std::string_view word) noexcept {
    std::uint64_t hash = word.size() * 0x9E3779B97F4A7C15ull;
    const char* p = word.data();
    std::size_t left = word.size();
    while (left > 0) {
      std::uint64_t part = 0;
      const std::size_t n = left < 8 ? left : 8;
      std::memcpy(&part, p, n);
      hash = (hash ^ part) * 0xBF58476D1CE4E5B9ull;
      hash ^= hash >> 29;
      p += n;
      left -= n;
    }
    return hash ^ (hash >> 32);
  }

  // Where `word` is, or the free slot where it would be put.
  [[nodiscard]] std::size_t slot_of(std::string_view text, std::uint64_t hash) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash & mask;
    while (slots_[slot].number != kAbsent &&
           (slots_[slot].hash != hash || word(slots_[slot].number) != text)) {
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  void grow() {
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    const std::size_t mask = slots_.size() - 1;
    for (const Slot& entry : old) {
      if (entry.number == kAbsent) continue;
      std::size_t slot = entry.hash & mask;
      while (slots_[slot].number != kAbsent) slot = (slot + 1) & mask;
      slots_[slot] = entry;
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most half full
  std::vector<std::size_t> begins_;
  std::string bytes_;
};

}  // namespace tessera::data::detail

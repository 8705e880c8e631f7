#pragma once

#include <cstdint>
#include <limits>
#include <vector>

// Private to data/.
namespace tessera::data::detail {

/// A pair of neighbouring ids in one number.
[[nodiscard]] constexpr std::uint64_t pair_key(std::int32_t left, std::int32_t right) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t key) noexcept {
  key *= 0x9E3779B97F4A7C15ull;
  return key ^ (key >> 32);
}

/// From pairs of ids to (rank, id of the merged token). Built once, then only read.
class MergeTable {
 public:
  struct Merge {
    std::uint64_t key = 0;
    std::int32_t rank = -1;  ///< position in the list of merges; -1 for none
    std::int32_t id = -1;
  };

  explicit MergeTable(std::size_t num_merges) {
    std::size_t size = 16;
    while (size < 2 * num_merges) size *= 2;
    slots_.resize(size);
  }

  /// Returns false, and changes nothing, if the pair is there already.
  bool insert(std::int32_t left, std::int32_t right, std::int32_t rank, std::int32_t id) {
    const std::uint64_t key = pair_key(left, right);
    std::size_t slot = mix(key) & (slots_.size() - 1);
    while (slots_[slot].rank >= 0) {
      if (slots_[slot].key == key) return false;
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = {key, rank, id};
    return true;
  }

  /// The merge of a pair; its rank is -1 if there is none.
  [[nodiscard]] Merge find(std::int32_t left, std::int32_t right) const noexcept {
    const std::uint64_t key = pair_key(left, right);
    std::size_t slot = mix(key) & (slots_.size() - 1);
    while (slots_[slot].rank >= 0 && slots_[slot].key != key) slot = (slot + 1) & (slots_.size() - 1);
    return slots_[slot];
  }

 private:
  std::vector<Merge> slots_;  // a power of two, at most half full
};

/// Memory that encoding one pre-token needs, kept so that the next one allocates nothing.
struct MergeScratch {
  struct Symbol {
    std::int32_t id;  ///< -1 once merged into the symbol on its left
    std::int32_t previous, next;
  };
  /// A merge that was possible when it was queued.
  struct Candidate {
    std::int32_t rank;
    std::int32_t position;  ///< of the left symbol
    std::int32_t left, right, merged;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> queue;
};

}  // namespace tessera::data::detail

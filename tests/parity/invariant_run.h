#pragma once

// A training run whose every bit is compared: of each step's loss and gradient norm, and of all parameters.
// What a layout could get wrong is in it: dropout, tied embeddings, an odd vocabulary, a length and widths
// that few numbers of ranks divide, clipping that is active, weight decay by group, samples with few or no
// targets that count.

#include <functional>
#include <string>
#include <vector>

#include "dist/config.h"
#include "dist/engine.h"
#include "dist/job.h"

namespace tessera::dist::parity {

inline constexpr const char* kInvariantGpt2 = "layers=2,heads=4,width=16,context=13,dropout=0.1";
/// Deep enough for eight stages.
inline constexpr const char* kDeepGpt2 = "layers=8,heads=4,width=16,context=13,dropout=0.1";
inline constexpr const char* kDeepLlama =
    "family=llama,layers=8,heads=4,kv_heads=2,width=16,hidden=22,context=13,dropout=0.1,tied=0";
inline constexpr const char* kInvariantLlama =
    "family=llama,layers=2,heads=8,kv_heads=4,width=32,hidden=22,context=13,dropout=0.1,tied=1";

struct InvariantRun {
  std::string model = kInvariantGpt2;
  std::int64_t vocab = 251, time = 13, batch = 12;
  Config config;  ///< f32 unless it says otherwise
  EngineOptions options{};
  int threads = 1;  ///< of each rank
  int steps = 6;
  /// On every rank, before the first step: a mistake to be noticed.
  std::function<void(Engine&)> spoil = nullptr;
  /// On every rank, with its job, after the last step.
  std::function<void(Engine&, Job&)> inspect = nullptr;
  std::string load{}, save{};  ///< folders of a checkpoint to go on from, and to leave behind; empty: none
};

/// A row of a table, as tests/layout_row.h reads it; "threads=2" and "batch=7" are words as well.
[[nodiscard]] InvariantRun invariant_run(const std::string& model, const std::string& layout);

/// Trains. Lines of text: hexadecimal losses and norms, and a hash of each parameter. A collective of the
/// job's ranks, as many as the mesh has.
[[nodiscard]] std::vector<std::string> bits_of(const InvariantRun& run, Job& job);
/// On as many ranks of this process as the mesh has.
[[nodiscard]] std::vector<std::string> bits_of(const InvariantRun& run);
/// What a run is compared with: one rank, one thread, the whole batch in one micro-batch; of the same model,
/// dtype, optimizer and batch. Made once.
[[nodiscard]] const std::vector<std::string>& bits_of_one_rank(const InvariantRun& run);

/// A row as the name of a test.
[[nodiscard]] std::string test_name(const std::string& layout);

}  // namespace tessera::dist::parity

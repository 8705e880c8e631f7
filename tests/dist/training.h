#pragma once

// One small training run, on any number of ranks, with all that a layout could get wrong: dropout, tied
// embeddings, an odd vocabulary, clipping that is active, weight decay by group, samples with few or no
// targets that count. The run of one rank is the reference for all others.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "dist/communicator.h"
#include "nn/language_model.h"

namespace tessera::dist::testing {

/// Mistakes that the comparison with one rank must notice (tier T5 of docs/dist.md).
enum class Mutant {
  kNone,
  kMeanOfMeans,         ///< each rank divides by its own count of targets, then by the number of ranks
  kSkippedParameter,    ///< one small gradient is left out of the reduction
  kSharedSampleOffset,  ///< the ranks draw the same dropout masks
  kSharedSamples,       ///< every rank trains on the first rank's share
  kReducedEveryPass,    ///< gradients are reduced in each pass of the accumulation, not in the last alone
  kClippedLocally,      ///< the norm is that of the rank's own gradients, taken before the reduction
};

struct Training {
  std::string model;  ///< as make_language_model takes it
  DType dtype = kF64;
  int steps = 20;
  std::int64_t micro_batch = 0;  ///< sequences of a pass; 0: all of the rank's
  std::int64_t bucket_bytes = 25 << 20;
  bool recompute = false;
  Mutant mutant = Mutant::kNone;
  std::vector<std::string> frozen{};  ///< patterns of parameters that are not trained
};
/// Makes those parameters require no gradient.
void freeze(nn::Module& model, const std::vector<std::string>& patterns);

/// Sequences of the global batch: divisible by 1, 2, 3, 4 and 8 ranks.
inline constexpr std::int64_t kGlobalBatch = 24;
/// 251 tokens: prime, so that no layout cuts it evenly. Two layers, dropout on. 8,704 parameters.
inline const std::string kGpt2 = "layers=2,heads=2,width=16,context=10,dropout=0.1";
inline const std::string kLlama =
    "family=llama,layers=2,heads=4,kv_heads=2,width=16,hidden=24,context=10,dropout=0.1";

/// How many targets of the samples [first, first + count) of a batch count.
[[nodiscard]] std::int64_t num_targets(std::int64_t first, std::int64_t count);
/// Ids and targets of samples [first, first + count) of a step's batch, [count, T] each.
[[nodiscard]] std::pair<Tensor, Tensor> batch_of(int step, std::int64_t first, std::int64_t count);
/// Sum of the losses of samples [first, first + count) of a step's batch.
[[nodiscard]] Tensor sum_of_losses(nn::LanguageModel& model, int step, std::int64_t first,
                                   std::int64_t count);
/// Below every norm of these runs, so that clipping is active in each step.
inline constexpr double kMaxNorm = 0.05;
inline constexpr std::int64_t kVocab = 251;

struct Trained {
  std::vector<double> losses;      ///< of each step: the mean over the global batch's targets that count
  std::vector<double> grad_norms;  ///< before clipping
  std::vector<std::pair<std::string, std::vector<double>>> initial_weights, weights;
  std::int64_t num_parameters = 0;
  std::size_t num_buckets = 0;
};

/// Trains on the ranks of `group`, which all call it.
[[nodiscard]] Trained train(const Training& training, Communicator& group);
/// The same on one rank, in one pass over the whole batch.
[[nodiscard]] Trained train_alone(Training training);

/// Largest |a − b| / max(1, |b|) over all losses; over all weights.
[[nodiscard]] double largest_loss_difference(const Trained& a, const Trained& b);
[[nodiscard]] double largest_weight_difference(const Trained& a, const Trained& b);

}  // namespace tessera::dist::testing

#pragma once

// Data parallelism by itself, for reading and for loops of one's own; dist::Engine does it by Zero, stage 0.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dist/communicator.h"
#include "tensor/tensor.h"

namespace tessera::dist {

struct DataParallelOptions {
  std::int64_t bucket_bytes = 25 << 20;  ///< gradients that are reduced together
};

/// Data parallelism (Li et al., "PyTorch Distributed: experiences on accelerating data parallel training",
/// 2020): every rank has the whole model and a share of the batch; gradients are summed over the ranks while
/// the backward pass still runs.
///
/// Gradients live in buckets, flat buffers in the reverse order of the parameters, which is about the order
/// in which a backward pass finishes them. When the last gradient of a bucket is complete, its all-reduce
/// starts. Buckets start in the same order on every rank, whatever path each takes through the model.
///
///     dist::DataParallel parallel(model.named_parameters(), job.world());
///     for (micro = 0; micro < accumulation; ++micro) {
///       parallel.reduce_in_next_backward(micro == accumulation - 1);   // earlier passes only accumulate
///       (loss_sum(micro) / global_token_count).backward();
///     }
///     parallel.wait();                                               // grad() is now the sum over all ranks
///     optimizer.step();
///     optimizer.zero_grad();
///
/// Values    A sum, never a mean: the loss is divided by the *global* count of what it is a mean of, so that
///           ranks with fewer valid tokens weigh less, and 16-bit averages never occur.
/// Start     Initial values are equal on every rank by construction (random numbers are functions of the
///           seed, the parameter's name and the index): nothing is broadcast.
/// Cost      2(R−1)/R · bytes of all gradients sent by each rank and step, whatever the accumulation.
/// Gradients May be zeroed, dropped or replaced between passes: what is there is moved into the bucket before
///           the next pass, or when it is complete.
/// Errors    CommError as any collective. AutogradError if a backward pass adds to a gradient that an earlier
///           one completed and wait() has not been called since: it may be half reduced.
/// Threads   Of its rank.
class DataParallel {
 public:
  /// `parameters` in the model's order, each once; `group` outlives this. With one rank nothing is changed.
  DataParallel(const NamedTensors& parameters, Communicator& group, const DataParallelOptions& options = {});
  ~DataParallel();
  DataParallel(const DataParallel&) = delete;
  DataParallel& operator=(const DataParallel&) = delete;

  /// Whether the next backward pass ends the accumulation: only then gradients are reduced.
  void reduce_in_next_backward(bool reduce);
  /// Starts what has not started (a parameter that no rank used has gradient 0) and waits for all buckets.
  void wait();

  [[nodiscard]] std::size_t num_buckets() const noexcept;

 private:
  struct State;  // shared with the hooks on the parameters, which may outlive this
  std::shared_ptr<State> state_;
};

}  // namespace tessera::dist

#pragma once

#include "nn/embedding.h"
#include "nn/kv_cache.h"
#include "nn/losses.h"
#include "nn/module.h"

namespace tessera::nn {

/// One block of a transformer: [B, T, width] → the same.
class Block : public Module {
 public:
  virtual Tensor forward(const Tensor& x, LayerCache* cache) = 0;
  /// With a cache, x holds the tokens that follow those in it.
  Tensor operator()(const Tensor& x, LayerCache* cache = nullptr) {
    return run_hooks([&](const Tensor& input) { return forward(input, cache); }, x);
  }
};

/// What the backward pass makes again instead of keeping it, to hold fewer activations. Gradients are the
/// same bits in all modes; docs/recomputation.md has the bytes that each keeps.
struct RecomputeConfig {
  enum class Mode : std::uint8_t {
    kNone,       ///< keep what the operations of a block need
    kSelective,  ///< but not what is cheap to make again: results of norms and activation functions
    kFull,       ///< keep the input of a block and run the block again (Chen et al., 2016): a third more time
  };
  Mode mode = Mode::kNone;
  /// Blocks 0, n, 2n, ... do it, the others keep everything.
  int every = 1;
  /// How kFull keeps inputs of blocks: cut over ranks (dist/partitioned_activations.h), or in host memory
  /// (kept_in_host_memory of autograd/checkpoint.h). By default as they are.
  CheckpointOptions saved_inputs = {};
};

/// What all decoders have in common: ids → embed → blocks → head → logits. The parts can be run one by one,
/// so that a pipeline stage can hold a few blocks.
///
/// Letters   B batch, T time, V vocabulary
/// Example   auto model = make_language_model("gpt2", 50257);          // nn/model_factory.h
///           model->loss(ids, targets).backward();
class LanguageModel : public Module {
 public:
  [[nodiscard]] std::int64_t vocab() const noexcept { return vocab_; }
  /// Positions at most.
  [[nodiscard]] std::int64_t context() const noexcept { return context_; }
  [[nodiscard]] std::int64_t width() const noexcept { return width_; }
  /// "family=gpt2,layers=12,...": what make_language_model takes to build the same model again.
  [[nodiscard]] virtual std::string description() const = 0;

  /// ids [B, T] in i64 → [B, T, V]. With a cache, ids follow the tokens in it.
  /// Errors   ShapeError if ids has another shape or the sequence is longer than the context; IndexError for
  ///          an id outside of the vocabulary.
  [[nodiscard]] Tensor logits(const Tensor& ids, KvCache* cache = nullptr);
  /// Logits of the token after the last: ids [B, T] → [B, V]; the head sees one position only.
  [[nodiscard]] Tensor next_logits(const Tensor& ids, KvCache* cache = nullptr);
  /// Cross-entropy of targets [B, T] (i64; −100 counts for nothing), a scalar or [B, T] without reduction.
  /// Nothing holds the logits but the graph: the backward pass writes their gradient over them.
  [[nodiscard]] Tensor loss(const Tensor& ids, const Tensor& targets, Reduction reduction = Reduction::kMean);

  // --- The parts
  /// ids [B, T] at positions first_position + t → [B, T, width].
  [[nodiscard]] virtual Tensor embed(const Tensor& ids, std::int64_t first_position) = 0;
  /// One block, under recomputation if that is set.
  [[nodiscard]] Tensor run_block(std::int64_t i, const Tensor& x, LayerCache* cache = nullptr);
  /// Last norm and output layer: [..., width] → [..., V].
  [[nodiscard]] virtual Tensor head(const Tensor& x) = 0;
  [[nodiscard]] const std::vector<Block*>& blocks() const noexcept { return blocks_; }
  /// The modules that embed() and head() run: those that were made before the first block and after the
  /// last, wherever in the tree. What several blocks use as well (tables of rotations) is among the former.
  [[nodiscard]] std::vector<Module*> embedding_modules() const;
  [[nodiscard]] std::vector<Module*> head_modules() const;

  /// From the next forward pass on.
  /// Errors   ConfigError if `every` is below 1, or saved_inputs are given in a mode that keeps none.
  void set_recompute(const RecomputeConfig& config);
  /// kFull for every block, or kNone.
  void set_recompute(bool on);
  [[nodiscard]] const RecomputeConfig& recompute() const noexcept { return recompute_; }

  /// An empty cache for `capacity` positions; 0: the context.
  [[nodiscard]] KvCache make_cache(std::int64_t capacity = 0) const;

 protected:
  LanguageModel(std::int64_t vocab, std::int64_t context, std::int64_t width);
  /// Called by constructors for each block, in order.
  void register_block(Block& block) { blocks_.push_back(&block); }

 private:
  // ids → the last block's output
  [[nodiscard]] Tensor hidden(const Tensor& ids, KvCache* cache);
  void check_ids(const Tensor& ids, std::int64_t first_position) const;

  std::int64_t vocab_;
  std::int64_t context_;
  std::int64_t width_;
  RecomputeConfig recompute_;
  std::vector<Block*> blocks_;
};

}  // namespace tessera::nn

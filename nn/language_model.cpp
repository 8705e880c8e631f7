#include "nn/language_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/checkpoint.h"
#include "kernels/error.h"

namespace tessera::nn {

LanguageModel::LanguageModel(std::int64_t vocab, std::int64_t context, std::int64_t width)
    : vocab_(vocab), context_(context), width_(width) {
  if (vocab < 1 || context < 1 || width < 1) {
    throw ConfigError(
        fmt::format("language model: vocabulary, context and width must be positive, but are {}, {} and {}",
                    vocab, context, width));
  }
}

void LanguageModel::check_ids(const Tensor& ids, std::int64_t first_position) const {
  if (ids.dims() != 2 || ids.dtype() != kI64) {
    throw ShapeError(fmt::format("{}: ids must be i64 [B, T], but they are {}", type_name(), describe(ids)));
  }
  // Of a sequence that is cut over ranks, ids are a part.
  const bool is_part = RankContext::current().token_positions != nullptr;
  const std::int64_t length = is_part ? RankContext::current().sequence_length : first_position + ids.dim(1);
  if (length > context_) {
    throw ShapeError(
        fmt::format("{}: a sequence of {} tokens{} is longer than the model's context of {}; shorten it, "
                    "or build the model with a larger context",
                    type_name(), length,
                    first_position > 0 ? fmt::format(" ({} of them cached)", first_position) : "", context_));
  }
}

namespace {

// The modules beside the blocks in their order: null stands for a block. A module that contains blocks is
// what it contains.
void collect_beside_blocks(const Module& module, std::vector<Module*>& parts) {
  for (const auto& [name, child] : module.children()) {
    const auto is_block = [](Module* each) { return dynamic_cast<Block*>(each) != nullptr; };
    if (is_block(child)) {
      parts.push_back(nullptr);
    } else if (std::ranges::any_of(child->modules(), is_block)) {
      collect_beside_blocks(*child, parts);
    } else {
      parts.push_back(child);
    }
  }
}

}  // namespace

std::vector<Module*> LanguageModel::embedding_modules() const {
  std::vector<Module*> parts;
  collect_beside_blocks(*this, parts);
  parts.erase(std::ranges::find(parts, nullptr), parts.end());
  return parts;
}

std::vector<Module*> LanguageModel::head_modules() const {
  std::vector<Module*> parts;
  collect_beside_blocks(*this, parts);
  const auto last_block = std::find(parts.rbegin(), parts.rend(), nullptr);
  return {last_block.base(), parts.end()};
}

Tensor LanguageModel::run_block(std::int64_t i, const Tensor& x, LayerCache* cache) {
  Block& block = *blocks_.at(static_cast<std::size_t>(i));
  const bool run_again = recompute_.mode == RecomputeConfig::Mode::kFull && i % recompute_.every == 0;
  if (!run_again || cache != nullptr) return block(x, cache);
  return checkpoint([&block](const Tensor& input) { return block(input); }, x, recompute_.saved_inputs);
}

void LanguageModel::set_recompute(const RecomputeConfig& config) {
  using Mode = RecomputeConfig::Mode;
  if (config.every < 1) {
    throw ConfigError(
        fmt::format("recomputation: every n-th block, so n must be at least 1, but it is {}", config.every));
  }
  if (config.mode != Mode::kFull && config.saved_inputs.pack != nullptr) {
    throw ConfigError(
        "recomputation: only mode kFull keeps inputs of blocks, so only there can they be kept elsewhere; "
        "set the mode to kFull, or leave saved_inputs out");
  }
  recompute_ = config;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i]->recompute_cheap_values(config.mode == Mode::kSelective &&
                                       i % static_cast<std::size_t>(config.every) == 0);
  }
}

void LanguageModel::set_recompute(bool on) {
  set_recompute(RecomputeConfig{.mode = on ? RecomputeConfig::Mode::kFull : RecomputeConfig::Mode::kNone});
}

Tensor LanguageModel::hidden(const Tensor& ids, KvCache* cache) {
  const std::int64_t first_position = cache == nullptr ? 0 : cache->length();
  check_ids(ids, first_position);
  Tensor x = embed(ids, first_position);
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(blocks_.size()); ++i) {
    x = run_block(i, x, cache == nullptr ? nullptr : &cache->layer(i));
  }
  return x;
}

Tensor LanguageModel::logits(const Tensor& ids, KvCache* cache) {
  return run_hooks([&](const Tensor& input) { return head(hidden(input, cache)); }, ids);
}

Tensor LanguageModel::next_logits(const Tensor& ids, KvCache* cache) {
  return run_hooks(
      [&](const Tensor& input) {
        const Tensor x = hidden(input, cache);
        return head(x.slice(1, x.dim(1) - 1, x.dim(1))).squeeze(1);
      },
      ids);
}

Tensor LanguageModel::loss(const Tensor& ids, const Tensor& targets, Reduction reduction) {
  if (targets.shape() != ids.shape()) {
    throw ShapeError(fmt::format("{}: each id needs a target, but ids are {} and targets {}", type_name(),
                                 describe(ids), describe(targets)));
  }
  CrossEntropyConfig config;
  config.reduction = reduction;
  return cross_entropy(logits(ids), targets, config);
}

KvCache LanguageModel::make_cache(std::int64_t capacity) const {
  return KvCache(static_cast<std::int64_t>(blocks_.size()), capacity == 0 ? context_ : capacity);
}

}  // namespace tessera::nn

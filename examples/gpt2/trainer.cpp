#include "examples/gpt2/trainer.h"

#include <fmt/format.h>

#include <string_view>
#include <vector>

#include "dist/hugging_face.h"
#include "dist/pipeline_stages.h"
#include "examples/gpt2/saved_model.h"
#include "kernels/error.h"
#include "nn/model_factory.h"
#include "tensor/context.h"

namespace gpt2 {

using namespace tessera;

namespace {

std::unique_ptr<nn::LanguageModel> make_model(const TrainOptions& options, const data::TokenFile& tokens) {
  auto model = [&] {
    // First without memory, so that what is too large or impossible is refused before anything is allocated.
    const DeviceScope scope(meta);
    return nn::make_language_model(options.model, tokens.info().vocab_size);
  }();
  if (options.seq > model->context()) {
    throw ConfigError(fmt::format("--seq {}: sequences are longer than the model's context of {} tokens",
                                  options.seq, model->context()));
  }
  return model;
}

// "family=gpt2,layers=12,heads=..." → "family=gpt2,layers=1,heads=..."
std::string with_one_layer(std::string description) {
  constexpr std::string_view kKey = "layers=";
  const std::size_t begin = description.find(kKey) + kKey.size();
  return description.replace(begin, description.find(',', begin) - begin, "1");
}

}  // namespace

dist::BatchSizes with_default_batch(const dist::BatchSizes& given) {
  const bool nothing_given = given.global == 0 && given.micro_batch == 0 && given.accumulation == 0;
  return nothing_given ? dist::BatchSizes{.global = 8, .global_from = "the default of --batch"} : given;
}

Trainer::Trainer(const TrainOptions& options, dist::Job& job, const data::TokenFile& tokens)
    : options_(options), job_(job), tokens_(tokens), config_(options.config) {
  config_.batch = with_default_batch(config_.batch);
  const dist::MeshShape shape = dist::resolve_mesh(config_, job.size());
  const dist::BatchSizes batch = dist::resolve_batch_sizes(config_.batch, shape);
  model_ = make_model(options, tokens);
  num_parameters_ = model_->num_parameters();
  plan_ = {.global_batch = batch.global,
           .seq_len = options.seq == 0 ? model_->context() : options.seq,
           .seed = options.job.seed};
  static_cast<void>(plan_.windows_per_epoch(tokens.size()));  // throws if the file is too short
  mesh_ = std::make_unique<dist::Mesh>(shape, job.shared_world());
  dist::EngineOptions engine;
  engine.seq = plan_.seq_len;
  engine.schedule = options.schedule();
  if (shape[MeshAxis::kPp] > 1 && config_.pipeline.partition == "time")
    engine.part_seconds = measure_parts_of_model(batch.micro_batch);
  // Before any memory is taken: what the settings came to, and what that will hold.
  engine.announce = [&](const std::string& memory) {
    job.log(dist::describe(config_, shape, batch));
    job.log(memory);
  };
  engine_ = std::make_unique<dist::Engine>(*model_, config_, *mesh_, engine);
}

// On the root alone, whose numbers count for all ranks; with one block for all of them, since they are alike.
std::vector<double> Trainer::measure_parts_of_model(std::int64_t micro_batch) const {
  const auto num_blocks = model_->blocks().size();
  std::vector<double> seconds(3);
  job_.on_root([&] {
    const auto sample = nn::make_language_model(with_one_layer(model_->description()), model_->vocab());
    sample->to(config_.dtype);
    seconds = dist::measure_parts(*sample, micro_batch, plan_.seq_len);
  });
  std::vector<double> all(num_blocks + 2, seconds[1]);
  all.front() = seconds[0];
  all.back() = seconds[2];
  return all;
}

Trainer::~Trainer() = default;

StepReport Trainer::step() {
  if (job_.stop_requested()) engine_->request_stop();
  return engine_->train_step(
      [this](std::int64_t step, std::int64_t first, std::int64_t count, auto inputs, auto targets) {
        data::fill_batch(tokens_, plan_, step, first, count, inputs, targets);
      });
}

dist::CheckpointSources Trainer::checkpoint() {
  dist::CheckpointSources sources = engine_->checkpoint_sources();
  sources.metadata.insert({{kModelKey, model_->description()},
                           {kSeqKey, std::to_string(plan_.seq_len)},
                           {kVocabularyKey, hash_text(tokens_.info().vocabulary_hash)},
                           {kSeedKey, std::to_string(options_.job.seed)},
                           {kDTypeKey, name(config_.dtype)},
                           {kBatchKey, std::to_string(batch().global)}});
  return sources;
}

void Trainer::load_hugging_face() {
  const dist::HuggingFaceReader reader(options_.from_hf);
  engine_->load_weights({reader.tensors(), [&](const std::string& name) { return reader.read(name); }});
}

void Trainer::restore(const dist::CheckpointReader& checkpoint) {
  const auto said = [&](const char* key) -> std::string {
    const auto found = checkpoint.metadata().find(key);
    return found == checkpoint.metadata().end() ? "nothing" : found->second;
  };
  const auto require_equal = [&](const char* key, const std::string& ours, const char* what) {
    const std::string theirs = said(key);
    if (theirs != ours) {
      throw DataError(fmt::format("--resume: the checkpoint was made with {} '{}', but this run has '{}'",
                                  what, theirs, ours));
    }
  };
  require_equal(kModelKey, model_->description(), "the model");
  require_equal(kVocabularyKey, hash_text(tokens_.info().vocabulary_hash), "the vocabulary");
  require_equal(kDTypeKey, name(config_.dtype), "the dtype");
  require_equal(kSeedKey, std::to_string(options_.job.seed), "the seed");
  engine_->load(checkpoint);
}

}  // namespace gpt2

// Traps that the table of layouts would show as a difference somewhere; here each shows as what it is. See
// docs/traps.md for all of them, and where they are tested.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "dist/zero.h"
#include "nn/module.h"
#include "optim/optimizer.h"
#include "tensor/create.h"
#include "tests/parity/run.h"

namespace tessera::dist::parity {
namespace {

constexpr MeshAxis kTp = MeshAxis::kTp;

constexpr const char* kLayouts[] = {
    "dp=3 zero=1", "dp=5 zero=3", "dp=4 mics=2",         "dp=4 hpz=2",
    "tp=4",        "tp=3 sp",     "cp=3 ulysses zero=2", "dp=2,cp=2,tp=2 zero=3 sp"};

// On a rank of every layout, for both models.
void with_every_layout(const std::function<void(Engine& engine)>& use) {
  for (const char* model : {kGpt2, kLlama}) {
    for (const char* text : kLayouts) {
      SCOPED_TRACE(text);
      const TrainingRun run{.model = model, .config = layout(text)};
      run_thread_ranks(run.config.mesh.num_ranks(), [&](Job& job) { with_engine(run, job, use); });
    }
  }
}

// Trap 1. Drawn on each rank from its own position, or filled in the order of its shard, they would differ.
TEST(Trap01, InitialWeightsAreTheSameBitsInEveryLayout) {
  for (const char* model : {kGpt2, kLlama}) {
    for (const char* dtype : {"f64", "f32"}) {
      for (const char* text : kLayouts) {
        const TrainingRun run{
            .model = model, .config = layout(fmt::format("{} {}", text, dtype)), .steps = 0};
        EXPECT_EQ(run_on_threads(run).weights, run_alone(run).initial) << text;
      }
    }
  }
}

// Trap 8. 251 tokens on 2, 3, 4 and 8 ranks: a padded vocabulary would have 252 or 256.
TEST(Trap08, VocabularyIsPaddedNowhere) {
  with_every_layout([](Engine& engine) {
    const Mesh& mesh = engine.mesh();
    const NoGrad no_grad;
    // The table, as a checkpoint has it and as optimizers see it.
    const CheckpointSources sources = engine.checkpoint_sources();
    const auto& table = sources.model.tensors.front();
    EXPECT_EQ(table.shape, (Shape{kVocab, 16}));
    double elements = 0.0;
    for (const auto& [name, piece] : engine.zero().pieces())
      elements += name == table.name ? static_cast<double>(piece.num_elements()) : 0.0;
    mesh.world().all_reduce(buffer_of(std::span(&elements, 1)));
    const ZeroPlan& plan = engine.zero().plan();
    const int copies = plan.ranks.size() / plan.ranks.ways(plan.placement.optimizer);
    EXPECT_EQ(elements, static_cast<double>(kVocab * 16 * copies));
    // What softmax is taken over: all ranks' columns.
    double columns = 0.0;
    engine.model().find_module("lm_head").add_forward_hook([&columns](nn::Module&, std::span<Tensor> logits) {
      columns = static_cast<double>(logits[0].dim(-1));
    });
    for (const MicroBatch& pass : engine.micro_batches(fill)) static_cast<void>(engine.forward(pass));
    mesh.group(kTp).all_reduce(buffer_of(std::span(&columns, 1)));
    EXPECT_EQ(columns, static_cast<double>(kVocab));
  });
}

// Trap 13. A piece of a matrix is one-dimensional, and a rule on shapes would not decay it.
TEST(Trap13, DecayGoesByNameInEveryLayout) {
  with_every_layout([](Engine& engine) {
    for (const auto& [name, piece] : engine.zero().pieces()) {
      const bool is_matrix = engine.laid_out().placement(name).whole_shape.dims() > 1;
      EXPECT_EQ(engine.optimizer().group_of(name) != 0, is_matrix) << name;  // group 0 does not decay
    }
  });
}

// --- Sums of 16-bit gradients ------------------------------------------------------------------------------

// One bf16 parameter whose gradient in a pass is what the pass is given.
class Slope : public nn::Module {
 public:
  Slope() : weight_(add_parameter("weight", {7}, nn::Init::ones(), kBF16)) {}
  Tensor operator()(const Tensor& slope) {
    return run_hooks([this](const Tensor& s) { return sum(weight_ * s); }, slope);
  }

 private:
  Tensor weight_;
};

// The gradient after passes of these slopes on each of `ranks` ranks, in every placement.
void expect_gradient(int ranks, const std::vector<double>& slopes, double expected) {
  for (const ZeroPlacement& placement :
       {ZeroPlacement::stage(0), ZeroPlacement::stage(1), ZeroPlacement::stage(2), ZeroPlacement::stage(3)}) {
    for (const bool keep_full : {false, true}) {
      run_thread_ranks(ranks, [&](Job& job) {
        const Mesh mesh(MeshShape::parse(fmt::format("dp={}", ranks)), job.shared_world());
        Slope model;
        Zero zero(model, mesh, {.placement = placement, .keep_full_gradients = keep_full});
        for (std::size_t i = 0; i < slopes.size(); ++i) {
          const Tensor loss = model(full({7}, slopes[i], {.dtype = kBF16}));
          zero.begin_backward(i + 1 == slopes.size());
          loss.backward();
          zero.end_backward();
        }
        zero.finish_gradients();
        const Tensor gradient = zero.pieces().front().second.grad();
        EXPECT_EQ(gradient.dtype(), kF32);
        for (const double g : gradient.to_vector<double>()) EXPECT_EQ(g, expected);
      });
    }
  }
}

// Trap 17. bf16 has 8 bits: 256 + 1 is 256 again, however often 1 is added.
TEST(Trap17, GradientsOf16BitParametersAddUpInF32) {
  std::vector<double> slopes(100, 1.0);
  slopes.front() = 256.0;
  for (const int ranks : {1, 2}) expect_gradient(ranks, slopes, ranks * (256.0 + 99.0));
}

// Trap 20. Thirds and fifths do not exist in bf16; sums of these slopes do.
TEST(Trap20, SumsOf16BitGradientsAreExactForAnyNumberOfRanks) {
  for (const int ranks : {3, 5}) expect_gradient(ranks, {1.0, 3.0}, ranks * 4.0);
}

}  // namespace
}  // namespace tessera::dist::parity

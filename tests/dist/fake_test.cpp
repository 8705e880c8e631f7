// A world of any size with one rank in it: meshes, collectives on meta, exact bytes, and layout types checked
// without data (tier T0).

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/checkpoint.h"
#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/partitioned_activations.h"
#include "dist/ring_attention.h"
#include "dist/tensor_parallel.h"
#include "dist/ulysses.h"
#include "dist/vocab_parallel.h"
#include "kernels/error.h"
#include "nn/language_model.h"
#include "nn/model_factory.h"
#include "tensor/context.h"
#include "tensor/create.h"

namespace tessera::dist {
namespace {

TEST(FakeCommunicator, HoldsAMeshOf1024Ranks) {
  for (const int rank : {0, 511, 1023}) {
    const auto world = make_fake_communicator(1024, rank, std::make_shared<Tape>());
    const Mesh mesh(MeshShape::parse("dp=32,cp=4,tp=8"), world);
    EXPECT_EQ(mesh.world_rank_at(mesh.coordinate()), rank);
    EXPECT_EQ(mesh.group(MeshAxis::kTp).size(), 8);
    EXPECT_EQ(mesh.group(MeshAxis::kTp).rank(), rank % 8);
    EXPECT_EQ(mesh.group(MeshAxis::kDp, MeshAxis::kCp).size(), 128);
    EXPECT_EQ(mesh.group(MeshAxis::kDp, MeshAxis::kCp).rank(), rank / 8);
  }
}

TEST(FakeCommunicator, RecordsTheBytesThatCollectivesOnMetaWouldSend) {
  const auto tape = std::make_shared<Tape>();
  const Mesh mesh(MeshShape::parse("tp=8"), make_fake_communicator(8, 3, tape));
  tape->reset_totals();
  const Tensor x = empty({4, 16}, {.dtype = kBF16, .device = meta});
  Communicator& group = mesh.group(MeshAxis::kTp);
  EXPECT_EQ(all_gather(x, 0, group).shape(), (Shape{32, 16}));
  EXPECT_EQ(reduce_scatter(x, 1, group).shape(), (Shape{4, 2}));
  EXPECT_EQ(all_reduce(x, group).shape(), (Shape{4, 16}));
  EXPECT_EQ(all_to_all(x, 1, 0, group).shape(), (Shape{32, 2}));
  const std::int64_t bytes = 4 * 16 * 2;
  EXPECT_EQ(tape->total_sent_bytes("tp", Collective::kAllGather), 7 * bytes);
  EXPECT_EQ(tape->total_sent_bytes("tp", Collective::kReduceScatter), 7 * bytes / 8);
  EXPECT_EQ(tape->total_sent_bytes("tp", Collective::kAllReduce), 2 * 7 * bytes / 8);
  EXPECT_EQ(tape->total_sent_bytes("tp", Collective::kAllToAll), 7 * bytes / 8);
}

TEST(FakeCommunicator, GivesWhatThisRankWouldHaveGiven) {
  const auto world = make_fake_communicator(3, 1, std::make_shared<Tape>());
  const std::vector<int> mine{5, 6};
  std::vector<int> all(6);
  world->all_gather(buffer_of(mine), buffer_of(all));
  EXPECT_EQ(all, (std::vector<int>{5, 6, 5, 6, 5, 6}));
}

TEST(FakeCommunicator, RefusesToAskOthers) {
  const auto world = make_fake_communicator(4, 1, std::make_shared<Tape>());
  EXPECT_THROW(static_cast<void>(world->split(0, 1, "half")), CommError);
  EXPECT_THROW(static_cast<void>(world->group_of({0, 2}, "even")), IndexError);
  EXPECT_THROW(static_cast<void>(make_fake_communicator(4, 4, std::make_shared<Tape>())), IndexError);
}

// One forward and backward pass of a model on meta, as `rank` of a mesh; the layout of the loss.
std::string loss_layout(const char* model_spec, const char* mesh_text, bool sequence_parallel,
                        const Plan* plan = nullptr, std::int64_t* sent = nullptr) {
  RankContext context({.seed = 1});
  const RankContext::Scope scope(context);
  const DeviceScope on_meta(meta);
  const MeshShape shape = MeshShape::parse(mesh_text);
  const auto tape = std::make_shared<Tape>();
  const Mesh mesh(shape, make_fake_communicator(shape.num_ranks(), shape.num_ranks() - 1, tape));
  const auto model = nn::make_language_model(model_spec, 50257);
  static_cast<void>(lay_out(*model,
                            plan != nullptr ? *plan : tensor_parallel_plan(*model, mesh.size(MeshAxis::kTp)),
                            mesh, {.sequence_parallel = sequence_parallel}));
  Layout layout;
  if (mesh.size(MeshAxis::kDp) > 1) layout = layout.with(MeshAxis::kDp, AxisLayout::sharded(0));
  Tensor ids = empty({2, 64}, {.dtype = kI64, .device = meta}), targets = empty_like(ids);
  ids.set_layout(layout);
  targets.set_layout(layout);
  const Tensor loss = vocab_parallel_cross_entropy(model->logits(ids), targets, 50257, mesh, MeshAxis::kTp,
                                                   {.reduction = Reduction::kSum});
  tape->reset_totals();
  loss.backward();
  if (sent != nullptr) *sent = tape->total_sent_bytes("tp");
  return to_string(loss.layout());
}

constexpr const char* kGpt2 = "layers=2,heads=16,width=64,context=64,dropout=0.1";
constexpr const char* kLlama =
    "family=llama,layers=2,heads=16,kv_heads=2,width=64,hidden=96,context=64,tied=1";

// T0: the layouts of a whole step fit, on meshes that no machine of ours holds.
TEST(LayoutTypesWithoutData, FitThroughAWholeModel) {
  for (const char* model : {kGpt2, kLlama}) {
    for (const bool sequence_parallel : {false, true}) {
      EXPECT_EQ(loss_layout(model, "dp=64,tp=16", sequence_parallel), "dp P");
      EXPECT_EQ(loss_layout(model, "tp=3", sequence_parallel), "I");
    }
  }
}

TEST(LayoutTypesWithoutData, RefuseAPlanThatForgetsADoor) {
  const DeviceScope on_meta(meta);
  Plan plan = tensor_parallel_plan(*nn::make_language_model(kGpt2, 50257), 16);
  std::erase_if(plan, [](const PlanRow& row) { return row.role == Role::kEnter; });
  EXPECT_THROW(static_cast<void>(loss_layout(kGpt2, "dp=64,tp=16", false, &plan)), LayoutError);
}

// Backward: two all-reduces of [B, T, D] a block, and one for the output layer's input.
TEST(LayoutTypesWithoutData, CountTheBytesOfABackwardPass) {
  std::int64_t sent = 0;
  static_cast<void>(loss_layout(kGpt2, "tp=16", false, nullptr, &sent));
  EXPECT_EQ(sent, (2 * 2 + 1) * (2 * 64 * 64 * 4) * 2 * 15 / 16);
}

// --- Attention over ranks, and inputs kept in parts --------------------------------------------------------

// The bytes that dist/ring_attention.h and dist/ulysses.h state, of 12 ranks and of more tokens than there is
// memory for here; kernels on meta do nothing.
TEST(AttentionWithoutData, RunsBothPassesAndCountsTheirBytes) {
  constexpr std::int64_t B = 1, n = 1 << 16, H = 24, G = 12, K = 64, R = 12, bytes = 2;
  for (const bool ring : {true, false}) {
    for (const bool on_mesh : {true, false}) {
      RankContext context({.seed = 1});
      const RankContext::Scope scope(context);
      const auto tape = std::make_shared<Tape>();
      const Mesh mesh(MeshShape::parse("cp=12"), make_fake_communicator(R, 5, tape));
      const SequenceCut cut = ring ? SequenceCut::balanced(R * n, R) : SequenceCut::contiguous(R * n, R);
      const auto operand = [&](std::int64_t heads) {
        Tensor x = empty({B, n, heads, K}, {.dtype = kBF16, .device = meta});
        x.set_requires_grad();
        return on_mesh ? x.set_layout(Layout().with(MeshAxis::kCp, cut.layout(1))) : x;
      };
      const Tensor q = operand(H), k = operand(G), v = operand(G);
      Communicator& group = mesh.group(MeshAxis::kCp);
      tape->reset_totals();
      const Tensor y = ring ? (on_mesh ? ring_attention(q, k, v, {}, mesh, MeshAxis::kCp, cut)
                                       : ring_attention(q, k, v, {}, group, cut))
                            : (on_mesh ? ulysses_attention(q, k, v, {}, mesh, MeshAxis::kCp, cut)
                                       : ulysses_attention(q, k, v, {}, group, cut));
      EXPECT_EQ(y.shape(), q.shape());
      EXPECT_EQ(y.device(), meta);
      const std::int64_t packet = 2 * B * n * G * K;  // of keys and values
      // Each rank has H/R heads of q and o, G/R of k and v: what goes to one peer of each.
      const std::int64_t exchange = B * n * (2 * H + 2 * G) / R * K;
      const std::int64_t forward = (R - 1) * (ring ? packet : exchange) * bytes;
      EXPECT_EQ(tape->total_sent_bytes(), forward) << ring;
      backward(y, empty_like(y));
      // The ring's gradients travel in f32, one step further: home.
      EXPECT_EQ(tape->total_sent_bytes(), 2 * forward + (ring ? (R - 1) * packet * 4 : 0)) << ring;
      EXPECT_EQ(k.grad().shape(), k.shape());
      EXPECT_EQ(k.grad().device(), meta);
    }
  }
}

TEST(PartitionedActivationsWithoutData, AreGatheredInTheBackwardPass) {
  RankContext context({.seed = 1});
  const RankContext::Scope scope(context);
  const auto tape = std::make_shared<Tape>();
  const Mesh mesh(MeshShape::parse("tp=8"), make_fake_communicator(8, 3, tape));
  tape->reset_totals();
  Tensor x = empty({4, 100}, {.device = meta});
  x.set_requires_grad();
  const Tensor y =
      checkpoint([](const Tensor& in) { return gelu(in); }, x, partitioned_over(mesh, MeshAxis::kTp));
  EXPECT_EQ(tape->total_sent_bytes(), 0);
  backward(y, empty_like(y));
  EXPECT_EQ(tape->total_sent_bytes(), 7 * 50 * 4);
}

}  // namespace
}  // namespace tessera::dist

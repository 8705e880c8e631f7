// Data parallelism changes nothing: 1, 2, 3, 4 and 8 ranks, however the batch is cut, train what one rank
// trains. And mistakes of the usual kinds would be noticed. rank_program.cpp runs the same comparison under
// mpiexec.

#include "dist/data_parallel.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "autograd/graph.h"
#include "autograd/ops.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/dist/training.h"

namespace tessera::dist::testing {
namespace {

/// What each rank has at the end.
std::vector<Trained> train_on_threads(int num_ranks, const Training& training) {
  std::vector<Trained> results(static_cast<std::size_t>(num_ranks));
  run_thread_ranks(num_ranks, [&](Job& job) {
    results[static_cast<std::size_t>(job.rank())] = train(training, job.world());
  });
  return results;
}

/// The run of one rank; made once for each kind.
const Trained& reference(const std::string& model, DType dtype, int steps) {
  static std::map<std::tuple<std::string, DType, int>, Trained> cache;
  auto& result = cache[{model, dtype, steps}];
  if (result.losses.empty()) result = train_alone({.model = model, .dtype = dtype, .steps = steps});
  return result;
}

struct Row {
  const char* name;
  std::string model;
  int num_ranks;
  std::int64_t micro_batch;  // 0: one pass, no accumulation
  std::int64_t bucket_bytes = 25 << 20;
  bool recompute = false;
};

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows{
      {"Gpt2_1_in24Passes", kGpt2, 1, 1},
      {"Gpt2_2", kGpt2, 2, 0},
      {"Gpt2_2_in4Passes", kGpt2, 2, 3},
      {"Gpt2_3", kGpt2, 3, 0},
      {"Gpt2_3_in4Passes", kGpt2, 3, 2},
      {"Gpt2_4_in2Passes_smallBuckets", kGpt2, 4, 3, 4096},
      {"Gpt2_4_in6Passes_tinyBuckets", kGpt2, 4, 1, 1},
      {"Gpt2_8", kGpt2, 8, 0},
      {"Gpt2_8_in3Passes", kGpt2, 8, 1, 8192},
      {"Gpt2_2_recompute", kGpt2, 2, 6, 2048, true},
      {"Llama_1_in8Passes", kLlama, 1, 3},
      {"Llama_2_in3Passes", kLlama, 2, 4},
      {"Llama_3_in8Passes_smallBuckets", kLlama, 3, 1, 2048},
      {"Llama_4", kLlama, 4, 0},
      {"Llama_8_in3Passes_tinyBuckets", kLlama, 8, 1, 1},
  };
  return kRows;
}

class DataParallelTrains : public ::testing::TestWithParam<Row> {};

// Tier T1. In f64 a sum over 24 sequences in another order differs by about 1e-16, and 20 steps of AdamW at a
// learning rate of 1e-3 leave that below 1e-15 (measured). A mistake of any size that matters is above 1e-10.
TEST_P(DataParallelTrains, WhatOneRankTrainsInF64) {
  const Row& row = GetParam();
  const Training training{.model = row.model,
                          .dtype = kF64,
                          .micro_batch = row.micro_batch,
                          .bucket_bytes = row.bucket_bytes,
                          .recompute = row.recompute};
  const Trained& alone = reference(row.model, kF64, training.steps);
  const std::vector<Trained> ranks = train_on_threads(row.num_ranks, training);
  for (const Trained& rank : ranks) {
    EXPECT_TRUE(rank.initial_weights == alone.initial_weights)
        << "equal to the last bit, without a broadcast";
    EXPECT_LE(largest_loss_difference(rank, alone), 1e-10);
    EXPECT_LE(largest_weight_difference(rank, alone), 1e-10);
    EXPECT_TRUE(rank.weights == ranks[0].weights) << "ranks drift apart";
    EXPECT_EQ(rank.losses, ranks[0].losses);
  }
  for (const double norm : ranks[0].grad_norms)
    EXPECT_GT(norm, 0.05) << "clipping is to be active in each step";
  EXPECT_FALSE(alone.weights == alone.initial_weights);
}

// Tier T2. f32 rounds at 6e-8; losses over 20 steps stay within a few roundings of each other.
TEST_P(DataParallelTrains, TheLossesOfOneRankInF32) {
  const Row& row = GetParam();
  const Training training{.model = row.model,
                          .dtype = kF32,
                          .micro_batch = row.micro_batch,
                          .bucket_bytes = row.bucket_bytes,
                          .recompute = row.recompute};
  const Trained& alone = reference(row.model, kF32, training.steps);
  const std::vector<Trained> ranks = train_on_threads(row.num_ranks, training);
  for (const Trained& rank : ranks) {
    EXPECT_LE(largest_loss_difference(rank, alone), 1e-6);
    EXPECT_TRUE(rank.weights == ranks[0].weights) << "ranks drift apart";
  }
}

INSTANTIATE_TEST_SUITE_P(Table, DataParallelTrains, ::testing::ValuesIn(rows()),
                         [](const ::testing::TestParamInfo<Row>& info) {
                           return std::string(info.param.name);
                         });

// --- Mutants: each must leave the tolerance far behind, or the comparison above proves nothing -------------

struct MutantRow {
  const char* name;
  Mutant mutant;
};

class ParityCatches : public ::testing::TestWithParam<MutantRow> {};

TEST_P(ParityCatches, ThisMistake) {
  for (const std::string& model : {kGpt2, kLlama}) {
    const Training training{.model = model, .steps = 5, .micro_batch = 3, .mutant = GetParam().mutant};
    const Trained& alone = reference(model, kF64, training.steps);
    const Trained wrong = train_on_threads(4, training)[0];
    EXPECT_GT(largest_weight_difference(wrong, alone), 1e-8) << model;
    EXPECT_GT(largest_loss_difference(wrong, alone), 1e-8) << model;
  }
}

INSTANTIATE_TEST_SUITE_P(Mutants, ParityCatches,
                         ::testing::Values(MutantRow{"MeanOfMeans", Mutant::kMeanOfMeans},
                                           MutantRow{"SkippedParameter", Mutant::kSkippedParameter},
                                           MutantRow{"SharedSampleOffset", Mutant::kSharedSampleOffset},
                                           MutantRow{"SharedSamples", Mutant::kSharedSamples},
                                           MutantRow{"ReducedEveryPass", Mutant::kReducedEveryPass},
                                           MutantRow{"ClippedLocally", Mutant::kClippedLocally}),
                         [](const ::testing::TestParamInfo<MutantRow>& info) {
                           return std::string(info.param.name);
                         });

// --- Buckets -----------------------------------------------------------------------------------------------

/// Three parameters, used in turn: y = Σ (rank + 1) · (a + 2b + 3c) over 5, 3 and 4 elements. The gradient of
/// each element, summed over R ranks, is 1, 2 and 3 times R(R+1)/2.
struct ThreeParameters {
  Tensor a = parameter(5), b = parameter(3), c = parameter(4);

  [[nodiscard]] NamedTensors named() const { return {{"a", a}, {"b", b}, {"c", c}}; }
  [[nodiscard]] static Tensor parameter(std::int64_t size) {
    Tensor p = ones({size}, {.dtype = kF64});
    p.set_requires_grad();
    return p;
  }
  [[nodiscard]] static double sum(double factor, int num_ranks) {
    return factor * num_ranks * (num_ranks + 1) / 2.0;
  }
};

void expect_gradient(const Tensor& parameter, double value, const char* what) {
  for (const double g : parameter.grad().to_vector<double>()) EXPECT_DOUBLE_EQ(g, value) << what;
}

constexpr int kRanks[] = {1, 2, 3, 4, 8};

TEST(DataParallel, SumsGradientsAndNeverAverages) {
  for (const int num_ranks : kRanks) {
    run_thread_ranks(num_ranks, [&](Job& job) {
      ThreeParameters p;
      DataParallel parallel(p.named(), job.world(), {.bucket_bytes = 1});
      EXPECT_EQ(parallel.num_buckets(), num_ranks == 1 ? 0u : 3u);
      for (int step = 0; step < 3; ++step) {
        parallel.reduce_in_next_backward(true);
        ((sum(p.a) + sum(p.b) * 2.0 + sum(p.c) * 3.0) * (job.rank() + 1.0)).backward();
        parallel.wait();
        expect_gradient(p.a, ThreeParameters::sum(1, num_ranks), "a");
        expect_gradient(p.b, ThreeParameters::sum(2, num_ranks), "b");
        expect_gradient(p.c, ThreeParameters::sum(3, num_ranks), "c");
        for (Tensor x : {p.a, p.b, p.c}) x.grad().zero();
      }
    });
  }
}

// zero_grad of an optimizer drops a gradient that fills its storage, a module's drops all, and programs may
// put another tensor in its place. A gradient that is not in its bucket any more would be left out of the
// reduction, silently.
TEST(DataParallel, FindsGradientsThatWereDroppedOrReplaced) {
  struct Case {
    bool announced_first;  // reduce_in_next_backward comes before the gradients go
    bool uses_c;           // otherwise no bucket starts before wait()
    std::int64_t bucket_bytes;
  };
  for (const Case& c :
       {Case{false, false, 1}, {false, true, 1000}, {true, false, 1}, {true, true, 1}, {true, true, 1000}}) {
    run_thread_ranks(3, [&](Job& job) {
      ThreeParameters p;
      DataParallel parallel(p.named(), job.world(), {.bucket_bytes = c.bucket_bytes});
      for (int step = 0; step < 3; ++step) {
        if (c.announced_first) parallel.reduce_in_next_backward(true);
        p.a.set_grad({});
        p.b.set_grad(zeros({3}, {.dtype = kF64}));
        p.c.set_grad({});
        if (!c.announced_first) parallel.reduce_in_next_backward(true);
        Tensor y = sum(p.a) + sum(p.b) * 2.0;
        if (c.uses_c) y = y + sum(p.c) * 3.0;
        (y * (job.rank() + 1.0)).backward();
        parallel.wait();
        expect_gradient(p.a, ThreeParameters::sum(1, 3), "a");
        expect_gradient(p.b, ThreeParameters::sum(2, 3), "b");
        expect_gradient(p.c, c.uses_c ? ThreeParameters::sum(3, 3) : 0.0, "c");
      }
    });
  }
}

// Gradients that are on their way to the other ranks must not be added to: the sums would be of no
// pass at all.
TEST(DataParallel, RefusesASecondPassBeforeWait) {
  for (const std::int64_t bucket_bytes : {1, 1000}) {
    run_thread_ranks(2, [&](Job& job) {
      ThreeParameters p;
      DataParallel parallel(p.named(), job.world(), {.bucket_bytes = bucket_bytes});
      parallel.reduce_in_next_backward(true);
      (sum(p.a) + sum(p.b)).backward();
      sum(p.c).backward();    // of other parameters: the same pass in two parts
      job.world().barrier();  // behind the reductions: they are over when it is
      EXPECT_THROW(sum(p.a).backward(), AutogradError);
      EXPECT_THROW(parallel.reduce_in_next_backward(true), AutogradError);
      parallel.wait();
      parallel.reduce_in_next_backward(true);
      for (Tensor x : {p.a, p.b, p.c}) x.grad().zero();
      ((sum(p.a) + sum(p.b) + sum(p.c)) * (job.rank() + 1.0)).backward();
      parallel.wait();
      for (const Tensor& x : {p.a, p.b, p.c}) expect_gradient(x, ThreeParameters::sum(1, 2), "after that");
    });
  }
}

// A pass that ended with an exception may be tried again: what it counted must not start a bucket too early.
TEST(DataParallel, StartsAnewAfterAPassThatFailed) {
  run_thread_ranks(2, [&](Job& job) {
    ThreeParameters p;
    DataParallel parallel(p.named(), job.world(), {.bucket_bytes = 1000});
    bool fails = true;
    register_hook(p.a, [&](const Tensor&) {
      if (fails) throw std::runtime_error("no memory for one gradient");
      return Tensor();
    });
    const auto pass = [&] {
      Tensor y = sum(p.a) + sum(p.b);  // a first: its gradient comes last
      (y * (job.rank() + 1.0) + sum(p.c) * (job.rank() + 1.0)).backward();
    };
    parallel.reduce_in_next_backward(true);
    EXPECT_THROW(pass(), std::runtime_error);
    fails = false;
    for (Tensor x : {p.a, p.b, p.c}) x.set_grad({});
    parallel.reduce_in_next_backward(true);
    pass();
    parallel.wait();
    for (const Tensor& x : {p.a, p.b, p.c}) expect_gradient(x, ThreeParameters::sum(1, 2), "second try");
  });
}

// Ranks take different paths: some parameters are used by one rank only, or by none. The calls match all the
// same, and whoever did not use a parameter gets the others' gradient.
TEST(DataParallel, TakesRanksOnDifferentPaths) {
  for (const std::int64_t bucket_bytes : {1, 40, 1000}) {
    for (const int num_ranks : {2, 4}) {
      run_thread_ranks(num_ranks, [&](Job& job) {
        ThreeParameters p;
        DataParallel parallel(p.named(), job.world(), {.bucket_bytes = bucket_bytes});
        for (int step = 0; step < 2; ++step) {
          parallel.reduce_in_next_backward(true);
          (job.rank() == 0 ? sum(p.b) * 5.0 : sum(p.a)).backward();
          parallel.wait();
          expect_gradient(p.a, num_ranks - 1.0, "a");
          expect_gradient(p.b, 5.0, "b");
          expect_gradient(p.c, 0.0, "c");
          for (Tensor x : {p.a, p.b, p.c}) x.grad().zero();
        }
      });
    }
  }
}

TEST(DataParallel, ReducesOncePerStepWhateverTheAccumulation) {
  run_thread_ranks(2, [&](Job& job) {
    ThreeParameters p;
    DataParallel parallel(p.named(), job.world());
    job.tape().reset_totals();
    for (int pass = 0; pass < 4; ++pass) {
      parallel.reduce_in_next_backward(pass == 3);
      ((sum(p.a) + sum(p.b) + sum(p.c)) * (job.rank() + 1.0)).backward();
    }
    parallel.wait();
    parallel.wait();  // a second wait has nothing to do
    expect_gradient(p.a, 4 * ThreeParameters::sum(1, 2), "a");
    ASSERT_EQ(job.tape().totals().size(), 1u);
    EXPECT_EQ(job.tape().totals()[0].calls, 1);
    EXPECT_EQ(job.tape().totals()[0].elements, 12);
  });
}

// docs/dist.md, "Data parallelism": 2(R−1)/R · 4Ψ bytes by each rank and step on the average of the ranks;
// exactly 2(R−1) · 4Ψ by all. Buckets are not padded. The parameters are no multiple of any R, so ranks
// differ by an element a bucket.
TEST(DataParallel, SendsTwiceTheGradientsAndNotAByteMore) {
  for (const auto& [model, bucket_bytes] :
       {std::pair{kGpt2, std::int64_t{1}}, {kGpt2, 4096}, {kLlama, 25 << 20}}) {
    for (const int num_ranks : {2, 3, 4, 8}) {
      constexpr int kSteps = 2;
      std::vector<std::int64_t> sent(static_cast<std::size_t>(num_ranks));
      std::int64_t num_parameters = 0;
      std::size_t num_buckets = 0;
      run_thread_ranks(num_ranks, [&](Job& job) {
        const auto group = job.world().split(0, job.rank(), "dp");
        const Trained result = train(
            {.model = model, .dtype = kF32, .steps = kSteps, .micro_batch = 3, .bucket_bytes = bucket_bytes},
            *group);
        // The loss, one f64 a step, travels in the same group.
        const std::int64_t loss =
            kSteps * sent_bytes(Collective::kAllReduce, 1, kF64, num_ranks, job.rank(), -1);
        sent[static_cast<std::size_t>(job.rank())] = job.tape().total_sent_bytes("dp") - loss;
        if (job.is_root()) {
          num_parameters = result.num_parameters;
          num_buckets = result.num_buckets;
        }
      });
      const std::int64_t R = num_ranks;
      std::int64_t all = 0;
      for (const std::int64_t bytes : sent) {
        all += bytes;
        // An element more or less in each bucket's slice is R − 2 elements sent.
        EXPECT_LE(std::abs(bytes * R - kSteps * 2 * (R - 1) * 4 * num_parameters),
                  kSteps * 4 * R * R * static_cast<std::int64_t>(num_buckets));
      }
      EXPECT_EQ(all, kSteps * 2 * (R - 1) * 4 * num_parameters) << model << " on " << num_ranks;
    }
  }
}

// When the gradient of the first parameter comes, the last of a backward pass, buckets of later layers are on
// their way already.
TEST(DataParallel, StartsBucketsWhileBackwardRuns) {
  run_thread_ranks(2, [&](Job& job) {
    NamedTensors parameters;
    for (int i = 0; i < 6; ++i) parameters.emplace_back(std::to_string(i), ThreeParameters::parameter(8));
    DataParallel parallel(parameters, job.world(), {.bucket_bytes = 1});
    std::vector<std::size_t> calls_at_gradient(parameters.size());
    const std::size_t before = job.tape().recent().size();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      register_accumulated_hook(parameters[i].second, [&, i](const Tensor&) {
        calls_at_gradient[i] = job.tape().recent().size() - before;
      });
    }
    Tensor x = ones({8}, {.dtype = kF64});
    for (const auto& [name, parameter] : parameters) x = x * parameter;
    parallel.reduce_in_next_backward(true);
    sum(x).backward();
    // Hooks run in order of registration: the bucket of gradient i has been started when ours is called.
    for (std::size_t i = 0; i < parameters.size(); ++i)
      EXPECT_EQ(calls_at_gradient[i], parameters.size() - i);
    parallel.wait();
    const std::vector<TapeEntry> entries = job.tape().recent();
    EXPECT_EQ(entries.size() - before, parameters.size()) << "nothing was left to start in wait()";
    for (std::size_t i = before; i < entries.size(); ++i) EXPECT_EQ(entries[i].op, Collective::kAllReduce);
  });
}

TEST(DataParallel, PutsTypesIntoBucketsOfTheirOwn) {
  run_thread_ranks(2, [&](Job& job) {
    Tensor wide = ThreeParameters::parameter(4);
    Tensor narrow = ones({4});
    narrow.set_requires_grad();
    Tensor half = ones({4}, {.dtype = kBF16});
    half.set_requires_grad();
    DataParallel parallel({{"wide", wide}, {"narrow", narrow}, {"half", half}}, job.world());
    EXPECT_EQ(parallel.num_buckets(), 2u) << "gradients of bf16 accumulate in f32";
    parallel.reduce_in_next_backward(true);
    (sum(wide) + sum(narrow).to(kF64) + sum(half).to(kF64)).backward();
    parallel.wait();
    for (const Tensor& x : {wide, narrow, half}) expect_gradient(x, 2.0, name(x.dtype()));
  });
}

// Hooks stay on the parameters: they must not outlive what they use.
TEST(DataParallel, MayEndBeforeItsParameters) {
  run_thread_ranks(2, [&](Job& job) {
    ThreeParameters p;
    { const DataParallel parallel(p.named(), job.world()); }
    sum(p.a).backward();
    expect_gradient(p.a, 1.0, "own gradient, not reduced");
  });
}

}  // namespace
}  // namespace tessera::dist::testing

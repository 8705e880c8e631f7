// Every optimizer, on parameters that are cut into one-dimensional pieces over ranks, against the same
// optimizer on whole ones.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <memory>

#include "dist/job.h"
#include "optim/adagrad.h"
#include "optim/adam.h"
#include "optim/lamb.h"
#include "optim/lion.h"
#include "optim/muon.h"
#include "optim/sgd.h"
#include "tensor/create.h"
#include "tests/largest_difference.h"

namespace tessera::dist {
namespace {

using optim::Optimizer;

struct Parameter {
  const char* name;
  Shape shape;
};
// The embedding has two dimensions and is no hidden matrix; nothing divides evenly.
const Parameter kParameters[] = {
    {"wte.weight", {7, 5}},     {"h.0.mlp.c_fc.weight", {9, 5}},   {"h.0.ln_1.weight", {5}},
    {"h.0.mlp.c_fc.bias", {9}}, {"h.0.mlp.c_proj.weight", {5, 9}}, {"h.0.attn.c_attn.weight", {4, 4}}};
constexpr int kSteps = 6;

/// Which elements of a flat parameter a rank holds.
struct Cut {
  const char* name;
  std::int64_t (*begin)(std::int64_t size, int ranks, int rank);  // of rank + 1 is the end of rank
};
const Cut kCuts[] = {
    {"even", [](std::int64_t size, int ranks, int rank) { return size * rank / ranks; }},
    {"most on the last rank",
     [](std::int64_t size, int ranks, int rank) {
       return rank == ranks ? size : std::min<std::int64_t>(size, rank);
     }},
    {"all on rank 0, the others empty",
     [](std::int64_t size, int, int rank) { return rank == 0 ? std::int64_t{0} : size; }},
};

/// An exchange over the pieces of one cut, with nothing but all-reduces. It keeps a log of its calls.
class TestExchange final : public optim::PieceExchange {
 public:
  TestExchange(Communicator& group, const Cut& cut) : group_(group), cut_(cut) {}

  void sum_over_pieces(std::span<const std::string> names, std::span<double> sums) override {
    for (const std::string& name : names) log_ += name + " ";
    log_ += "sum;";
    group_.all_reduce({sums.data(), static_cast<std::int64_t>(sums.size()), kF64});
  }
  Tensor whole(const std::string& name, const Tensor& piece) override {
    log_ += name + " whole;";
    Tensor all = zeros({shape_of(name).num_elements()}, {.dtype = piece.dtype()});
    all.slice(0, begin(name), end(name)).copy_from(piece);
    group_.all_reduce({all.mutable_view().data, all.num_elements(), all.dtype()});
    return all.reshape(shape_of(name));
  }
  Tensor piece(const std::string& name, const Tensor& whole) override {
    return whole.reshape({-1}).slice(0, begin(name), end(name)).clone();
  }
  [[nodiscard]] std::int64_t begin(const std::string& name) const {
    return cut_.begin(shape_of(name).num_elements(), group_.size(), group_.rank());
  }
  [[nodiscard]] std::int64_t end(const std::string& name) const {
    return cut_.begin(shape_of(name).num_elements(), group_.size(), group_.rank() + 1);
  }
  [[nodiscard]] const std::string& log() const noexcept { return log_; }

 private:
  static const Shape& shape_of(const std::string& name) {
    for (const Parameter& p : kParameters) {
      if (name == p.name) return p.shape;
    }
    throw std::runtime_error("no parameter " + name);
  }
  Communicator& group_;
  const Cut& cut_;
  std::string log_;
};

struct OptimizerCase {
  const char* name;
  std::function<std::unique_ptr<Optimizer>(const NamedTensors&, std::shared_ptr<optim::PieceExchange>)> make;
};

template <class T, class Config>
OptimizerCase elementwise(const char* name, const Config& config) {
  return {name, [config](const NamedTensors& p, std::shared_ptr<optim::PieceExchange>) {
            return std::make_unique<T>(p, config, optim::no_decay_for_biases_and_norms());
          }};
}
template <class T, class Config>
OptimizerCase whole_tensors(const char* name, const Config& config) {
  return {name, [config](const NamedTensors& p, std::shared_ptr<optim::PieceExchange> exchange) {
            return std::make_unique<T>(p, config, optim::no_decay_for_biases_and_norms(),
                                       std::move(exchange));
          }};
}

const OptimizerCase kOptimizers[] = {
    elementwise<optim::AdamW>("AdamW", optim::AdamConfig{.lr = 0.05, .weight_decay = 0.1}),
    elementwise<optim::Sgd>("SGD", optim::SgdConfig{.lr = 0.05, .momentum = 0.9}),
    elementwise<optim::Adagrad>("Adagrad", optim::AdagradConfig{.lr = 0.05}),
    elementwise<optim::Lion>("Lion", optim::LionConfig{.lr = 0.05, .weight_decay = 0.1}),
    whole_tensors<optim::Lamb>("LAMB", optim::LambConfig{.lr = 0.05, .weight_decay = 0.1}),
    whole_tensors<optim::Muon>("Muon", optim::MuonConfig{.lr = 0.05, .weight_decay = 0.1}),
};

Tensor whole_start(const Parameter& p) {
  return normal(p.shape, 0, 1, fmt::format("start {}", p.name), {.dtype = kF64});
}
Tensor whole_grad(const Parameter& p, int step) {
  return normal(p.shape, 0, 1, fmt::format("grad {} {}", p.name, step), {.dtype = kF64});
}
// A parameter that no pass reaches in some steps.
bool has_gradient(const Parameter& p, int step) {
  return step % 2 == 0 || std::string(p.name) != "h.0.mlp.c_proj.weight";
}

// The parameters after each step on one rank, whole.
std::vector<std::vector<Tensor>> run_whole(const OptimizerCase& c) {
  NamedTensors parameters;
  for (const Parameter& p : kParameters) {
    parameters.emplace_back(p.name, whole_start(p).clone());
    parameters.back().second.set_requires_grad();
  }
  const auto optimizer = c.make(parameters, nullptr);
  std::vector<std::vector<Tensor>> after;
  for (int step = 0; step < kSteps; ++step) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (has_gradient(kParameters[i], step)) parameters[i].second.set_grad(whole_grad(kParameters[i], step));
    }
    optimizer->step({.grad_scale = 0.5});
    optimizer->zero_grad();
    after.emplace_back();
    for (const auto& [name, tensor] : parameters) after.back().push_back(tensor.detach().clone());
  }
  return after;
}

// The largest difference between a rank's pieces and those elements of the whole, over all steps.
double largest_difference(const OptimizerCase& c, const std::vector<std::vector<Tensor>>& expected,
                          const Cut& cut, Communicator& group, bool drop_empty_gradients) {
  auto exchange = std::make_shared<TestExchange>(group, cut);
  NamedTensors pieces;
  for (const Parameter& p : kParameters) {
    pieces.emplace_back(p.name, exchange->piece(p.name, whole_start(p)));
    pieces.back().second.set_requires_grad();
  }
  const auto optimizer = c.make(pieces, exchange);
  double largest = 0.0;
  for (int step = 0; step < kSteps; ++step) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      auto& [name, piece] = pieces[i];
      if (piece.num_elements() == 0 && drop_empty_gradients) continue;
      if (has_gradient(kParameters[i], step))
        piece.set_grad(exchange->piece(name, whole_grad(kParameters[i], step)));
    }
    optimizer->step({.grad_scale = 0.5});
    optimizer->zero_grad();
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const std::vector<double> got = pieces[i].second.to_vector<double>();
      const std::vector<double> want =
          exchange->piece(pieces[i].first, expected[static_cast<std::size_t>(step)][i]).to_vector<double>();
      for (std::size_t k = 0; k < got.size(); ++k) largest = std::max(largest, distance(got[k], want[k]));
    }
  }
  return largest;
}

// Sums of up to 45 squares in another order: 45 · 2⁻⁵³ relatively in LAMB's norms, half of it in the trust.
// All else is bitwise: the elements of a step of Muon come out of the same whole matrix on every rank.
// Parameters stay below 8, steps below 1: 6 · 45 · 2⁻⁵³ ≈ 3e-14.
TEST(OptimizerPieces, GiveTheParametersOfWholeTensors) {
  for (const OptimizerCase& c : kOptimizers) {
    const auto expected = run_whole(c);
    const double bound = std::string(c.name) == "LAMB" ? 3e-14 : 0.0;
    for (const int ranks : {1, 2, 3, 4}) {
      run_thread_ranks(ranks, [&](Job& job) {
        for (const Cut& cut : kCuts) {
          for (const bool drop_empty_gradients : {false, true}) {
            EXPECT_LE(largest_difference(c, expected, cut, job.world(), drop_empty_gradients), bound)
                << c.name << ", cut " << cut.name << ", rank " << job.rank() << " of " << ranks
                << (drop_empty_gradients ? ", empty pieces without gradients" : "");
          }
        }
      });
    }
  }
}

// Without the exchange LAMB takes a piece for the whole: this is the mistake that the exchange is there to
// prevent, and it must not pass unseen by the test above.
TEST(OptimizerPieces, NormsOfPiecesWouldGiveOtherParameters) {
  const OptimizerCase lamb = kOptimizers[4];
  const auto expected = run_whole(lamb);
  const OptimizerCase alone{
      "LAMB without exchange",
      [&](const NamedTensors& p, std::shared_ptr<optim::PieceExchange>) { return lamb.make(p, nullptr); }};
  run_thread_ranks(2, [&](Job& job) {
    EXPECT_GT(largest_difference(alone, expected, kCuts[0], job.world(), false), 1e-3);
  });
}

// A rank that came by another way has no gradient where others have one: it counts as zeros, and every rank
// makes the same calls.
TEST(OptimizerPieces, AGradientThatARankLacksIsZeroThere) {
  for (const OptimizerCase& c : {kOptimizers[4], kOptimizers[5]}) {
    const auto run = [&c](Communicator& group, bool zeros_instead) {
      auto exchange = std::make_shared<TestExchange>(group, kCuts[0]);
      NamedTensors pieces;
      for (const Parameter& p : kParameters) {
        pieces.emplace_back(p.name, exchange->piece(p.name, whole_start(p)));
        pieces.back().second.set_requires_grad();
        Tensor grad = exchange->piece(p.name, whole_grad(p, 0));
        if (group.rank() == 1) grad.zero();
        if (group.rank() != 1 || zeros_instead) pieces.back().second.set_grad(grad);
      }
      const auto optimizer = c.make(pieces, exchange);
      optimizer->step();
      std::vector<double> values;
      for (const auto& [name, piece] : pieces) {
        for (const double value : piece.to_vector<double>()) values.push_back(value);
      }
      return std::pair(values, exchange->log());
    };
    run_thread_ranks(3, [&](Job& job) {
      const auto [values, log] = run(job.world(), false);
      const auto [with_zeros, log_with_zeros] = run(job.world(), true);
      EXPECT_EQ(values, with_zeros) << c.name;
      EXPECT_EQ(log, log_with_zeros) << c.name;
    });
  }
}

TEST(OptimizerPieces, WhatNoRankReachesIsSkippedByAllAndItsStepCountWaits) {
  run_thread_ranks(2, [](Job& job) {
    auto exchange = std::make_shared<TestExchange>(job.world(), kCuts[0]);
    NamedTensors pieces;
    for (const Parameter& p : kParameters) {
      pieces.emplace_back(p.name, exchange->piece(p.name, whole_start(p)));
      pieces.back().second.set_requires_grad();
    }
    optim::Lamb optimizer(pieces, {}, {}, exchange);
    pieces[1].second.set_grad(exchange->piece(pieces[1].first, whole_grad(kParameters[1], 0)));
    optimizer.step();
    std::map<std::string, double> steps;
    for (const auto& [name, value] : optimizer.state()) {
      if (name.ends_with("/step")) steps[name] = value.item();
    }
    EXPECT_EQ(steps["h.0.mlp.c_fc.weight/step"], 1.0);
    EXPECT_EQ(steps["wte.weight/step"], 0.0);
    EXPECT_EQ(pieces[0].second.to_vector<double>(),
              exchange->piece(pieces[0].first, whole_start(kParameters[0])).to_vector<double>());
  });
}

}  // namespace
}  // namespace tessera::dist

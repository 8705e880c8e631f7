// Muon on one rank; tests/dist/optimizer_pieces_test.cpp has the ranks.

#include "optim/muon.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "tensor/context.h"
#include "tests/expect_error.h"
#include "tests/optim/parameters.h"

namespace tessera::optim {
namespace {

// A small matrix of doubles with the operations of the paper, written plainly.
struct Matrix {
  int rows = 0, columns = 0;
  std::vector<double> values;

  Matrix(int r, int c) : rows(r), columns(c), values(static_cast<std::size_t>(r * c), 0.0) {}
  double& at(int i, int j) { return values[static_cast<std::size_t>(i * columns + j)]; }
  double at(int i, int j) const { return values[static_cast<std::size_t>(i * columns + j)]; }
  [[nodiscard]] Matrix transposed() const {
    Matrix t(columns, rows);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) t.at(j, i) = at(i, j);
    return t;
  }
  [[nodiscard]] double norm() const {
    double squares = 0.0;
    for (const double x : values) squares += x * x;
    return std::sqrt(squares);
  }
};

Matrix operator*(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.columns);
  for (int i = 0; i < a.rows; ++i)
    for (int j = 0; j < b.columns; ++j)
      for (int k = 0; k < a.columns; ++k) c.at(i, j) += a.at(i, k) * b.at(k, j);
  return c;
}
Matrix operator*(double s, Matrix a) {
  for (double& x : a.values) x *= s;
  return a;
}
Matrix operator+(Matrix a, const Matrix& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

// On columns as they stand, without turning tall matrices: the polynomial is the same either way.
Matrix orthogonalized(const Matrix& x, int steps = 5) {
  Matrix X = (1.0 / std::max(x.norm(), 1e-7)) * x;
  for (int i = 0; i < steps; ++i) {
    const Matrix A = X * X.transposed();
    X = 3.4445 * X + ((-4.7750 * A) + 2.0315 * (A * A)) * X;
  }
  return X;
}

Matrix start_matrix(int rows, int columns) {
  Matrix m(rows, columns);
  m.values = start_values(rows * columns);
  return m;
}
Matrix grad_matrix(int rows, int columns, int t) {
  Matrix m(rows, columns);
  m.values = grad_values(rows * columns, t);
  return m;
}
Tensor tensor_of(const Matrix& m, DType dtype = kF64) {
  Tensor x = from_vector<double>(m.values, Shape{m.rows, m.columns}).to(dtype);
  x.set_requires_grad();
  return x;
}

void expect_near(const Tensor& x, const std::vector<double>& expected, double bound, const char* what) {
  const std::vector<double> got = x.to_vector<double>();
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], bound) << what << " " << i;
}

// Every singular value goes its way through the polynomial by itself. A diagonal matrix shows its own; a turn
// from the left and one from the right change none of them.
TEST(NewtonSchulz, SendsEachSingularValueThroughThePolynomial) {
  const std::vector<double> singular{5.0, 1.0, 0.25, 0.02};
  double squares = 0.0;
  for (const double s : singular) squares += s * s;
  Matrix diagonal(4, 6), expected(4, 6);
  for (int i = 0; i < 4; ++i) {
    diagonal.at(i, i) = singular[static_cast<std::size_t>(i)];
    double s = diagonal.at(i, i) / std::sqrt(squares);
    for (int k = 0; k < 5; ++k) s = 3.4445 * s - 4.7750 * std::pow(s, 3) + 2.0315 * std::pow(s, 5);
    EXPECT_GT(s, 0.68);  // the header's promise
    EXPECT_LT(s, 1.21);
    expected.at(i, i) = s;
  }
  const auto turn = [](int n, int i, int j, double angle) {
    Matrix r(n, n);
    for (int k = 0; k < n; ++k) r.at(k, k) = 1.0;
    r.at(i, i) = r.at(j, j) = std::cos(angle);
    r.at(i, j) = -std::sin(angle);
    r.at(j, i) = std::sin(angle);
    return r;
  };
  const Matrix left = turn(4, 0, 1, 0.7) * turn(4, 1, 3, 0.4) * turn(4, 0, 2, 1.1);
  const Matrix right = turn(6, 0, 5, 0.3) * turn(6, 1, 4, 0.9) * turn(6, 2, 3, 0.5) * turn(6, 0, 1, 0.2);
  const Matrix x = left * diagonal * right, y = left * expected * right;
  // Numbers of about 1 through some 40 products; the steep start multiplies an error by up to 3.4⁵ ≈ 500.
  expect_near(newton_schulz(tensor_of(diagonal)), expected.values, 1e-12, "diagonal");
  expect_near(newton_schulz(tensor_of(x)), y.values, 1e-12, "lying");
  expect_near(newton_schulz(tensor_of(x.transposed())), y.transposed().values, 1e-12, "standing");
  expect_near(newton_schulz(tensor_of(x, kF32)), y.values, 1e-4, "f32");
}

TEST(NewtonSchulz, LeavesZerosAndRefusesWhatIsNoMatrix) {
  EXPECT_EQ(newton_schulz(zeros({2, 3})).to_vector<float>(), std::vector<float>(6, 0.0F));
  EXPECT_EQ(newton_schulz(zeros({0, 3})).shape(), (Shape{0, 3}));
  EXPECT_THROW((void)newton_schulz(zeros({6})), ShapeError);
}

struct MuonCase {
  const char* name;
  int rows, columns;
  MuonConfig config;
};

// Elements stay below 8, each of 8 steps adds an O with an error of about 1e-12 (above), times lr.
TEST(Muon, MatricesFollowTheFormula) {
  const MuonCase cases[] = {
      {"lying", 4, 7, {.lr = 0.1}},
      {"standing", 7, 4, {.lr = 0.1}},
      {"without Nesterov", 5, 5, {.lr = 0.1, .momentum = 0.5, .nesterov = false}},
      {"with decay", 3, 2, {.lr = 0.1, .weight_decay = 0.5}},
      {"as long as AdamW", 3, 8, {.lr = 0.1, .scale = MuonScale::kAdamRms}},
      {"three steps of the iteration", 3, 4, {.lr = 0.1, .newton_schulz_steps = 3}},
  };
  for (const MuonCase& c : cases) {
    const double mu = c.config.momentum, rows = c.rows, columns = c.columns;
    const double scale = c.config.scale == MuonScale::kSpectral ? std::sqrt(std::max(1.0, rows / columns))
                                                                : 0.2 * std::sqrt(std::max(rows, columns));
    Matrix p = start_matrix(c.rows, c.columns), m(c.rows, c.columns);
    Tensor tensor = tensor_of(p), single = tensor_of(p, kF32);
    Muon optimizer({{"w", tensor}, {"single", single}}, c.config);
    for (int t = 0; t < 8; ++t) {
      const Matrix g = grad_matrix(c.rows, c.columns, t);
      tensor.set_grad(tensor_of(g).detach());
      single.set_grad(tensor_of(g, kF32).detach());
      const double lr = 0.1 / (t + 1);
      optimizer.set_lr(lr);
      optimizer.step({.grad_scale = 0.5});
      m = mu * m + (1.0 - mu) * 0.5 * g;
      const Matrix direction = c.config.nesterov ? mu * m + (1.0 - mu) * 0.5 * g : m;
      p = (1.0 - lr * c.config.weight_decay) * p +
          (-lr * scale) * orthogonalized(direction, c.config.newton_schulz_steps);
    }
    expect_near(tensor, p.values, 1e-12, c.name);
    expect_near(single, p.values, 1e-4, c.name);
    EXPECT_EQ(optimizer.state()[1].first, "w/momentum") << c.name;
  }
}

TEST(Muon, OthersGetAdamWOfTheirOwnRateBitwise) {
  const std::vector<const char*> names{"wte.weight", "h.0.ln_1.weight", "h.0.mlp.c_fc.bias",
                                       "lm_head.weight"};
  NamedTensors muons, adams;
  for (const char* name : names) {
    muons.emplace_back(name, parameter(start_values(12), kF32));
    adams.emplace_back(name, parameter(start_values(12), kF32));
  }
  muons.emplace_back("h.0.mlp.c_fc.weight", tensor_of(start_matrix(3, 4), kF32));
  const std::vector<ParameterGroup> groups{{.patterns = {"wte.*"}, .lr_scale = 2.0, .weight_decay = 0.0}};
  Muon muon(muons, {.lr = 0.5, .weight_decay = 0.25, .adamw_lr_scale = 0.125}, groups);
  AdamW adam(adams, {.lr = 0.0625, .beta2 = 0.95, .weight_decay = 0.25}, groups);
  for (int t = 0; t < 5; ++t) {
    for (NamedTensors* list : {&muons, &adams}) {
      for (auto& [name, tensor] : *list) give_grad(tensor, grad_values(12, t));
    }
    muon.step();
    adam.step();
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_FALSE(muon.is_matrix(names[i]));
    EXPECT_EQ(muons[i].second.to_vector<float>(), adams[i].second.to_vector<float>()) << names[i];
  }
  EXPECT_TRUE(muon.is_matrix("h.0.mlp.c_fc.weight"));
  EXPECT_NE(muon.describe().find("1 matrices: momentum 0.95 (Nesterov); 3 others"), std::string::npos)
      << muon.describe();
}

// Which parameters are hidden matrices is known for the models that nn has.
TEST(Muon, KnowsTheHiddenMatricesOfGpt2AndLlamaByName) {
  RankContext context;
  const RankContext::Scope scope(context);
  const nn::Gpt2 gpt2({.vocab = 11, .context = 8, .layers = 1, .heads = 2, .width = 8});
  const nn::Llama llama(
      {.vocab = 11, .context = 8, .layers = 1, .heads = 2, .kv_heads = 2, .width = 8, .hidden = 16});
  const auto matrices_of = [](const nn::Module& model) {
    const Muon optimizer(model.named_parameters());
    std::vector<std::string> names;
    for (const auto& [name, parameter] : optimizer.parameters()) {
      if (optimizer.is_matrix(name)) names.push_back(name);
    }
    return names;
  };
  EXPECT_EQ(matrices_of(gpt2), (std::vector<std::string>{"h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight",
                                                         "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"}));
  EXPECT_EQ(matrices_of(llama).size(), 7u);  // q, k, v, o; gate, up, down
}

TEST(Muon, SixteenBitMatricesFollowTheF32RunThroughTheirMasters) {
  Tensor exact = tensor_of(start_matrix(4, 6), kF32), low = tensor_of(start_matrix(4, 6), kBF16);
  Muon exact_optimizer({{"w", exact}}, {.lr = 1.0 / 512}), low_optimizer({{"w", low}}, {.lr = 1.0 / 512});
  for (int t = 0; t < 10; ++t) {
    give_grad(exact, grad_values(24, t));
    give_grad(low, grad_values(24, t));
    exact_optimizer.step();
    low_optimizer.step();
    EXPECT_EQ(low.to_vector<float>(), exact.to(kBF16).to_vector<float>()) << "step " << t;
  }
}

TEST(Muon, SetMomentumReachesTheMatrices) {
  Tensor w = tensor_of(start_matrix(2, 2));
  Muon optimizer({{"w", w}}, {});
  optimizer.set_momentum(0.0);
  w.set_grad(tensor_of(grad_matrix(2, 2, 0)).detach());
  optimizer.step();
  EXPECT_EQ(optimizer.state()[1].second.to_vector<double>(), grad_matrix(2, 2, 0).values);
  EXPECT_THROW(optimizer.set_momentum(1.0), ConfigError);
}

TEST(Muon, MistakesAreRefused) {
  Tensor w = tensor_of(start_matrix(2, 2)), vector = parameter({1.0, 2.0});
  EXPECT_THROW(Muon({{"w", w}}, {.momentum = 1.0}), ConfigError);
  EXPECT_THROW(Muon({{"w", w}}, {.newton_schulz_steps = 0}), ConfigError);
  EXPECT_THROW(Muon({{"w", w}}, {.weight_decay = -1.0}), ConfigError);
  EXPECT_THROW(Muon({{"w", w}}, {.adamw_lr_scale = -1.0}), ConfigError);
  EXPECT_THROW((void)Muon({{"w", w}}).is_matrix("v"), IndexError);
  expect_error<ConfigError>(
      [&] {
        Muon({{"scale", vector}});
      },
      {"scale has the shape [2]", "MuonConfig::adamw"});
  Muon({{"scale", vector}}, {.adamw = {"scale"}});
}

}  // namespace
}  // namespace tessera::optim

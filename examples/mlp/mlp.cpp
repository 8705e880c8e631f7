// A first program: a network with two hidden layers learns to tell two interleaved spirals apart.
//     $ mlp
//     step  200   loss 0.0003   right about new points:  99.9 %
#include <fmt/format.h>

#include <numbers>

#include "autograd/ops.h"
#include "examples/command_line.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "tensor/create.h"

using namespace tessera;

// Points x [count, 2] scattered around two spirals, half a turn apart, and labels [count]: which spiral, 0
// or 1. Random numbers are functions of a seed and of the name of their stream.
std::pair<Tensor, Tensor> make_spirals(std::int64_t count, const std::string& stream) {
  const Tensor labels = greater_equal(uniform({count}, -1.0, 1.0, stream + ".labels"), 0.0).to(kI64);
  const Tensor radius = uniform({count}, 0.2, 2.0, stream + ".radius");
  const Tensor angle = std::numbers::pi * (2.0 * radius + labels.to(kF32));
  const Tensor x = stack(std::vector{radius * cos(angle), radius * sin(angle)}, 1);
  return {x + normal({count, 2}, 0.0, 0.05, stream + ".noise"), labels};
}

void train(std::int64_t steps, double lr) {
  nn::Sequential model;
  model.add<nn::Linear>(2, 64);
  model.add<nn::Gelu>();
  model.add<nn::Linear>(64, 64);
  model.add<nn::Gelu>();
  model.add<nn::Linear>(64, 2);
  const auto [x, labels] = make_spirals(1000, "training");
  const auto [new_x, new_labels] = make_spirals(1000, "test");
  optim::AdamW optimizer(model.named_parameters(), {.lr = lr});
  for (std::int64_t step = 0; step <= steps; ++step) {
    const Tensor loss = nn::cross_entropy(model(x), labels);  // model(x): [1000, 2], a score for each spiral
    if (step % 20 == 0 || step == steps) {
      const double right = mean(equal(argmax(model(new_x)), new_labels).to(kF32)).item();
      fmt::print("step {:4}   loss {:.4f}   right about new points: {:5.1f} %\n", step, loss.item(),
                 100 * right);
    }
    loss.backward();        // computes the gradient of each parameter,
    optimizer.step();       // moves the parameters a small step against it,
    optimizer.zero_grad();  // and drops it: gradients add up otherwise
  }
}

int main(int argc, char** argv) {
  std::int64_t steps = 200;
  double lr = 0.01;
  CLI::App options("Trains a small network to tell two interleaved spirals apart; prints loss and accuracy.");
  options.option_defaults()->always_capture_default();
  options.add_option("--steps", steps, "Training steps")->check(examples::at_least(0));
  options.add_option("--lr", lr, "Learning rate")->check(examples::at_least(0));
  options.add_option("--seed", RankContext::current().seed, "Of all random numbers");
  examples::parse_or_exit(options, argc, argv);
  return examples::run_program("mlp", [&] { train(steps, lr); });
}

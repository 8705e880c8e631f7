// Reads handwritten digits: a small convolutional network learns from four fifths of 1,797 pictures of 8 × 8
// pixels and is asked about the last fifth. Some seconds on a laptop.
//     $ digits                                            (from the root of the repository)
//     epoch 10   loss 0.0039   right about new digits:  99.4 %
#include <fmt/format.h>

#include <fstream>
#include <regex>

#include "autograd/grad_mode.h"
#include "autograd/ops.h"
#include "examples/command_line.h"
#include "kernels/error.h"
#include "nn/nn.h"
#include "optim/adam.h"
#include "optim/schedule.h"
#include "tensor/create.h"

using namespace tessera;

// N pictures, C channels; a picture has H = W = 8 pixels a side.

struct Digits {
  Tensor pixels;  // [N, 64], from 0 to 1
  Tensor labels;  // [N]
};

// Lines of 64 letters, a (0) to q (16), a space and the digit. Every fifth line is `test`, the others are
// `training`.
std::pair<Digits, Digits> read_digits(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw DataError("digits: can't read " + path + "; give its place with --data");
  std::vector<float> pixels[2];
  std::vector<std::int64_t> labels[2];
  std::int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("#")) continue;
    if (!std::regex_match(line, std::regex("[a-q]{64} [0-9]"))) {
      throw DataError(fmt::format("digits: picture {} of {} is not 64 letters and a digit", number, path));
    }
    const std::size_t part = number++ % 5 == 4 ? 1 : 0;
    for (int i = 0; i < 64; ++i)
      pixels[part].push_back(static_cast<float>(line[static_cast<std::size_t>(i)] - 'a') / 16);
    labels[part].push_back(line[65] - '0');
  }
  const auto digits = [&](std::size_t part) {
    const auto count = static_cast<std::int64_t>(labels[part].size());
    return Digits{from_vector(pixels[part], Shape{count, 64}), from_vector(labels[part])};
  };
  return {digits(0), digits(1)};
}

class Classifier final : public nn::UnaryModule {
 public:
  Classifier()
      : features_(add_module<nn::Sequential>("features")), output_(add_module<nn::Linear>("output", 64, 10)) {
    add_block(1, 16);                                         // [N, 16, 8, 8]
    add_block(16, 32);                                        // [N, 32, 8, 8]
    features_.add<nn::MaxPool2d>();                           // [N, 32, 4, 4]
    add_block(32, 64);                                        // [N, 64, 4, 4]
    features_.add<nn::AvgPool2d>(Pool2dConfig{.window = 4});  // [N, 64, 1, 1]
  }
  // pixels [N, 64] → a score for each digit [N, 10]
  Tensor forward(const Tensor& pixels) override {
    return output_(features_(pixels.reshape({pixels.dim(0), 1, 8, 8})).flatten(1));
  }

 private:
  void add_block(std::int64_t channels, std::int64_t outputs) {
    features_.add<nn::Conv2d>(channels, outputs, 3, nn::Conv2dOptions{.padding = 1, .bias = false});
    features_.add<nn::BatchNorm2d>(outputs);  // brings a bias of its own
    features_.add<nn::Relu>();
  }

  nn::Sequential& features_;
  nn::Linear& output_;
};

// The share of pictures whose highest score is their digit's.
double accuracy(Classifier& model, const Digits& digits) {
  const NoGrad no_grad;
  const nn::EvaluationScope evaluation(model);  // norms use their running statistics
  return mean(equal(argmax(model(digits.pixels)), digits.labels).to(kF32)).item();
}

void train(const std::string& path, std::int64_t epochs, std::int64_t batch, double lr) {
  const auto [training, test] = read_digits(path);
  const std::int64_t count = training.labels.dim(0), batches = count / batch;
  Classifier model;
  optim::AdamW optimizer(model.named_parameters(), {.lr = lr});
  const optim::CosineWithWarmup schedule{
      .max_lr = lr, .warmup_steps = batches, .total_steps = epochs * batches};
  std::uint64_t& step = RankContext::current().step;  // random numbers follow from it
  for (std::int64_t epoch = 1; epoch <= epochs; ++epoch) {
    const Tensor order = sort(uniform({count}, 0.0, 1.0, "order")).indices;  // another one in each step
    double loss_sum = 0.0;
    for (std::int64_t i = 0; i < batches; ++i) {
      const Tensor chosen = order.slice(0, i * batch, (i + 1) * batch);
      const Tensor loss =
          nn::cross_entropy(model(embedding(training.pixels, chosen)), gather(training.labels, 0, chosen));
      loss.backward();
      optimizer.set_lr(schedule.lr(static_cast<std::int64_t>(step++)));
      optimizer.step();
      optimizer.zero_grad();
      loss_sum += loss.item();
    }
    fmt::print("epoch {:2}   loss {:.4f}   right about new digits: {:5.1f} %\n", epoch,
               loss_sum / static_cast<double>(batches), 100 * accuracy(model, test));
  }
}

int main(int argc, char** argv) {
  std::string path = "examples/digits/digits.txt";
  std::int64_t epochs = 10, batch = 64;
  double lr = 0.01;
  CLI::App options(
      "Trains a small convolutional network to read handwritten digits; prints loss and accuracy.");
  options.option_defaults()->always_capture_default();
  options.add_option("--data", path, "The pictures");
  options.add_option("--epochs", epochs, "How often each picture is seen")->check(examples::at_least(1));
  options.add_option("--batch", batch, "Pictures of a step")->check(CLI::Range(2, 1024));
  options.add_option("--lr", lr, "Largest learning rate")->check(examples::at_least(0));
  options.add_option("--seed", RankContext::current().seed, "Of all random numbers");
  examples::parse_or_exit(options, argc, argv);
  return examples::run_program("digits", [&] { train(path, epochs, batch, lr); });
}

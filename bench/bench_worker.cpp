// One workload of scripts/bench, held ready so that it can take turns with PyTorch's:
//
//   bench_worker WORKLOAD THREADS      reads lines from stdin; for each "go" runs the workload once and
//                                      writes its seconds; at the end of the input, "peak BYTES" of memory
//
//   train MODEL DTYPE BxT      a step: forward, backward, clipping, AdamW; MODEL is gpt2 or char; DTYPE may
//                              be bf16state, too: bf16, and so AdamW's state
//   forward MODEL DTYPE BxT    logits and loss without gradients
//   generate MODEL DTYPE B     32 greedy tokens for each of B prompts of 32, with a cache of keys and values
//   adamw                      one update of 124M parameters
//   tiny                       10,000 times x · y of 16 elements, recorded
//   tokenize FILE              a text through a tokenizer that was trained on its beginning
//   floor MODEL DTYPE BxT      what no step is faster than: its matrix products and one AdamW pass alone
//
// bench/peers/pytorch_worker.py answers to the same words.

#include <fmt/format.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "autograd/grad_mode.h"
#include "autograd/graph.h"
#include "autograd/linear_algebra.h"
#include "autograd/ops.h"
#include "data/tokenizer.h"
#include "data/tokenizer_hugging_face.h"
#include "kernels/error.h"
#include "nn/evaluation_scope.h"
#include "nn/model_factory.h"
#include "optim/adam.h"
#include "optim/clip.h"
#include "tensor/context.h"
#include "tensor/create.h"

using namespace tessera;

namespace {

using Round = std::function<void()>;  // what is timed

constexpr std::int64_t kGpt2Vocabulary = 50257, kCharVocabulary = 65;

struct Shape2 {
  std::int64_t batch = 0, time = 0;
};

Shape2 parse_shape(const std::string& text) {
  Shape2 shape;
  if (std::sscanf(text.c_str(), "%ldx%ld", &shape.batch, &shape.time) != 2)
    throw ConfigError("expected a batch and a length, 4x256; got " + text);
  return shape;
}

DType parse_dtype(const std::string& text) {
  if (text == "f32") return kF32;
  if (text == "bf16") return kBF16;
  throw ConfigError("expected f32 or bf16, got " + text);
}

struct Model {
  std::unique_ptr<nn::LanguageModel> model;
  std::int64_t vocabulary = 0;
};

Model make_model(const std::string& name, DType dtype) {
  Model made;
  made.vocabulary = name == "char" ? kCharVocabulary : kGpt2Vocabulary;
  // The character model is nanoGPT's: 10.7M parameters.
  const std::string text = name == "char" ? "layers=6,heads=6,width=384,context=256" : name;
  made.model = nn::make_language_model(text, made.vocabulary);
  made.model->to(dtype);
  return made;
}

Tensor tokens(const Shape2& shape, std::int64_t vocabulary, std::int64_t offset) {
  std::vector<std::int64_t> ids(static_cast<std::size_t>(shape.batch * shape.time));
  for (std::size_t i = 0; i < ids.size(); ++i)
    ids[i] = (static_cast<std::int64_t>(i) * 7919 + offset) % vocabulary;
  return from_vector(ids, Shape{shape.batch, shape.time});
}

Round train(const std::string& name, const std::string& types, const Shape2& shape) {
  const bool bf16_state = types == "bf16state";
  auto made = std::make_shared<Model>(make_model(name, parse_dtype(bf16_state ? "bf16" : types)));
  auto optimizer = std::make_shared<optim::AdamW>(
      made->model->named_parameters(),
      optim::AdamConfig{.lr = 1e-4, .weight_decay = 0.1, .state_dtype = bf16_state ? kBF16 : kF32},
      optim::no_decay_for_biases_and_norms());
  const Tensor ids = tokens(shape, made->vocabulary, 0), targets = tokens(shape, made->vocabulary, 7919);
  return [=] {
    made->model->loss(ids, targets).backward();
    const optim::GradNorm norm = optim::global_grad_norm(optimizer->parameters());
    optimizer->step({.grad_scale = optim::clip_factor(norm, 1.0) * norm.grad_scale});
    optimizer->zero_grad();
  };
}

Round forward(const std::string& name, DType dtype, const Shape2& shape) {
  auto made = std::make_shared<Model>(make_model(name, dtype));
  const Tensor ids = tokens(shape, made->vocabulary, 0), targets = tokens(shape, made->vocabulary, 7919);
  return [=] {
    const NoGrad no_grad;
    static_cast<void>(made->model->loss(ids, targets).item());
  };
}

Round generate(const std::string& name, DType dtype, std::int64_t batch) {
  constexpr std::int64_t kPrompt = 32, kNew = 32;
  auto made = std::make_shared<Model>(make_model(name, dtype));
  const Tensor prompt = tokens({batch, kPrompt}, made->vocabulary, 0);
  return [=] {
    const NoGrad no_grad;
    const nn::EvaluationScope evaluation(*made->model);
    nn::KvCache cache = made->model->make_cache(kPrompt + kNew);
    Tensor logits = made->model->next_logits(prompt, &cache);
    for (std::int64_t i = 1; i < kNew; ++i)
      logits = made->model->next_logits(argmax(logits, -1).unsqueeze(1), &cache);
    static_cast<void>(argmax(logits, -1).to_vector<std::int64_t>());
  };
}

Round adamw() {
  auto made = std::make_shared<Model>(make_model("gpt2", kF32));
  for (const auto& [name, parameter] : made->model->named_parameters()) {
    Tensor p = parameter;
    p.set_grad(full(p.shape(), 1e-3));
  }
  auto optimizer =
      std::make_shared<optim::AdamW>(made->model->named_parameters(), optim::AdamConfig{.lr = 1e-4});
  return [made, optimizer] { optimizer->step(); };
}

Round tiny() {
  Tensor x = normal({16}, 0, 1, "x"), y = normal({16}, 0, 1, "y");
  x.set_requires_grad();
  return [x, y] {
    for (int i = 0; i < 10'000; ++i) static_cast<void>(x * y);
  };
}

Round tokenize(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw ConfigError("cannot read " + file);
  auto text =
      std::make_shared<std::string>(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  constexpr std::size_t kLearned = 1 << 20;
  constexpr std::int64_t kVocabulary = 8192;
  auto tokenizer = std::make_shared<data::Tokenizer>(
      data::Tokenizer::train(std::string_view(*text).substr(0, kLearned), kVocabulary));
  data::save_hugging_face_tokenizer(file + ".tokenizer", *tokenizer);  // for the peer: the same merges
  return [=] { static_cast<void>(tokenizer->encode(*text)); };
}

// The products of a linear layer: y = x wᵀ, dx = dy w, dw = dyᵀ x. Rows are tokens.
struct Products {
  Tensor x, w, dy;
  void run() const {
    static_cast<void>(linear(x, w, {}));
    static_cast<void>(matmul(dy, w));
    static_cast<void>(matmul(dy.transpose(0, 1), x));
  }
};

Round floor_of(const std::string& name, DType dtype, const Shape2& shape) {
  auto made = std::make_shared<Model>(make_model(name, dtype));
  auto products = std::make_shared<std::vector<Products>>();
  const std::int64_t rows = shape.batch * shape.time;
  for (const auto& [parameter, weight] : made->model->named_parameters()) {
    if (weight.dims() == 2 && parameter != "wpe.weight") {  // that of positions is only looked up
      products->push_back({.x = normal({rows, weight.dim(1)}, 0, 1, "x", {.dtype = dtype}),
                           .w = weight.detach(),
                           .dy = normal({rows, weight.dim(0)}, 0, 1, "dy", {.dtype = dtype})});
    }
    Tensor p = weight;
    p.set_grad(full(p.shape(), 1e-3));
  }
  auto optimizer =
      std::make_shared<optim::AdamW>(made->model->named_parameters(), optim::AdamConfig{.lr = 1e-4});
  return [=] {
    const NoGrad no_grad;
    for (const Products& each : *products) each.run();
    optimizer->step();
    static_cast<void>(made);
  };
}

Round round_of(const std::vector<std::string>& words) {
  const auto word = [&words](std::size_t i) {
    if (i >= words.size()) throw ConfigError("the workload lacks a word; see the head of bench_worker.cpp");
    return words[i];
  };
  const std::string kind = word(0);
  if (kind == "train") return train(word(1), word(2), parse_shape(word(3)));
  if (kind == "forward") return forward(word(1), parse_dtype(word(2)), parse_shape(word(3)));
  if (kind == "generate") return generate(word(1), parse_dtype(word(2)), std::stoll(word(3)));
  if (kind == "adamw") return adamw();
  if (kind == "tiny") return tiny();
  if (kind == "tokenize") return tokenize(word(1));
  if (kind == "floor") return floor_of(word(1), parse_dtype(word(2)), parse_shape(word(3)));
  throw ConfigError("no such workload: " + kind);
}

std::int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3) throw ConfigError("usage: bench_worker WORKLOAD... THREADS");
    const std::vector<std::string> words(argv + 1, argv + argc - 1);
    RankContext::current().kernels.num_threads = std::stoi(argv[argc - 1]);
    const Round round = round_of(words);
    round();  // memory, buffers, the choice of kernels
    round();
    fmt::print("ready\n");
    std::fflush(stdout);
    for (std::string line; std::getline(std::cin, line) && line == "go";) {
      const auto start = std::chrono::steady_clock::now();
      round();
      fmt::print("{}\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      std::fflush(stdout);
    }
    fmt::print("peak {}\n", peak_memory());
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_worker: {}\n", error.what());
    return 1;
  }
}

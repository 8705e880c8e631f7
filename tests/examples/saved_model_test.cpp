// What is done with a saved model: text and figures.

#include <map>
#include <regex>

#include "data/prepare.h"
#include "data/token_file.h"
#include "nn/model_factory.h"
#include "tensor/create.h"
#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class SavedModel : public Workplace {
 protected:
  void SetUp() override {
    Workplace::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    const Outcome trained = run(train("--out run --steps 20 --batch 4 --lr 0.01 --progress none"));
    ASSERT_EQ(trained.status, 0) << trained.all();
  }
  [[nodiscard]] Outcome generate(const std::string& options) const {
    return run("gpt2_generate --model run --threads 1 --prompt the " + options);
  }
  // The number after `name` in what gpt2_evaluate prints.
  static double figure(const std::string& text, const std::string& name) {
    std::smatch match;
    return std::regex_search(text, match, std::regex(name + " +([0-9.]+)")) ? std::stod(match[1]) : NAN;
  }
};

TEST_F(SavedModel, ContinuesAPromptInTheSameWayForTheSameSeed) {
  const Outcome first = generate("--tokens 40 --seed 1");
  EXPECT_EQ(first.status, 0) << first.all();
  EXPECT_TRUE(first.out.starts_with("the")) << first.out;
  EXPECT_GT(first.out.size(), 40u);
  EXPECT_EQ(generate("--tokens 40 --seed 1").out, first.out);
  EXPECT_NE(generate("--tokens 40 --seed 2").out, first.out);
  EXPECT_EQ(generate("--tokens 0").out, "the\n");
}

TEST_F(SavedModel, TakesTheLikeliestTokenAtTemperatureZeroAndForTopKOne) {
  const Outcome greedy = generate("--tokens 40 --temperature 0 --seed 1");
  EXPECT_EQ(greedy.status, 0);
  EXPECT_EQ(generate("--tokens 40 --temperature 0 --seed 2").out, greedy.out);
  EXPECT_EQ(generate("--tokens 40 --temperature 1 --top-k 1 --seed 3").out, greedy.out);
  EXPECT_EQ(generate("--tokens 40 --top-k 0 --seed 1").out,
            generate("--tokens 40 --top-k 100000 --seed 1").out);
}

TEST_F(SavedModel, TakesAnyPromptButAnEmptyOne) {
  const auto with_prompt = [this](const std::string& prompt) {
    std::vector<std::string> words = command("gpt2_generate --model run --tokens 3 --prompt");
    words.push_back(prompt);
    Child child(words, {.folder = folder_.path()});
    return child.wait();
  };
  const std::string bytes = "\xff\xfe\x80 \xc3\x28\x01";
  EXPECT_EQ(with_prompt(bytes).status, 0);
  EXPECT_TRUE(with_prompt(bytes).out.starts_with(bytes));
  const std::string longer_than_the_context = sample_text(200);
  EXPECT_EQ(with_prompt(longer_than_the_context).status, 0);
  EXPECT_TRUE(with_prompt(longer_than_the_context).out.starts_with(longer_than_the_context));
  EXPECT_EQ(with_prompt("").status, 2);
  EXPECT_NE(with_prompt("").err.find("--prompt: is empty"), std::string::npos);
  EXPECT_EQ(with_prompt("").out, "");
}

TEST_F(SavedModel, IsQuietWhenNobodyReadsItsText) {
  const std::string program = (programs_ / "gpt2_generate").string();
  Child child({"sh", "-c", program + " --model run --prompt the --tokens 100000000 | head -c 20"},
              {.folder = folder_.path()});
  const Outcome outcome = child.wait(20s);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out.size(), 20u);
  EXPECT_EQ(outcome.err, "");
}

TEST_F(SavedModel, SaysWhenItsTextIsLost) {
  Child child({"sh", "-c", (programs_ / "gpt2_generate").string() + " --model run --prompt the > /dev/full"},
              {.folder = folder_.path()});
  const Outcome outcome = child.wait();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.err.find("cannot write to standard output"), std::string::npos) << outcome.err;
}

TEST_F(SavedModel, SaysWhenItsFiguresAreLost) {
  const std::string program = (programs_ / "gpt2_evaluate").string();
  for (const char* to : {" > /dev/full", " >&-"}) {
    Child child({"sh", "-c", program + " --model run --data data --threads 1" + to},
                {.folder = folder_.path()});
    const Outcome outcome = child.wait();
    EXPECT_EQ(outcome.status, 1) << to;
    EXPECT_NE(outcome.err.find("cannot write to standard output"), std::string::npos) << outcome.err;
  }
}

// Whoever starts a program may close its streams. The first file that it opened would get a stream's number,
// and with it all that is printed.
TEST_F(SavedModel, HoldsNothingThatWasPrinted) {
  std::string line;
  for (const std::string& word :
       command(train("--out closed --steps 20 --batch 4 --lr 0.01 --log closed.jsonl")))
    line += word + " ";
  Child child({"sh", "-c", line + "<&- >&- 2>&-"}, {.folder = folder_.path()});
  EXPECT_EQ(child.wait().status, 0);
  EXPECT_EQ(read_log("closed.jsonl").size(), 20u);  // throws at a line that is no JSON
  EXPECT_EQ(std::filesystem::file_size(folder_ / "closed/.lock"), 0u);
  EXPECT_TRUE(read_file(latest("closed") / "model.safetensors") ==
              read_file(latest("run") / "model.safetensors"));
}

TEST_F(SavedModel, WithWeightsThatAreNotFiniteGivesNeitherTextNorFigures) {
  ASSERT_EQ(run("gpt2_export --model run --out damaged").status, 0);
  const auto file = folder_ / "damaged/model.safetensors";
  NamedTensors weights = data::SafetensorsFile::open(file).read_all();
  for (auto& [name, tensor] : weights)
    if (name.ends_with("ln_f.bias")) tensor.set({0}, NAN);
  data::write_safetensors(file, weights);
  const Outcome text = run("gpt2_generate --model damaged --prompt the --tokens 3");
  EXPECT_EQ(text.status, 1);
  EXPECT_EQ(text.out, "the\n");  // the message begins a line
  EXPECT_NE(text.err.find("is NaN; the model's weights are damaged"), std::string::npos) << text.err;

  ASSERT_EQ(run("gpt2_prepare --text text --tokenizer damaged --out again").status, 0);
  const Outcome figures = run("gpt2_evaluate --model damaged --data again");
  EXPECT_EQ(figures.status, 1);
  EXPECT_EQ(figures.out, "");
  EXPECT_NE(figures.err.find("damaged: the loss is nan"), std::string::npos) << figures.err;
}

TEST_F(SavedModel, IsMeasuredTheSameOnAnyNumberOfRanks) {
  const Outcome alone = run("gpt2_evaluate --threads 1 --model run --data data");
  ASSERT_EQ(alone.status, 0) << alone.all();
  EXPECT_EQ(run("gpt2_evaluate --threads 1 --model run --data data --ranks 3").out, alone.out);
  EXPECT_EQ(run("gpt2_evaluate --threads 1 --model run --data data --batch 1").out, alone.out);
  EXPECT_EQ(run("gpt2_evaluate --model " + latest("run").string() + " --data data").out, alone.out);
  if (has_mpi()) {
    EXPECT_EQ(run("mpiexec -n 2 gpt2_evaluate --threads 1 --model run --data data").out, alone.out);
  }
}

// By another way: the log-probability of each token, in f64, from the logits of one window at a time.
TEST_F(SavedModel, HasTheBitsPerByteOfASumOverItsTokens) {
  const auto index = nlohmann::json::parse(read_file(latest("run") / "checkpoint.json"));
  const auto model = nn::make_language_model(index["metadata"]["model"].get<std::string>(), 290);
  model->materialize(cpu);
  model->load_state(read_weights("run"));
  model->to(kF64);
  model->eval();
  const auto file = data::TokenFile::open(folder_ / "data" / data::kValidationFile);
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(file.size()));
  file.read(0, tokens);

  double nats = 0.0;
  const std::size_t context = 16;
  for (std::size_t begin = 0; begin + 1 < tokens.size(); begin += context) {
    const std::size_t length = std::min(context, tokens.size() - 1 - begin);
    const Tensor ids = from_span<std::int64_t>(std::span(tokens).subspan(begin, length),
                                               Shape{1, static_cast<std::int64_t>(length)});
    const std::vector<double> logits = model->logits(ids).to_vector<double>();
    for (std::size_t t = 0; t < length; ++t) {
      double sum = 0.0;
      for (std::size_t v = 0; v < 290; ++v) sum += std::exp(logits[t * 290 + v]);
      nats += std::log(sum) - logits[t * 290 + static_cast<std::size_t>(tokens[begin + t + 1])];
    }
  }
  const double num_targets = static_cast<double>(tokens.size() - 1);
  // The text's last tenth; the first of its tokens follows nothing and costs log2(290) bits.
  const double bytes = std::floor(static_cast<double>(std::filesystem::file_size(folder_ / "text")) * 0.1);
  const double bits_per_byte = (nats / std::log(2.0) + std::log2(290.0)) / bytes;

  const std::string printed = run("gpt2_evaluate --threads 1 --model run --data data").out;
  EXPECT_EQ(figure(printed, "tokens"), num_targets) << printed;
  // Printed with 6 and 4 digits; f32 sums of 290 terms are exact to 1e-5 relative.
  EXPECT_NEAR(figure(printed, "loss"), nats / num_targets, 1e-4) << printed;
  EXPECT_NEAR(figure(printed, "perplexity"), std::exp(nats / num_targets), 1e-2) << printed;
  EXPECT_NEAR(figure(printed, "bits per byte"), bits_per_byte, 1e-4 + 5e-5) << printed;
}

TEST_F(SavedModel, IsMeasuredWithMoreTextBeforeEachToken) {
  const Outcome outcome = run("gpt2_evaluate --threads 1 --model run --data data --stride 4");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(figure(outcome.out, "tokens"),
            figure(run("gpt2_evaluate --threads 1 --model run --data data").out, "tokens"));
  const Outcome part = run("gpt2_evaluate --threads 1 --model run --data data --tokens 100");
  EXPECT_NE(part.out.find("(a part)"), std::string::npos) << part.out;
  EXPECT_NE(part.out.find("(estimate)"), std::string::npos) << part.out;
}

}  // namespace
}  // namespace tessera::programs

// A module of one's own, laid over tensor-parallel ranks by a plan of three lines: what each rank holds, what
// it sends, that the result is the one of a single rank, and what happens when a line is left out.
//     $ tensor_parallel --ranks 2
//     parameter                                whole            here             layout
//     down.bias                                [64]             [64]             I
//     down.weight                              [64, 250]        [64, 125]        tp S(1)
//     up.bias                                  [250]            [125]            tp S(0)
//     up.weight                                [250, 64]        [125, 64]        tp S(0)
//     sent by a rank: 16384 bytes; largest difference from one rank: 4.2e-07
//     $ tensor_parallel --ranks 2 --forget enter       refused: whose gradient would be a part of it?
//     $ tensor_parallel --ranks 2 --forget down        refused: cut in x alone; an all_gather is missing
//     $ mpiexec -n 3 tensor_parallel
#include "dist/tensor_parallel.h"

#include <fmt/format.h>

#include "autograd/ops.h"
#include "dist/job.h"
#include "examples/command_line.h"
#include "nn/linear.h"
#include "tensor/context.h"
#include "tensor/create.h"

using namespace tessera;

// Nothing in here knows of ranks.
class Feedforward final : public nn::UnaryModule {
 public:
  Feedforward()
      : up_(add_module<nn::Linear>("up", 64, 250)), down_(add_module<nn::Linear>("down", 250, 64)) {}
  Tensor forward(const Tensor& x) override { return down_(gelu(up_(x))); }

 private:
  nn::Linear& up_;
  nn::Linear& down_;
};

dist::Plan plan_without(const std::string& forgotten) {
  dist::Plan plan{{"", dist::Role::kEnter}, {"up", dist::Role::kColumn}, {"down", dist::Role::kRow}};
  std::erase_if(plan, [&](const dist::PlanRow& row) {
    return (!forgotten.empty() && forgotten == row.pattern) ||
           (forgotten == "enter" && row.role == dist::Role::kEnter);
  });
  return plan;
}

// y and the gradient of Σ y² for x. x is the same on every rank, and so is its gradient.
std::pair<Tensor, Tensor> run(Feedforward& model) {
  const Tensor x = normal({32, 64}, 0, 1, "x").set_requires_grad();
  const Tensor y = model(x);
  sum(square(y)).backward();
  return {y.detach(), x.grad()};
}

void program(dist::Job& job, const std::string& forgotten) {
  dist::MeshShape shape;
  shape.set(MeshAxis::kTp, job.size());
  const dist::Mesh mesh(shape, job.shared_world());
  Feedforward whole;  // on one rank, to compare
  RankContext::current().num_root_modules = 0;
  std::unique_ptr<Feedforward> model;
  {
    const DeviceScope on_meta(meta);  // without memory: no rank ever holds the whole
    model = std::make_unique<Feedforward>();
  }
  const dist::LaidOut laid_out = dist::lay_out(*model, plan_without(forgotten), mesh);
  dist::materialize(*model, laid_out);
  job.log(laid_out.to_string());

  job.tape().reset_totals();
  const auto [y, dx] = run(*model);
  const std::int64_t sent = job.tape().total_sent_bytes();
  const auto [expected_y, expected_dx] = run(whole);
  const double difference = std::max(max(abs(y - expected_y)).item(), max(abs(dx - expected_dx)).item());
  job.log(
      fmt::format("sent by a rank: {} bytes; largest difference from one rank: {:.1e}", sent, difference));
}

int main(int argc, char** argv) {
  dist::JobOptions options;
  std::string forgotten;
  CLI::App app{"A module of one's own over tensor-parallel ranks.", "tensor_parallel"};
  app.add_option("--ranks", options.ranks, "Ranks as threads of this process; not under mpiexec [1]");
  app.add_option("--forget", forgotten, "A line of the plan to leave out: enter, up or down [none]")
      ->check(CLI::IsMember({"enter", "up", "down"}));
  examples::parse_or_exit(app, argc, argv);
  return dist::run(options, [&](dist::Job& job) { program(job, forgotten); });
}

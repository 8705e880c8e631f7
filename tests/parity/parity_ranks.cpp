// A dozen rows of the parity table on the ranks of an mpiexec: those with as many ranks as there are.
//
//     $ mpiexec -n 4 parity_ranks
//     dp=2,tp=2 zero=3 sp                          losses 1.1e-15, norms 2.0e-14, weights 3.2e-15

#include <fmt/format.h>

#include "kernels/error.h"
#include "tests/parity/compare.h"
#include "tests/parity/run.h"

int main(int argc, char** argv) {
  using namespace tessera;
  using namespace tessera::dist;
  return dist::run(argc, argv, [](Job& job) {
    int rows = 0;
    for (const char* text : {"dp=2 zero=1",
                             "dp=2 zero=3 recompute=full",
                             "tp=2 sp",
                             "cp=2 zero=2",
                             "dp=3 zero=3 pass=2",
                             "tp=3 sp",
                             "cp=3 ulysses",
                             "dp=2,tp=2 zero=2 pass=2",
                             "dp=2,tp=2 zero=3 sp recompute=full",
                             "dp=2,cp=2 zero=3",
                             "cp=2,tp=2 sp zero=1",
                             "dp=4 hpz=2 pass=1",
                             "dp=2,cp=2,tp=2 zero=3 sp",
                             "dp=8 zero=2 pass=1",
                             "tp=2 sp bf16",
                             "dp=2,tp=2 zero=3 f16",
                             "pp=2 pass=2",
                             "pp=2 pass=1 schedule=zb-h1",
                             "pp=2,dp=2 zero=3 pass=2",
                             "pp=2,tp=2 sp pass=3 schedule=gpipe",
                             "pp=2,dp=2,tp=2 zero=2 pass=1"}) {
      const parity::TrainingRun run{.model = parity::kGpt2, .config = parity::layout(text), .steps = 5};
      if (run.config.mesh.num_ranks() != job.size()) continue;
      const parity::Result result = parity::run_on_mesh(run, job);
      const parity::Distance d = parity::distance(run, result, parity::one_rank(run));
      job.log(fmt::format("{:<44} {}", text, d.shown));
      if (!(d.value <= 1.0)) throw Error(fmt::format("{}: differs from one rank", text));
      if (!result.broken_replica.empty()) throw Error(fmt::format("{}: {}", text, result.broken_replica));
      ++rows;
    }
    if (rows == 0) throw Error(fmt::format("no row of the table has {} ranks", job.size()));
  });
}

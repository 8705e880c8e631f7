// Some rows of the table of Invariant numerics on the ranks of an mpiexec: those with as many ranks as there
// are.
//
//     $ mpiexec -n 4 invariant_ranks
//     dp=2,tp=2 zero=3 sp                          the bits of one rank

#include <fmt/format.h>

#include <string_view>

#include "kernels/error.h"
#include "tests/parity/invariant_run.h"

int main(int argc, char** argv) {
  using namespace tessera;
  using namespace tessera::dist;
  return dist::run(argc, argv, [](Job& job) {
    int rows = 0;
    for (const char* text :
         {"dp=2 zero=1", "dp=2 zero=3 pass=2", "tp=2 sp", "cp=2 ulysses", "dp=3 zero=2", "tp=3 sp zero=3",
          "dp=2,tp=2 zero=3 sp", "dp=2,cp=2 ulysses zero=1", "dp=4 zero=2", "pp=2 schedule=zb-h1",
          "pp=3 schedule=zb-v", "pp=2,dp=2 zero=3 schedule=interleaved"}) {
      const bool has_stages = std::string_view(text).starts_with("pp=");
      const char* model = has_stages ? parity::kDeepGpt2 : parity::kInvariantGpt2;
      const parity::InvariantRun run = parity::invariant_run(model, text);
      if (run.config.mesh.num_ranks() != job.size()) continue;
      const bool equal = parity::bits_of(run, job) == parity::bits_of(parity::invariant_run(model, "dp=1"));
      if (!equal) throw Error(fmt::format("{}: differs from one rank", text));
      job.log(fmt::format("{:<44} the bits of one rank", text));
      ++rows;
    }
    if (rows == 0) throw Error(fmt::format("no row of the table has {} ranks", job.size()));
  });
}

// Attention over one long sequence, of which each rank has a part: who has which tokens, what each rank
// computes, sends and holds, and that the result is the one of a single rank.
//     $ context_parallel --ranks 4
//     4096 tokens on 4 ranks: ring attention, balanced chunks
//     rank 0   tokens 0-511, 3584-4095        2097664 pairs   sent  18432 KiB   most memory  22410 KiB
//     ...
//     largest difference from one rank, in o and the gradients of q, k, v: 1.7e-06
//     $ context_parallel --ranks 4 --contiguous        the last rank has seven times the work of the first
//     $ mpiexec -n 2 context_parallel --ulysses
#include <fmt/format.h>

#include <algorithm>

#include "autograd/ops.h"
#include "dist/collectives.h"
#include "dist/job.h"
#include "dist/ring_attention.h"
#include "dist/ulysses.h"
#include "examples/command_line.h"
#include "tensor/context.h"
#include "tensor/create.h"

using namespace tessera;

struct Options {
  std::int64_t tokens = 4096, heads = 8, head_width = 32;
  bool contiguous = false, ulysses = false;
};

using Attend = std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v)>;

// o and the gradients of Σ o·dy for q, k, v.
std::vector<Tensor> run_both_ways(const Attend& attend, const std::vector<Tensor>& q_k_v_dy) {
  std::vector<Tensor> leaves;
  for (int i = 0; i < 3; ++i) leaves.push_back(q_k_v_dy[i].detach().set_requires_grad());
  const Tensor o = attend(leaves[0], leaves[1], leaves[2]);
  sum(o * q_k_v_dy[3]).backward();
  return {o.detach(), leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
}

// Every rank can make the whole sequence here, to compare; a model makes its own tokens alone.
std::vector<Tensor> whole_sequence(const Options& options) {
  std::vector<Tensor> result;
  for (const char* stream : {"q", "k", "v", "dy"})
    result.push_back(normal({1, options.tokens, options.heads, options.head_width}, 0, 1, stream));
  return result;
}

// What a rank has done, as numbers that can be gathered.
struct Report {
  double pairs = 0, sent = 0, memory = 0, difference = 0;
};

void print(dist::Job& job, const dist::SequenceCut& cut, Report mine) {
  std::vector<double> own{mine.pairs, mine.sent, mine.memory, mine.difference};
  std::vector<double> all(own.size() * static_cast<std::size_t>(job.size()));
  job.world().all_gather(dist::buffer_of(own), dist::buffer_of(all));
  double difference = 0;
  for (int r = 0; r < job.size(); ++r) {
    std::string chunks;
    for (const auto& [begin, size] : cut.chunks(r))
      chunks += fmt::format("{}{}-{}", chunks.empty() ? "" : ", ", begin, begin + size - 1);
    const double* of = &all[own.size() * static_cast<std::size_t>(r)];
    job.log(fmt::format("rank {}   tokens {:<22} {:>8.0f} pairs   sent {:6.0f} KiB   most memory {:6.0f} KiB",
                        r, chunks, of[0], of[1] / 1024, of[2] / 1024));
    difference = std::max(difference, of[3]);
  }
  job.log(
      fmt::format("largest difference from one rank, in o and the gradients of q, k, v: {:.1e}", difference));
}

void attend_together(dist::Job& job, const Options& options) {
  const bool balanced = !options.contiguous && !options.ulysses;
  const auto cut = balanced ? dist::SequenceCut::balanced(options.tokens, job.size())
                            : dist::SequenceCut::contiguous(options.tokens, job.size());
  job.log(fmt::format("{} tokens on {} ranks: {} attention, {}", options.tokens, job.size(),
                      options.ulysses ? "ulysses" : "ring",
                      balanced ? "balanced chunks" : "contiguous pieces"));
  std::vector<Tensor> own;
  for (const Tensor& x : whole_sequence(options)) own.push_back(cut.take(x, 1, job.rank()).clone());

  MemoryPool& pool = *RankContext::current().pool(cpu);
  pool.reset_peak();
  const std::vector<Tensor> cut_up = run_both_ways(
      [&](const Tensor& q, const Tensor& k, const Tensor& v) {
        return options.ulysses ? dist::ulysses_attention(q, k, v, {}, job.world(), cut)
                               : dist::ring_attention(q, k, v, {}, job.world(), cut);
      },
      own);
  Report report;
  report.memory = static_cast<double>(pool.report().total.peak);
  report.sent = static_cast<double>(job.tape().total_sent_bytes());
  const std::int64_t heads = shard_size(options.heads, job.size(), job.rank());
  if (options.ulysses) {  // some heads of all pairs, counted as pairs of all heads
    report.pairs = 0.5 * static_cast<double>(options.tokens * (options.tokens + 1) * heads / options.heads);
  } else {
    const auto positions = cut.positions(job.rank());
    for (const std::int64_t t : *positions) report.pairs += static_cast<double>(t + 1);
  }

  const std::vector<Tensor> one =
      run_both_ways([](const Tensor& q, const Tensor& k, const Tensor& v) { return attention(q, k, v); },
                    whole_sequence(options));
  for (std::size_t i = 0; i < one.size(); ++i) {
    const Tensor expected = cut.take(one[i], 1, job.rank());
    if (expected.num_elements() > 0)
      report.difference = std::max(report.difference, max(abs(cut_up[i] - expected)).item());
  }
  print(job, cut, report);
}

int main(int argc, char** argv) {
  Options options;
  dist::JobOptions job_options;
  CLI::App app(
      "Attends to one long sequence, cut over the ranks; prints what each computes, sends and holds.");
  app.option_defaults()->always_capture_default();
  app.add_option("--ranks", job_options.ranks, "Ranks as threads of this process; not under mpiexec [1]");
  app.add_option("--tokens", options.tokens, "Length of the sequence, in tokens")
      ->check(examples::at_least(1));
  app.add_option("--heads", options.heads, "Attention heads")->check(examples::at_least(1));
  app.add_flag("--contiguous", options.contiguous, "One piece of the sequence for each rank, not two chunks");
  app.add_flag("--ulysses", options.ulysses, "Exchange tokens for heads, instead of the ring");
  examples::parse_or_exit(app, argc, argv);
  return dist::run(job_options, [&](dist::Job& job) { attend_together(job, options); });
}

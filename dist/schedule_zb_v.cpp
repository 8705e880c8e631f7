#include <algorithm>
#include <array>

#include "dist/pipeline_generators.h"
#include "dist/schedule_chunks.h"

namespace tessera::dist {
namespace {

// Writes one rank's list. Each chunk takes its micro-batches in order, so a pass is named by its chunk alone;
// one too many is left out: with few micro-batches a phase is cut short.
class RankWriter {
 public:
  RankWriter(int num_micro_batches, std::vector<Action>& actions)
      : m_(num_micro_batches), actions_(actions) {}

  void forward(int chunk) { write(ActionKind::kForward, chunk, forwards_); }
  void backward_input(int chunk) {
    if (write(ActionKind::kBackwardInput, chunk, backwards_))
      waiting_.push_back(Action::backward_weight(backwards_[at(chunk)] - 1, chunk));
  }
  /// The oldest weight pass that is still to do.
  void backward_weight() {
    if (next_waiting_ < waiting_.size()) actions_.push_back(waiting_[next_waiting_++]);
  }

  [[nodiscard]] bool has_forwards() const { return forwards_[0] < m_ || forwards_[1] < m_; }
  [[nodiscard]] bool has_backwards() const { return backwards_[0] < m_ || backwards_[1] < m_; }
  [[nodiscard]] bool has_weights() const { return next_waiting_ < waiting_.size(); }

 private:
  static std::size_t at(int chunk) { return static_cast<std::size_t>(chunk); }
  bool write(ActionKind kind, int chunk, std::array<int, 2>& done) {
    if (done[at(chunk)] == m_) return false;
    actions_.push_back({kind, done[at(chunk)]++, chunk});
    return true;
  }

  int m_;
  std::vector<Action>& actions_;
  std::array<int, 2> forwards_{}, backwards_{};
  std::vector<Action> waiting_;
  std::size_t next_waiting_ = 0;
};

}  // namespace

// Chunk 0 is the way down, chunk 1 the way back up. In units of one pass, micro-batch 0 comes to rank r at r,
// and on its way back at 2p − 1 − r.
Schedule schedule_zb_v(const PipelineSize& size) {
  Schedule schedule("zb-v", detail::with_two_chunks("zb-v", size), StageOrder::kV);
  const int p = schedule.num_ranks, m = schedule.num_micro_batches;
  for (int rank = 0; rank < p; ++rank) {
    RankWriter to(m, schedule.actions[static_cast<std::size_t>(rank)]);
    // Until micro-batch 0 is back there is time for this many on their way down; then both ways in turn,
    // until this rank's first gradient arrives.
    for (int i = 0; i < 2 * (p - rank) - 1; ++i) to.forward(0);
    for (int i = 0; i < rank; ++i) {
      to.forward(1);
      to.forward(0);
    }
    // 2p are alive from here on: each forward is paid for by a weight pass.
    for (int i = 0; i < p - rank; ++i) {
      to.forward(1);
      to.backward_input(1);
      to.backward_weight();
    }
    while (to.has_forwards()) {
      for (const int chunk : {0, 1}) {
        to.forward(chunk);
        to.backward_input(chunk);
        to.backward_weight();
      }
    }
    // Gradients first, since other ranks wait for them; what is left of weight passes fills the end.
    for (int i = 0; i < rank; ++i) {
      to.backward_input(0);
      to.backward_input(1);
    }
    for (int i = 0; i < p - rank; ++i) {
      to.backward_input(0);
      to.backward_weight();
    }
    while (to.has_backwards()) {  // with few micro-batches alone
      to.backward_input(1);
      to.backward_input(0);
    }
    while (to.has_weights()) to.backward_weight();
    schedule.most_live.push_back(std::min(2 * m, 2 * p));
  }
  add_messages(schedule);
  return schedule;
}

}  // namespace tessera::dist

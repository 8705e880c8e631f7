// Ranks as threads of one process. All that they share is in dist/thread_board.h.

#include <memory>
#include <numeric>
#include <utility>

#include "dist/communicator.h"
#include "dist/thread_board.h"

namespace tessera::dist {
namespace {

using detail::Board;
using detail::Call;

/// `Posted` is an Exchange or a Message.
template <class Posted>
class BoardOperation final : public detail::Operation {
 public:
  BoardOperation(std::shared_ptr<Board> board, int rank, std::shared_ptr<Posted> posted)
      : board_(std::move(board)), rank_(rank), posted_(std::move(posted)) {}

  bool test() override { return board_->test(rank_, posted_); }
  bool wait_until(Time until) override { return board_->wait_until(rank_, posted_, until); }
  void abandon() noexcept override { board_->abandon(rank_, posted_); }

 private:
  std::shared_ptr<Board> board_;
  int rank_;
  std::shared_ptr<Posted> posted_;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(Identity identity, std::shared_ptr<Board> board, std::shared_ptr<Tape> tape,
                     const CommOptions& options)
      : Communicator(std::move(identity), std::move(tape), options), board_(std::move(board)) {}

  [[nodiscard]] const char* backend() const noexcept override { return "threads"; }
  void abort(const std::string& cause) noexcept override { board_->family().fail(cause); }

 protected:
  [[nodiscard]] std::unique_ptr<detail::Operation> start(const Call& call) override {
    if (call.op == Collective::kSend || call.op == Collective::kRecv) {
      return std::make_unique<BoardOperation<detail::Message>>(board_, rank(),
                                                               board_->post_message(rank(), call));
    }
    return std::make_unique<BoardOperation<detail::Exchange>>(board_, rank(), board_->post(rank(), call));
  }

  [[nodiscard]] std::shared_ptr<Communicator> make_group(int color, const std::vector<int>& members,
                                                         int new_rank, const Call& call,
                                                         const std::string& name) override {
    if (color < 0) return nullptr;
    return std::make_shared<ThreadCommunicator>(Identity{new_rank, static_cast<int>(members.size()), name},
                                                board_->child(call.sequence, color, members, name),
                                                shared_tape(), options());
  }

 private:
  std::shared_ptr<Board> board_;
};

}  // namespace

std::vector<std::shared_ptr<Communicator>> make_thread_communicators(
    const std::vector<std::shared_ptr<Tape>>& tapes, const CommOptions& options) {
  const int num_ranks = static_cast<int>(tapes.size());
  std::vector<int> world_ranks(tapes.size());
  std::iota(world_ranks.begin(), world_ranks.end(), 0);
  auto family = std::make_shared<detail::Family>(num_ranks);
  auto board = std::make_shared<Board>("world", world_ranks, family, options.timeout);
  family->add(board);
  std::vector<std::shared_ptr<Communicator>> world;
  for (int rank = 0; rank < num_ranks; ++rank) {
    world.push_back(std::make_shared<ThreadCommunicator>(Communicator::Identity{rank, num_ranks, "world"},
                                                         board, tapes[static_cast<std::size_t>(rank)],
                                                         options));
  }
  return world;
}

}  // namespace tessera::dist

// One rank of a world in which there is nobody else. Calls return at once; the base class has checked them
// and written them to the tape.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "dist/communicator.h"

namespace tessera::dist {
namespace {

class Done final : public detail::Operation {
 public:
  bool test() override { return true; }
  bool wait_until(Time /*until*/) override { return true; }
  void abandon() noexcept override {}
};

class FakeCommunicator final : public Communicator {
 public:
  FakeCommunicator(const Identity& identity, std::shared_ptr<Tape> tape, const CommOptions& options)
      : Communicator(identity, std::move(tape), options) {}

  [[nodiscard]] const char* backend() const noexcept override { return "fake"; }
  [[nodiscard]] bool moves_data() const noexcept override { return false; }
  void abort(const std::string& /*cause*/) noexcept override {}

  [[nodiscard]] std::shared_ptr<Communicator> group_of(const std::vector<int>& members,
                                                       const std::string& group, Where where) override {
    return std::make_shared<FakeCommunicator>(
        Identity{place_among(members, group, where), static_cast<int>(members.size()), group}, shared_tape(),
        options());
  }

 protected:
  // As if every rank had given what this one gives. Sums are those of one rank: there is no other summand.
  [[nodiscard]] std::unique_ptr<detail::Operation> start(const detail::Call& call) override {
    if (call.op == Collective::kSplit) {
      throw CommError("split: ranks of a fake world do not answer; group_of() says who the members are",
                      call.where);
    }
    const bool has_data = call.in.data != nullptr && call.out.data != nullptr;
    if (has_data && call.op == Collective::kAllGather) {
      for (int r = 0; r < size(); ++r) copy(call, 0, r * call.in.size_bytes(), call.in.size_bytes());
    } else if (has_data && call.op == Collective::kReduceScatter) {
      copy(call, rank() * call.out.size_bytes(), 0, call.out.size_bytes());
    } else if (has_data && call.op == Collective::kAllToAll) {
      const std::int64_t part = call.in.size_bytes() / size();
      for (int r = 0; r < size(); ++r) copy(call, rank() * part, r * part, part);
    }
    return std::make_unique<Done>();
  }

  [[nodiscard]] std::shared_ptr<Communicator> make_group(int /*color*/, const std::vector<int>& /*members*/,
                                                         int /*new_rank*/, const detail::Call& /*call*/,
                                                         const std::string& /*name*/) override {
    return nullptr;  // split() has thrown
  }

 private:
  static void copy(const detail::Call& call, std::int64_t from, std::int64_t to, std::int64_t bytes) {
    if (bytes > 0)
      std::memmove(static_cast<char*>(call.out.data) + to, static_cast<const char*>(call.in.data) + from,
                   static_cast<std::size_t>(bytes));
  }
};

}  // namespace

std::shared_ptr<Communicator> make_fake_communicator(int size, int rank, std::shared_ptr<Tape> tape) {
  if (size < 1 || rank < 0 || rank >= size) {
    throw IndexError(fmt::format("fake communicator: there is no rank {} of {}", rank, size));
  }
  return std::make_shared<FakeCommunicator>(Communicator::Identity{rank, size, "world"}, std::move(tape),
                                            CommOptions{});
}

}  // namespace tessera::dist

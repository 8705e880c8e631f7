// One rank: the base class copies input to output and writes the tape; nothing is left to do here.

#include <memory>
#include <utility>

#include "dist/communicator.h"

namespace tessera::dist {
namespace {

class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator(const std::string& name, std::shared_ptr<Tape> tape, const CommOptions& options)
      : Communicator({0, 1, name}, std::move(tape), options) {}

  [[nodiscard]] const char* backend() const noexcept override { return "self"; }
  void abort(const std::string& /*cause*/) noexcept override {}

 protected:
  [[nodiscard]] std::unique_ptr<detail::Operation> start(const detail::Call& /*call*/) override {
    return nullptr;
  }
  [[nodiscard]] std::shared_ptr<Communicator> make_group(int color, const std::vector<int>& /*members*/,
                                                         int /*new_rank*/, const detail::Call& /*call*/,
                                                         const std::string& name) override {
    return color < 0 ? nullptr : std::make_shared<SelfCommunicator>(name, shared_tape(), options());
  }
};

}  // namespace

std::shared_ptr<Communicator> make_self_communicator(std::shared_ptr<Tape> tape, const CommOptions& options,
                                                     const std::string& name) {
  return std::make_shared<SelfCommunicator>(name, std::move(tape), options);
}

}  // namespace tessera::dist

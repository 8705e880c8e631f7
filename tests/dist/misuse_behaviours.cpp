// Calls that are wrong on their own: refused before any traffic, with the numbers and the caller's place, and
// the group goes on as if they had not been made.

#include <functional>

#include "tests/dist/behaviours.h"

namespace tessera::dist::testing {
namespace {

template <class E>
void require_throw(const char* what, const std::vector<std::string>& parts,
                   const std::function<void()>& call) {
  try {
    call();
  } catch (const E& error) {
    const std::string message = error.what();
    for (const std::string& part : parts) {
      require(message.find(part) != std::string::npos,
              fmt::format("{}: the message lacks '{}': {}", what, part, message));
    }
    return;
  }
  require(false, fmt::format("{}: nothing was thrown", what));
}

void wrong_calls_are_refused_before_traffic(Job& job) {
  Communicator& world = job.world();
  const int R = job.size(), other = (job.rank() + 1) % R;
  std::vector<float> x(static_cast<std::size_t>(4 * R)), y(static_cast<std::size_t>(2 * R)), one(1), two(2);
  std::vector<double> wide(static_cast<std::size_t>(R));
  std::vector<std::uint8_t> bytes(4);
  const std::string here = fmt::format("(rank {} of {} in group world", job.rank(), R);

  require_throw<DTypeError>("a sum of bytes",
                            {"all_reduce", "sum of u8", "i32 or f32", here, "misuse_behaviours.cpp:"},
                            [&] { world.all_reduce(buffer_of(bytes)); });
  require_throw<ShapeError>("reduce_scatter",
                            {"reduce_scatter", "R times", fmt::format("input has {} elements", 4 * R)},
                            [&] { world.reduce_scatter(buffer_of(x), buffer_of(two)); });
  require_throw<ShapeError>("all_gather", {"all_gather", "R times", "output " + std::to_string(4 * R)},
                            [&] { world.all_gather(buffer_of(one), buffer_of(x)); });
  require_throw<DTypeError>("all_gather of two types", {"input is f32, output is f64"},
                            [&] { world.all_gather(buffer_of(one), buffer_of(wide)); });
  require_throw<ShapeError>("all_to_all", {"all_to_all", "as many elements out as in"},
                            [&] { world.all_to_all(buffer_of(x), buffer_of(y)); });
  require_throw<ShapeError>("all_to_all in place", {"overlap"},
                            [&] { world.all_to_all(buffer_of(x), buffer_of(x)); });
  require_throw<DeviceError>("no data", {"3 elements and no data", "meta"}, [&] {
    world.all_reduce({nullptr, 3, kF32});
  });
  require_throw<ShapeError>("a negative count", {"-1 elements"}, [&] {
    world.all_reduce({x.data(), -1, kF32});
  });
  require_throw<IndexError>("an unknown root", {"the root is rank " + std::to_string(R), here},
                            [&] { world.broadcast(buffer_of(x), R); });
  require_throw<IndexError>("to oneself", {"can't send to itself"},
                            [&] { world.send(buffer_of(x), job.rank()); });
  require_throw<IndexError>("from oneself", {"can't receive from itself"},
                            [&] { world.recv(buffer_of(x), job.rank()); });
  require_throw<IndexError>("to nobody", {"the receiver is rank -1"}, [&] { world.send(buffer_of(x), -1); });
  if (R > 1) {
    require_throw<ShapeError>("all_to_all in odd parts", {"can't be cut into R = "},
                              [&] { world.all_to_all(buffer_of(one), buffer_of(one)); });
    require_throw<IndexError>("a tag too large", {"tag 32768"},
                              [&] { world.send(buffer_of(x), other, 32768); });
    require_throw<IndexError>("a negative tag", {"tag -1"}, [&] { world.recv(buffer_of(x), other, -1); });
    // The same buffer as input and output, where one must be R times as long: it would be overrun.
    require_throw<ShapeError>("all_gather onto itself", {"R times"},
                              [&] { world.all_gather(buffer_of(x), buffer_of(x)); });
    require_throw<ShapeError>("reduce_scatter onto itself", {"R times"},
                              [&] { world.reduce_scatter(buffer_of(x), buffer_of(x)); });
    // A slice of the own output, but another rank's.
    float* const wrong = x.data() + 4 * other;
    require_throw<ShapeError>("all_gather from another's slice", {"overlap", "own slice"}, [&] {
      world.all_gather(ConstBuffer{wrong, 4, kF32}, buffer_of(x));
    });
    require_throw<ShapeError>("reduce_scatter to another's slice", {"overlap", "own slice"}, [&] {
      world.reduce_scatter(buffer_of(x), {wrong, 4, kF32});
    });
  }

  std::vector<std::int64_t> sum{1};
  world.all_reduce(buffer_of(sum));
  require(sum[0] == R, "the group goes on");
}

}  // namespace

std::vector<Behaviour> misuse_behaviours() {
  return {{"wrong_calls_are_refused_before_traffic", wrong_calls_are_refused_before_traffic}};
}

}  // namespace tessera::dist::testing

// Ranks that were started with different settings do not train together.

#include "dist/same_settings.h"

#include <gtest/gtest.h>

#include <string>

#include "dist/engine.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "nn/gpt2.h"
#include "tensor/context.h"
#include "tests/dist/config_reading.h"

namespace tessera::dist {
namespace {

// What each of `settings`' ranks is told; "" if it may go on.
std::vector<std::string> compare(const std::vector<Settings>& settings) {
  std::vector<std::string> messages(settings.size());
  run_thread_ranks(static_cast<int>(settings.size()), [&](Job& job) {
    const auto rank = static_cast<std::size_t>(job.rank());
    try {
      require_same_settings(settings[rank], job.world());
    } catch (const ConfigError& error) {
      messages[rank] = error.what();
    }
  });
  return messages;
}

TEST(SameSettings, PassInSilence) {
  const Settings same{{"lr", "0.1"}, {"out", "a folder\twith\nwhite space"}};
  EXPECT_EQ(compare({same, same, same}), std::vector<std::string>(3));
  EXPECT_EQ(compare({{{"alone", "1"}}}), std::vector<std::string>(1));
}

TEST(SameSettings, ThatDifferAreNamedOnEveryRankWithTheValuesByRank) {
  const Settings a{{"lr", "0.1"}, {"seed", "0"}, {"same", "x"}},
      b{{"lr", "0.2"}, {"seed", "0"}, {"same", "x"}};
  const std::vector<std::string> messages = compare({a, b, a, {{"lr", "0.2"}, {"same", "x"}}});
  for (const std::string& message : messages) {
    EXPECT_NE(message.find("lr is 0.1 on ranks 0, 2, 0.2 on ranks 1, 3"), std::string::npos) << message;
    EXPECT_NE(message.find("seed is 0 on ranks 0, 1, 2, not there on rank 3"), std::string::npos) << message;
    EXPECT_EQ(message.find("same is"), std::string::npos) << message;
  }
}

// A name that begins where another's value ends is not taken for it.
TEST(SameSettings, AreNotConfusedByWhereTextsEnd) {
  EXPECT_NE(compare({{{"ab", "c"}}, {{"a", "bc"}}})[0], "");
}

TEST(SameSettings, AreAskedOfAnEnginesRanks) {
  const std::string message = error_of([] {
    run_thread_ranks(2, [](Job& job) {
      nn::Gpt2 model = [] {
        const DeviceScope scope(meta);
        return nn::Gpt2({.vocab = 11, .context = 4, .layers = 1, .heads = 1, .width = 4});
      }();
      Config config;
      config.optimizer.epsilon = job.rank() == 0 ? 1e-8 : 1e-6;
      const Mesh mesh(resolve_mesh(config, job.size()), job.shared_world());
      const Engine engine(model, config, mesh);
    });
  });
  expect_parts(message, {"optimizer.params.eps is 1e-08 on rank 0, 1e-06 on rank 1"});
  EXPECT_EQ(message.find("learning rate"), std::string::npos) << message;
}

}  // namespace
}  // namespace tessera::dist

// Every behaviour on one rank and on threads. rank_program.cpp runs the same table under mpiexec.

#include <gtest/gtest.h>

#include <memory>

#include "tests/dist/behaviours.h"

namespace tessera::dist::testing {
namespace {

struct Row {
  Behaviour behaviour;
  int num_threads;  // 0: the self communicator
};

std::vector<Row> rows() {
  std::vector<Row> result;
  for (const Behaviour& behaviour : all_behaviours()) {
    for (const int num_threads : {0, 1, 2, 3, 4, 8}) result.push_back({behaviour, num_threads});
  }
  return result;
}

std::string row_name(const ::testing::TestParamInfo<Row>& info) {
  const int n = info.param.num_threads;
  return fmt::format("{}_{}", info.param.behaviour.name, n == 0 ? "self" : fmt::format("threads{}", n));
}

class CommunicatorBehaves : public ::testing::TestWithParam<Row> {};

TEST_P(CommunicatorBehaves, AsItsContractSays) {
  const auto [behaviour, num_threads] = GetParam();
  JobOptions options;
  options.communication.timeout = std::chrono::seconds(60);
  try {
    if (num_threads == 0) {
      Job job(options, make_self_communicator(std::make_shared<Tape>()), 1);
      EXPECT_STREQ(job.backend(), "self");
      behaviour.run(job);
    } else {
      run_thread_ranks(
          num_threads,
          [&](Job& job) {
            require(job.backend() == std::string("threads") && job.size() == num_threads, "the backend");
            behaviour.run(job);
          },
          options);
    }
  } catch (const std::exception& error) {
    FAIL() << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(AllBackends, CommunicatorBehaves, ::testing::ValuesIn(rows()), row_name);

}  // namespace
}  // namespace tessera::dist::testing

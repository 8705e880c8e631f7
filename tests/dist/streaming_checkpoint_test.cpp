// Checkpoints of models that no rank holds whole: the same files, one tensor in memory at a time, and a
// writer that fails keeps nobody waiting.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <functional>
#include <map>

#include "autograd/grad_mode.h"
#include "dist/checkpoint.h"
#include "dist/collectives.h"
#include "dist/job.h"
#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/data/temporary_folder.h"
#include "tests/expect_error.h"

namespace tessera::dist {
namespace {

namespace fs = std::filesystem;
using data::TemporaryFolder;
using data::TensorInfo;

/// Forty tensors of 5 to 44 rows, in three dtypes.
std::vector<TensorInfo> many_infos(const std::string& suffix) {
  const DType dtypes[] = {kF32, kBF16, kF64};
  std::vector<TensorInfo> infos;
  for (int i = 0; i < 40; ++i)
    infos.push_back({"h." + std::to_string(i) + suffix, dtypes[i % 3], {5 + i, 16}});
  return infos;
}

std::int64_t largest(const std::vector<TensorInfo>& infos) {
  std::int64_t bytes = 0;
  for (const TensorInfo& info : infos) bytes = std::max(bytes, info.size_bytes());
  return bytes;
}

Tensor values_of(const TensorInfo& info) {
  return normal(info.shape, 0, 1, info.name, {.dtype = info.dtype});
}

NamedTensors all_of(const std::vector<TensorInfo>& infos) {
  NamedTensors tensors;
  for (const TensorInfo& info : infos) tensors.emplace_back(info.name, values_of(info));
  return tensors;
}

/// Gives tensors as they are asked for; counts the calls.
TensorSource source(std::vector<TensorInfo> infos, std::function<Tensor(const TensorInfo&)> get, int& calls) {
  TensorSource source;
  source.tensors = infos;
  source.get = [infos = std::move(infos), get = std::move(get), &calls](const std::string& name) {
    ++calls;
    return get(*std::ranges::find(infos, name, &TensorInfo::name));
  };
  return source;
}

CheckpointSources sources_from(const std::function<Tensor(const TensorInfo&)>& get, int& calls) {
  return {.step = 12,
          .model = source(many_infos(".weight"), get, calls),
          .optimizer = source(many_infos(".weight.m"), get, calls),
          .metadata = {{"model", "layers=40"}}};
}

/// On each rank its rows of every tensor; whole ones are gathered when they are asked for.
std::function<Tensor(const TensorInfo&)> gathered_from_rows(Communicator& world) {
  std::map<std::string, Tensor> rows;
  for (const char* suffix : {".weight", ".weight.m"}) {
    for (const auto& [name, tensor] : all_of(many_infos(suffix))) {
      const std::int64_t begin = shard_begin(tensor.dim(0), world.size(), world.rank());
      const std::int64_t size = shard_size(tensor.dim(0), world.size(), world.rank());
      rows[name] = tensor.slice(0, begin, begin + size).clone();
    }
  }
  return [rows = std::move(rows), &world](const TensorInfo& info) {
    const NoGrad no_grad;
    return all_gather(rows.at(info.name), 0, world, info.shape[0]);
  };
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

std::int64_t in_use() { return RankContext::current().pool(cpu)->report().total.current; }
std::int64_t peak_since_reset() { return RankContext::current().pool(cpu)->report().total.peak; }

TEST(StreamingCheckpoint, WritesTheSameFilesFromAnyNumberOfRanks) {
  const TemporaryFolder folder;
  save_checkpoint(folder / "whole", {.step = 12,
                                     .model = all_of(many_infos(".weight")),
                                     .optimizer = all_of(many_infos(".weight.m")),
                                     .metadata = {{"model", "layers=40"}}});
  for (const int ranks : {1, 2, 3, 8}) {
    const fs::path run = folder / ("ranks" + std::to_string(ranks));
    run_thread_ranks(ranks, [&](Job& job) {
      int calls = 0;
      save_checkpoint(run, sources_from(gathered_from_rows(job.world()), calls), job.world());
      EXPECT_EQ(calls, 80) << "on every rank";
      EXPECT_TRUE(has_checkpoint(run)) << "when any rank goes on";
    });
    EXPECT_EQ(names_in(run), (std::vector<std::string>{"latest", "step-00000012"}));
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "checkpoint.json"}) {
      EXPECT_TRUE(data::read_file(run / "step-00000012" / file) ==
                  data::read_file(folder / "whole" / "step-00000012" / file))
          << file << " from " << ranks << " ranks";
    }
  }
}

// 80 tensors pass through the memory of one.
TEST(StreamingCheckpoint, HoldsOneTensorAtATimeWhenSavingAndLoading) {
  const TemporaryFolder folder;
  RankContext context;
  const RankContext::Scope scope(context);
  MemoryPool& pool = *context.pool(cpu);
  const std::int64_t limit = largest(many_infos(".weight"));
  int calls = 0;
  const auto world = make_self_communicator(std::make_shared<Tape>(64));
  pool.reset_peak();
  save_checkpoint(folder.path(), sources_from(values_of, calls), *world);
  EXPECT_EQ(peak_since_reset(), limit);

  const CheckpointReader reader(folder.path());
  EXPECT_EQ(in_use(), 0);
  std::int64_t total = 0;
  for (const CheckpointReader::Tensors* part : {&reader.model(), &reader.optimizer()}) {
    for (const auto& entry : part->entries()) {
      pool.reset_peak();
      const Tensor tensor = part->read(entry.name);
      EXPECT_EQ(tensor.shape(), entry.shape);
      EXPECT_EQ(tensor.dtype(), entry.dtype);
      EXPECT_EQ(peak_since_reset(), tensor.size_bytes()) << entry.name;
      total += tensor.size_bytes();
    }
  }
  EXPECT_GT(total, 20 * limit) << "or one at a time would be no saving";
  EXPECT_EQ(in_use(), 0);
}

TEST(StreamingCheckpoint, ReaderKnowsWhatIsThereBeforeItReads) {
  const TemporaryFolder folder;
  int calls = 0;
  const auto world = make_self_communicator(std::make_shared<Tape>(64));
  save_checkpoint(folder.path(), sources_from(values_of, calls), *world);
  const CheckpointReader reader(folder.path());
  EXPECT_EQ(reader.step(), 12);
  EXPECT_EQ(reader.metadata(), (data::Metadata{{"model", "layers=40"}}));
  EXPECT_TRUE(reader.model().contains("h.3.weight"));
  EXPECT_FALSE(reader.model().contains("h.3.weight.m"));
  EXPECT_TRUE(reader.optimizer().contains("h.3.weight.m"));
  expect_error<DataError>([&] { static_cast<void>(reader.model().read("h.40.weight")); }, {"h.40.weight"});
  const CheckpointReader without(folder.path(), /*with_optimizer=*/false);
  expect_error<DataError>([&] { static_cast<void>(without.optimizer()); }, {"without the optimizer"});
}

TEST(StreamingCheckpoint, ReaderFindsDamageInTheTensorThatItReads) {
  const TemporaryFolder folder;
  int calls = 0;
  const auto world = make_self_communicator(std::make_shared<Tape>(64));
  save_checkpoint(folder.path(), sources_from(values_of, calls), *world);
  const fs::path file = folder / "step-00000012" / "model.safetensors";
  std::string bytes = data::read_file(file);
  bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 4);  // the last one's
  data::write_file(file, bytes);
  const CheckpointReader reader(folder.path());
  EXPECT_EQ(reader.model().read("h.38.weight").dim(0), 43);
  expect_error<DataError>([&] { static_cast<void>(reader.model().read("h.39.weight")); },
                          {"model.safetensors", "h.39.weight", "damaged"});
}

// --- Failures ----------------------------------------------------------------------------------------------

// What each rank of a save met; every rank goes on afterwards and calls a barrier.
struct Outcome {
  bool file_error = false, data_error = false, peer_failure = false, saved = false;
  int calls = 0;
  std::string message;
};

std::vector<Outcome> save_on_ranks(int ranks, const fs::path& run,
                                   const std::function<Tensor(const TensorInfo&, Tensor whole)>& change) {
  std::vector<Outcome> outcomes(static_cast<std::size_t>(ranks));
  run_thread_ranks(ranks, [&](Job& job) {
    Outcome& outcome = outcomes[static_cast<std::size_t>(job.rank())];
    const auto get = gathered_from_rows(job.world());
    try {
      save_checkpoint(
          run, sources_from([&](const TensorInfo& info) { return change(info, get(info)); }, outcome.calls),
          job.world());
      outcome.saved = true;
    } catch (const PeerFailure& error) {
      outcome.peer_failure = true;
      outcome.message = error.what();
    } catch (const FileError& error) {
      outcome.file_error = true;
      outcome.message = error.what();
    } catch (const DataError& error) {
      outcome.data_error = true;
      outcome.message = error.what();
    }
    job.world().barrier();
  });
  return outcomes;
}

Tensor unchanged(const TensorInfo&, Tensor whole) { return whole; }

// A limit on the size of files stands for a disk that is full in the middle of the model's file.
TEST(StreamingCheckpoint, AFullDiskEndsTheSaveOnAllRanksAndTheJobGoesOn) {
  const TemporaryFolder folder;
  for (const Outcome& outcome : save_on_ranks(3, folder.path(), unchanged)) ASSERT_TRUE(outcome.saved);
  const std::string before = data::read_file(folder / "latest");
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    rlimit limit{};
    getrlimit(RLIMIT_FSIZE, &limit);
    const rlimit small{20000, limit.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const std::vector<Outcome> outcomes = save_on_ranks(3, folder.path(), unchanged);
    if (!outcomes[0].file_error || outcomes[0].message.find("model.safetensors") == std::string::npos)
      _exit(1);
    if (!outcomes[1].peer_failure || !outcomes[2].peer_failure) _exit(2);
    for (const Outcome& outcome : outcomes) {
      if (outcome.calls != 80) _exit(3);
    }
    setrlimit(RLIMIT_FSIZE, &limit);  // somebody made room
    for (const Outcome& outcome : save_on_ranks(3, folder / "elsewhere", unchanged)) {
      if (!outcome.saved) _exit(4);
    }
    _exit(42);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), 42);
  EXPECT_EQ(data::read_file(folder / "latest"), before);
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"elsewhere", "latest", "step-00000012"}));
  EXPECT_EQ(load_checkpoint(folder.path()).model.size(), 40u);
}

TEST(StreamingCheckpoint, AFolderThatCannotBeMadeIsFoundBeforeTheFirstTensor) {
  const TemporaryFolder folder;
  data::write_file(folder / "file", "");
  const std::vector<Outcome> outcomes = save_on_ranks(3, folder / "file" / "run", unchanged);
  EXPECT_TRUE(outcomes[0].data_error) << outcomes[0].message;
  EXPECT_TRUE(outcomes[1].peer_failure && outcomes[2].peer_failure);
  for (const Outcome& outcome : outcomes) EXPECT_EQ(outcome.calls, 0);
}

TEST(StreamingCheckpoint, ATensorThatIsNotTheOneAnnouncedIsRefused) {
  struct Case {
    const char* name;
    std::function<Tensor(const TensorInfo&, Tensor whole)> change;
    const char* part_of_message;
  };
  const auto of_h7 = [](const TensorInfo& info) { return info.name == "h.7.weight"; };
  for (const Case& c :
       {Case{"part",
             [&](const TensorInfo&info, Tensor whole) { return of_h7(info) ? whole.slice(0, 0, 3) : whole; },
             "[3, 16]"},
        Case{"dtype",
             [&](const TensorInfo&info, Tensor whole) { return of_h7(info) ? whole.to(kF64) : whole; },
             "f64"},
        Case{"nothing", [&](const TensorInfo&info, Tensor whole) { return of_h7(info) ? Tensor() : whole; },
             "undefined"}}) {
    const TemporaryFolder folder;
    std::vector<Outcome> outcomes;
    if (std::string(c.name) == "nothing") {
      expect_error<DeviceError>(
          [&] {
            int calls = 0;
            const auto world = make_self_communicator(std::make_shared<Tape>(64));
            save_checkpoint(
                folder.path(),
                sources_from([&](const TensorInfo& info) { return c.change(info, values_of(info)); }, calls),
                *world);
          },
          {"h.7.weight", c.part_of_message});
    } else {
      outcomes = save_on_ranks(2, folder.path(), c.change);
      EXPECT_TRUE(outcomes[0].data_error) << c.name;
      EXPECT_NE(outcomes[0].message.find("h.7.weight"), std::string::npos) << outcomes[0].message;
      EXPECT_NE(outcomes[0].message.find(c.part_of_message), std::string::npos) << outcomes[0].message;
      EXPECT_TRUE(outcomes[1].peer_failure);
    }
    EXPECT_TRUE(names_in(folder.path()).empty()) << c.name << ": nothing half written stays";
  }
}

TEST(StreamingCheckpoint, WhatGetThrowsIsThrownAndNothingStays) {
  const TemporaryFolder folder;
  for (const int thrower : {0, 2}) {
    EXPECT_THROW(run_thread_ranks(3,
                                  [&](Job& job) {
                                    const auto get = gathered_from_rows(job.world());
                                    int calls = 0;
                                    save_checkpoint(folder.path(),
                                                    sources_from(
                                                        [&](const TensorInfo& info) {
                                                          if (calls == 50 && job.rank() == thrower)
                                                            throw IndexError("no such tensor here");
                                                          return get(info);
                                                        },
                                                        calls),
                                                    job.world());
                                  }),
                 IndexError);
    EXPECT_TRUE(names_in(folder.path()).empty());
  }
}

}  // namespace
}  // namespace tessera::dist

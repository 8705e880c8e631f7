// A checkpoint is whole or is not there: round trips, damage that is found, kills and full disks that lose
// nothing.

#include "dist/checkpoint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "kernels/error.h"
#include "tensor/create.h"
#include "tests/data/temporary_folder.h"

namespace tessera::dist {
namespace {

namespace fs = std::filesystem;
using data::TemporaryFolder;

/// Every element of every tensor is the step, so that parts of two checkpoints would be seen.
Checkpoint checkpoint_of(std::int64_t step, std::int64_t size = 100) {
  const auto value = static_cast<double>(step);
  return {
      .step = step,
      .model = {{"wte.weight", full({size, 3}, value)},
                {"h.0.bias", full({5}, value, {.dtype = kBF16})},
                {"scale", full({}, value, {.dtype = kF64})}},
      .optimizer = {{"wte.weight.m", full({size, 3}, value)}, {"step", full({1}, value, {.dtype = kI64})}},
      .metadata = {{"model", "layers=1"}, {"seed", std::to_string(step)}}};
}

void expect_whole(const Checkpoint& loaded, std::int64_t step, std::int64_t size = 100) {
  const Checkpoint expected = checkpoint_of(step, size);
  EXPECT_EQ(loaded.step, step);
  EXPECT_EQ(loaded.metadata, expected.metadata);
  const auto expect_equal = [](const NamedTensors& actual, const NamedTensors& wanted) {
    ASSERT_EQ(actual.size(), wanted.size());
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      EXPECT_EQ(actual[i].first, wanted[i].first);
      EXPECT_EQ(actual[i].second.dtype(), wanted[i].second.dtype());
      EXPECT_EQ(actual[i].second.shape(), wanted[i].second.shape());
      EXPECT_TRUE(actual[i].second.to_vector<double>() == wanted[i].second.to_vector<double>())
          << wanted[i].first;
    }
  };
  expect_equal(loaded.model, expected.model);
  expect_equal(loaded.optimizer, expected.optimizer);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

template <class E>
std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the kind was thrown";
  return {};
}

TEST(Checkpoint, LoadsWhatWasSaved) {
  const TemporaryFolder folder;
  EXPECT_FALSE(has_checkpoint(folder.path()));
  save_checkpoint(folder / "run", checkpoint_of(7));
  EXPECT_TRUE(has_checkpoint(folder / "run"));
  expect_whole(load_checkpoint(folder / "run"), 7);
  expect_whole(load_checkpoint(folder / "run" / "step-00000007"), 7);  // the folder itself
  EXPECT_EQ(names_in(folder / "run"), (std::vector<std::string>{"latest", "step-00000007"}));
  EXPECT_EQ(names_in(folder / "run" / "step-00000007"),
            (std::vector<std::string>{"checkpoint.json", "model.safetensors", "optimizer.safetensors"}));
}

TEST(Checkpoint, HasAHashThatCopiesShare) {
  const TemporaryFolder folder;
  save_checkpoint(folder / "a", checkpoint_of(3));
  save_checkpoint(folder / "b", checkpoint_of(3));
  Checkpoint other = checkpoint_of(3);
  other.model.back().second = full({}, 4.0, {.dtype = kF64});  // one number of one tensor
  save_checkpoint(folder / "c", other);
  const std::uint64_t hash = CheckpointReader(folder / "a").index_hash();
  EXPECT_EQ(CheckpointReader(folder / "b").index_hash(), hash);
  EXPECT_NE(CheckpointReader(folder / "c").index_hash(), hash);
}

TEST(Checkpoint, LeavesTheOptimizerOutWhereOnlyTheModelIsWanted) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(7));
  fs::remove(folder / "step-00000007" / "optimizer.safetensors");
  const Checkpoint loaded = load_checkpoint(folder.path(), /*with_optimizer=*/false);
  EXPECT_EQ(loaded.model.size(), 3u);
  EXPECT_TRUE(loaded.optimizer.empty());
  EXPECT_THROW(static_cast<void>(load_checkpoint(folder.path())), DataError);
}

TEST(Checkpoint, KeepsAsManyAsAskedFor) {
  const TemporaryFolder folder;
  for (std::int64_t step = 1; step <= 5; ++step) save_checkpoint(folder.path(), checkpoint_of(step), 3);
  EXPECT_EQ(names_in(folder.path()),
            (std::vector<std::string>{"latest", "step-00000003", "step-00000004", "step-00000005"}));
  save_checkpoint(folder.path(), checkpoint_of(6), 1);
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000006"}));
  save_checkpoint(folder.path(), checkpoint_of(7), 0);  // the one just saved always stays
  expect_whole(load_checkpoint(folder.path()), 7);
}

// Somebody goes back to step 100 of a run that had come to 300, and trains on from there in the same folder.
TEST(Checkpoint, NeverRemovesTheOneJustSavedForOnesWithHigherSteps) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(200), 2);
  save_checkpoint(folder.path(), checkpoint_of(300), 2);
  save_checkpoint(folder.path(), checkpoint_of(110), 2);
  expect_whole(load_checkpoint(folder.path()), 110);
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000110", "step-00000300"}));
  save_checkpoint(folder.path(), checkpoint_of(120), 2);
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000110", "step-00000120"}));
}

TEST(Checkpoint, SavesTheSameStepAgain) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(3));
  for (const std::int64_t size : {50, 20, 10}) {
    save_checkpoint(folder.path(), checkpoint_of(3, size));
    expect_whole(load_checkpoint(folder.path()), 3, size);
    EXPECT_EQ(names_in(folder.path()).size(), 2u) << "the one that was replaced is gone";
  }
}

TEST(Checkpoint, RemovesWhatAKilledSaveLeft) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "step-00000001.tmp");
  data::write_file(folder / "step-00000001.tmp" / "model.safetensors", "half of a");
  save_checkpoint(folder.path(), checkpoint_of(9));
  EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000009"}));
}

// --- Damage ------------------------------------------------------------------------------------------------

TEST(Checkpoint, FindsEveryChangedByteOfATensor) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(4));
  const fs::path file = folder / "step-00000004" / "model.safetensors";
  const std::string good = data::read_file(file);
  // The last tensor bytes, some in the middle, each of the low and high bits.
  for (const std::size_t back : {1, 8, 9, 17, 500, 1201}) {
    for (const char bit : {'\x01', '\x80'}) {
      std::string bad = good;
      bad[bad.size() - back] = static_cast<char>(bad[bad.size() - back] ^ bit);
      data::write_file(file, bad);
      const std::string message =
          message_of<DataError>([&] { static_cast<void>(load_checkpoint(folder.path())); });
      EXPECT_NE(message.find("model.safetensors: tensor '"), std::string::npos) << message;
      EXPECT_NE(message.find("damaged"), std::string::npos) << message;
    }
  }
  data::write_file(file, good);
  expect_whole(load_checkpoint(folder.path()), 4);
}

TEST(Checkpoint, RefusesFilesThatAreCutShortOrMissing) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(4));
  for (const std::string name : {"model.safetensors", "optimizer.safetensors", "checkpoint.json"}) {
    const fs::path file = folder / "step-00000004" / name;
    const std::string good = data::read_file(file);
    for (const std::size_t size : {std::size_t{0}, std::size_t{5}, good.size() / 2, good.size() - 1}) {
      if (name == "checkpoint.json" && size == good.size() - 1 && good.back() == '\n') continue;
      data::write_file(file, good.substr(0, size));
      const std::string message =
          message_of<DataError>([&] { static_cast<void>(load_checkpoint(folder.path())); });
      EXPECT_NE(message.find(name), std::string::npos) << size << " bytes: " << message;
    }
    fs::remove(file);
    EXPECT_THROW(static_cast<void>(load_checkpoint(folder.path())), DataError) << name;
    data::write_file(file, good);
  }
  expect_whole(load_checkpoint(folder.path()), 4);
}

TEST(Checkpoint, RefusesPartsOfTwoCheckpoints) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(1));
  save_checkpoint(folder.path(), checkpoint_of(2));
  fs::copy_file(folder / "step-00000001" / "optimizer.safetensors",
                folder / "step-00000002" / "optimizer.safetensors", fs::copy_options::overwrite_existing);
  const std::string message =
      message_of<DataError>([&] { static_cast<void>(load_checkpoint(folder.path())); });
  EXPECT_NE(message.find("optimizer.safetensors"), std::string::npos) << message;
}

TEST(Checkpoint, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  const auto load = [&] { static_cast<void>(load_checkpoint(folder.path())); };
  EXPECT_NE(message_of<DataError>(load).find("there is no saved model"), std::string::npos);
  data::write_file(folder / "latest", "step-00000001\n");
  EXPECT_NE(message_of<DataError>(load).find("cannot be opened"), std::string::npos);
  for (const char* name : {"", "..", "../elsewhere", "/etc"}) {
    data::write_file(folder / "latest", name);
    EXPECT_NE(message_of<DataError>(load).find("does not name a folder"), std::string::npos) << name;
  }
  fs::remove(folder / "latest");
  save_checkpoint(folder.path(), checkpoint_of(1));
  std::string index = data::read_file(folder / "step-00000001" / "checkpoint.json");
  const std::string version = "\"version\": 1";
  ASSERT_NE(index.find(version), std::string::npos);
  index.replace(index.find(version), version.size(), "\"version\": 2");
  data::write_file(folder / "step-00000001" / "checkpoint.json", index);
  EXPECT_NE(message_of<DataError>(load).find("newer version"), std::string::npos);
}

// --- Places that cannot be written -------------------------------------------------------------------------

// As root permissions don't bind: a file where a folder is needed stops anybody.
TEST(Checkpoint, RefusesAFolderThatCannotBeMade) {
  const TemporaryFolder folder;
  data::write_file(folder / "file", "");
  const std::string message =
      message_of<DataError>([&] { save_checkpoint(folder / "file" / "run", checkpoint_of(1)); });
  EXPECT_NE(message.find("file"), std::string::npos) << message;
  if (geteuid() == 0) return;
  fs::create_directory(folder / "closed");
  fs::permissions(folder / "closed", fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_THROW(save_checkpoint(folder / "closed", checkpoint_of(1)), DataError);
  fs::permissions(folder / "closed", fs::perms::owner_all);
}

/// Runs `action` in a process of its own and returns its exit status.
int in_child(const std::function<int()>& action) {
  const pid_t child = fork();
  if (child == 0) _exit(action());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// A limit on the size of files stands for the disk that is full in the middle of a file: write() fails there.
TEST(Checkpoint, SurvivesAFullDisk) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(1));
  for (const std::int64_t size : {10000, 200}) {  // full in the model; only after it
    const int status = in_child([&] {
      signal(SIGXFSZ, SIG_IGN);
      const rlimit limit{size == 200 ? rlim_t{300} : rlim_t{50000}, RLIM_INFINITY};
      setrlimit(RLIMIT_FSIZE, &limit);
      try {
        save_checkpoint(folder.path(), checkpoint_of(2, size));
      } catch (const FileError& error) {
        return std::string(error.what()).find("step-00000002") != std::string::npos ? 42 : 43;
      }
      return 1;
    });
    EXPECT_EQ(status, 42) << "a FileError that names the file";
    expect_whole(load_checkpoint(folder.path()), 1);
    EXPECT_EQ(names_in(folder.path()), (std::vector<std::string>{"latest", "step-00000001"}));
  }
}

// --- Kills -------------------------------------------------------------------------------------------------

// A child saves one checkpoint after the other and is killed at some moment of it, forty times over. Whatever
// it had done, the folder holds a whole checkpoint, no older than the last one that the child saw complete.
void kill_savers(const fs::path& folder, std::int64_t step_by, int keep) {
  std::int64_t last_complete = 0;
  save_checkpoint(folder, checkpoint_of(1), keep);
  for (int round = 0; round < 40; ++round) {
    int report[2];
    ASSERT_EQ(pipe(report), 0);
    const pid_t child = fork();
    if (child == 0) {
      for (std::int64_t i = 1;; ++i) {
        save_checkpoint(folder, checkpoint_of(last_complete + 1 + step_by * i), keep);
        const std::int64_t done = last_complete + 1 + step_by * i;
        if (write(report[1], &done, sizeof(done)) != sizeof(done)) _exit(1);
      }
    }
    close(report[1]);
    std::this_thread::sleep_for(std::chrono::microseconds(500 + 1103 * round % 17000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        << "the child ended by itself: " << status;
    std::int64_t done = 0, seen = 0;
    while (read(report[0], &done, sizeof(done)) == sizeof(done)) seen = done;
    close(report[0]);

    const Checkpoint loaded = load_checkpoint(folder);  // throws if a part is missing or damaged
    expect_whole(loaded, loaded.step);
    EXPECT_GE(loaded.step, seen);
    last_complete = loaded.step - (step_by == 0 ? 1 : 0);
  }
  save_checkpoint(folder, checkpoint_of(1000000), 1);
  EXPECT_EQ(names_in(folder).size(), 2u) << "nothing is left of killed saves";
}

// Kills hardly ever fall between two renames, so their order is looked at: `latest` never names what is
// not there.
TEST(Checkpoint, NamesTheFolderBeforeLatestNamesIt) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), checkpoint_of(1), 1);
  const int events = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (events < 0) GTEST_SKIP() << "no inotify here";
  ASSERT_GE(inotify_add_watch(events, folder.path().c_str(), IN_MOVED_TO | IN_DELETE), 0);
  save_checkpoint(folder.path(), checkpoint_of(2), 1);
  std::vector<std::string> seen;
  alignas(inotify_event) char buffer[16384];
  for (ssize_t size; (size = read(events, buffer, sizeof(buffer))) > 0;) {
    for (ssize_t at = 0; at < size;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
      seen.push_back(std::string((event->mask & IN_DELETE) != 0 ? "gone: " : "") + event->name);
      at += static_cast<ssize_t>(sizeof(inotify_event)) + event->len;
    }
  }
  close(events);
  EXPECT_EQ(seen, (std::vector<std::string>{"step-00000002", "latest", "gone: step-00000001"}));
}

TEST(Checkpoint, SurvivesKillsInTheMiddleOfSaves) {
  const TemporaryFolder folder;
  kill_savers(folder.path(), 1, 2);
  const TemporaryFolder one;
  kill_savers(one.path(), 1, 1);
}

TEST(Checkpoint, SurvivesKillsInTheMiddleOfSavingTheSameStepAgain) {
  const TemporaryFolder folder;
  kill_savers(folder.path(), 0, 2);
}

}  // namespace
}  // namespace tessera::dist

// What a run writes: JSON lines, CSV, lines for a pipe, a bar for a terminal.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <regex>
#include <set>

#include "kernels/readable.h"
#include "tests/examples/workplace.h"

namespace tessera::programs {
namespace {

class TrainLog : public Workplace {};

std::set<std::string> keys(const nlohmann::json& object) {
  std::set<std::string> result;
  for (const auto& [key, value] : object.items()) result.insert(key);
  return result;
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> result;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) result.push_back(line);
  return result;
}

TEST_F(TrainLog, HasOneObjectAStepWithExactlyTheKeysThatStay) {
  const Outcome outcome =
      run(train("--out run --steps 5 --batch 4 --ranks 2 --dtype f64 --eval-every 2 --save-every 2 --log "
                "logs/run.jsonl"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  const auto steps = read_log("logs/run.jsonl");
  ASSERT_EQ(steps.size(), 5u);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const auto& step = steps[i];
    EXPECT_EQ(keys(step), (std::set<std::string>{"step", "loss", "grad_norm", "lr", "tokens_per_second",
                                                 "peak_bytes", "sent_bytes"}));
    EXPECT_EQ(step["step"], i + 1);
    EXPECT_EQ(step["sent_bytes"], steps[0]["sent_bytes"]) << "what is sent between steps belongs to none";
    EXPECT_GT(step["loss"], 0.0);
    EXPECT_GT(step["grad_norm"], 0.0);
    EXPECT_GT(step["tokens_per_second"], 0.0);
    EXPECT_EQ(keys(step["peak_bytes"]),
              (std::set<std::string>{"parameter", "gradient", "optimizer_state", "activation",
                                     "communication", "workspace", "host_activation", "total"}));
  }
  // By hand: 290·16 + 16·16 + 2·(12·16² + 13·16) + 2·16 parameters; Adam keeps two moments of each.
  const std::int64_t parameters = 290 * 16 + 16 * 16 + 2 * (12 * 16 * 16 + 13 * 16) + 2 * 16;
  EXPECT_GE(steps[4]["peak_bytes"]["parameter"], 8 * parameters);
  EXPECT_GE(steps[4]["peak_bytes"]["gradient"], 8 * parameters);
  EXPECT_GE(steps[4]["peak_bytes"]["optimizer_state"], 16 * parameters);
  // All-reduce of the gradients on a ring of 2: each rank sends as many elements as there are.
  EXPECT_EQ(steps[4]["sent_bytes"]["dp"], 8 * parameters);
  // A loss with full precision has more than 12 digits.
  const std::string first = lines(read_file(folder_ / "logs/run.jsonl")).at(0);
  EXPECT_TRUE(std::regex_search(first, std::regex("\"loss\":5\\.[0-9]{12,}"))) << first;
}

TEST_F(TrainLog, HasTheSameFiguresAsCsv) {
  ASSERT_EQ(run(train("--out run --steps 3 --batch 4 --log run.jsonl --csv run.csv --dtype f64")).status, 0);
  const auto steps = read_log("run.jsonl");
  const auto table = lines(read_file(folder_ / "run.csv"));
  ASSERT_EQ(table.size(), 4u);
  EXPECT_TRUE(table[0].starts_with("step,loss,grad_norm,lr,tokens_per_second,sent_bytes,peak_total_bytes,"));
  const auto num_columns = std::count(table[0].begin(), table[0].end(), ',');
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(std::count(table[i + 1].begin(), table[i + 1].end(), ','), num_columns);
    double step = 0, loss = 0, norm = 0, lr = 0;
    ASSERT_EQ(std::sscanf(table[i + 1].c_str(), "%lf,%lf,%lf,%lf,", &step, &loss, &norm, &lr), 4);
    EXPECT_EQ(step, i + 1.0);
    EXPECT_EQ(loss, steps[i]["loss"]);
    EXPECT_EQ(norm, steps[i]["grad_norm"]);
    EXPECT_EQ(lr, steps[i]["lr"]);
  }
}

TEST_F(TrainLog, GoesToAPipeAsPlainLines) {
  const Outcome outcome = run(train("--out run --steps 21 --batch 2 --eval-every 10"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  EXPECT_EQ(outcome.out.find('\r'), std::string::npos);
  EXPECT_EQ(outcome.err, "");
  const std::regex step_line(
      "step +[0-9]+/21  loss [0-9.]+  lr [0-9.e+-]+  [0-9,]+ tokens/s  [0-9:]+ left  [0-9.]+ [kM]?B");
  std::vector<std::string> shown, validated;
  for (const std::string& line : lines(outcome.out)) {
    if (std::regex_match(line, step_line)) shown.push_back(line);
    if (line.find("validation loss") != std::string::npos) validated.push_back(line);
  }
  EXPECT_EQ(shown.size(), 4u) << outcome.out;  // 1, 10, 20 and the last
  ASSERT_EQ(validated.size(), 3u) << outcome.out;
  EXPECT_TRUE(validated[0].starts_with("step 10: ")) << validated[0];
  EXPECT_TRUE(validated[2].starts_with("step 21: ")) << validated[2];
}

// The figures of --comm-summary, without the times: "dp all_gather 2 22,976".
std::vector<std::string> comm_summary(const std::string& out) {
  std::vector<std::string> rows;
  bool in_table = false;
  for (const std::string& line : lines(out)) {
    if (line.starts_with("saved in")) return rows;
    if (in_table && !line.starts_with("group")) {
      const auto all = words(line);
      const std::size_t figures = line.starts_with("all") ? 3 : 4;
      rows.push_back(
          fmt::format("{}", fmt::join(all.begin(), all.begin() + static_cast<long>(figures), " ")));
    }
    in_table = in_table || line.starts_with("sent by rank 0 of 2, a step (mean of 3, the first apart):");
  }
  return {};
}

// ZeRO-1 sends 2 * elements * (N - 1) / N of 4 bytes: half of them as gradients, half as parameters.
TEST_F(TrainLog, SumsUpWhatAStepSendsWhateverIsSentBetweenSteps) {
  const std::string settings = "--steps 4 --batch 4 --ranks 2 --zero 1 ";
  const Outcome plain = run(train("--out a --comm-summary --eval-tokens 16 " + settings));
  ASSERT_EQ(plain.status, 0) << plain.all();
  write_file(folder_ / "summary.json", R"({"comm_summary": true})");
  const Outcome busy =
      run(train("--out b --config summary.json --eval-every 1 --eval-tokens 0 --save-every 1 " + settings));
  ASSERT_EQ(busy.status, 0) << busy.all();
  const auto rows = comm_summary(plain.out);
  EXPECT_EQ(rows, comm_summary(busy.out)) << busy.out;

  std::smatch elements;
  ASSERT_TRUE(std::regex_search(plain.out, elements, std::regex("model .*: ([0-9,]+) parameters")))
      << plain.out;
  const std::string digits = std::regex_replace(elements.str(1), std::regex(","), "");
  const std::string bytes = with_commas(std::stoll(digits) * 4 / 2);
  int found = 0;
  for (const std::string& row : rows) {
    if (!row.starts_with("dp ")) continue;
    EXPECT_TRUE(row.ends_with(" " + bytes)) << row;
    ++found;
  }
  EXPECT_EQ(found, 2) << plain.out;
}

// What is held and updated is that of one rank, and says so: AdamW in f32 under ZeRO-1 on two ranks.
TEST_F(TrainLog, SaysWhatOneRankHoldsToTheByte) {
  const Outcome outcome = run(train("--out run --steps 1 --batch 2 --ranks 2 --zero 1 --eval-tokens 16"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  std::smatch elements;
  ASSERT_TRUE(std::regex_search(outcome.out, elements, std::regex("model .*: ([0-9,]+) parameters")));
  const std::int64_t psi = std::stoll(std::regex_replace(elements.str(1), std::regex(","), ""));
  const auto shows = [&outcome](const std::string& text) {
    EXPECT_NE(outcome.out.find(text), std::string::npos) << text << "\nis not in\n" << outcome.out;
  };
  shows(fmt::format("memory      rank 0 of 2 holds {} bytes (", with_commas(8 * psi + 4 * psi)));
  shows(fmt::format("parameters {} bytes (", with_commas(4 * psi)));
  shows(fmt::format("optimizer {} bytes (", with_commas(4 * psi)));
  shows(fmt::format("optimizer   rank 0 of 2 updates {} of {} elements: AdamW, ", with_commas(psi / 2),
                    with_commas(psi)));
}

TEST_F(TrainLog, GoesToATerminalAsOneLineThatFitsIt) {
  for (const unsigned short columns : {200, 80, 50, 20}) {
    SCOPED_TRACE(columns);
    const Outcome outcome =
        run(train("--out run" + std::to_string(columns) + " --steps 300 --batch 2 --eval-every 100"),
            {.terminal = true, .columns = columns});
    ASSERT_EQ(outcome.status, 0) << outcome.all();
    int bars = 0;
    // What stands between two carriage returns is drawn on one line; \r\n is a terminal's line end.
    for (const std::string& line : lines(outcome.out)) {
      std::istringstream parts(line);
      bool first = true;
      for (std::string part; std::getline(parts, part, '\r'); first = false) {
        if (first || part.find("/300") == std::string::npos) continue;  // lines that stay may wrap
        EXPECT_LT(part.size(), columns) << part;
        ++bars;
      }
    }
    EXPECT_GE(bars, 2) << outcome.out;
    const auto shows = [&](const char* figure) { return outcome.out.find(figure) != std::string::npos; };
    EXPECT_TRUE(shows("300/300")) << outcome.out;
    EXPECT_TRUE(shows("loss"));
    if (columns < 80) continue;
    for (const char* figure : {"[####", " tokens/s", " left", "B"}) EXPECT_TRUE(shows(figure)) << figure;
    EXPECT_TRUE(shows("step 100: validation loss")) << outcome.out;
  }
}

TEST_F(TrainLog, HasTheLossScaleOfF16Everywhere) {
  write_file(folder_ / "f16.json",
             R"({"fp16": {"enabled": true, "loss_scale": 1024}, "steps_per_print": 1})");
  const Outcome outcome =
      run(train("--config f16.json --out run --steps 2 --batch 2 --log run.jsonl --csv run.csv"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  EXPECT_EQ(read_log("run.jsonl").at(1)["loss_scale"], 1024.0);
  EXPECT_TRUE(lines(read_file(folder_ / "run.csv")).at(0).ends_with(",loss_scale"));
  EXPECT_TRUE(lines(read_file(folder_ / "run.csv")).at(2).ends_with(",1024"));
  EXPECT_TRUE(std::regex_search(outcome.out, std::regex("step 2/2  loss .*  lr .*  scale 1024  ")))
      << outcome.out;
}

TEST_F(TrainLog, ShowsAsMuchAsIsAskedFor) {
  const Outcome none = run(train("--out a --steps 3 --batch 2 --progress none"));
  EXPECT_EQ(none.status, 0);
  EXPECT_EQ(none.out.find("tokens/s"), std::string::npos) << none.out;
  EXPECT_NE(none.out.find("step 3: validation loss"), std::string::npos) << none.out;
  const Outcome bar = run(train("--out b --steps 3 --batch 2 --progress bar"));
  EXPECT_NE(bar.out.find("\r"), std::string::npos) << bar.out;
}

TEST_F(TrainLog, IsWrittenOnceUnderMpi) {
  if (!has_mpi()) GTEST_SKIP() << "built without MPI";
  const Outcome outcome = run(train("--out run --steps 3 --batch 4 --log run.jsonl", "mpiexec -n 2"));
  ASSERT_EQ(outcome.status, 0) << outcome.all();
  EXPECT_EQ(read_log("run.jsonl").size(), 3u);
  EXPECT_EQ(outcome.out.find("model "), outcome.out.rfind("model ")) << outcome.out;
  EXPECT_NE(outcome.out.find("2 ranks (mpi)"), std::string::npos) << outcome.out;
}

}  // namespace
}  // namespace tessera::programs

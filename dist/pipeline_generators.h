#pragma once

// The schedules that Tessera knows. Each generator orders computations; add_messages does the rest. One's own
// is one more such function: docs/pipelines.md has one in twenty lines.
//
// Common to all: the backward passes of a stage (its weight passes, where they are split) come in the order
// of the micro-batches. So its gradients are summed in the order of one rank, and no schedule changes a bit
// of them.
//
// p ranks, m micro-batches, v chunks; t_F, t_B, t_W: the times of a rank's layers, forward, backward to the
// input, backward to the weights. Bubble: how long a rank is idle in a step. Memory: micro-batches whose
// activations a rank r holds at most, which is what most_live says.

#include <string>
#include <string_view>
#include <vector>

#include "dist/pipeline_schedule.h"

namespace tessera::dist {

/// All forwards, then all backwards (Huang et al., "GPipe: efficient training of giant neural networks using
/// pipeline parallelism", 2019, arXiv 1811.06965).
///
/// Bubble    (p − 1)·(t_F + t_B + t_W), which is (p − 1)/(m + p − 1) of the step.
/// Memory    m.
/// Messages  2·m·(p − 1).
[[nodiscard]] Schedule schedule_gpipe(const PipelineSize& size);

/// A rank forwards as many micro-batches as there are ranks below it, then one forward and one backward in
/// turn (Narayanan et al., "Memory-efficient pipeline-parallel DNN training", 2021, arXiv 2006.09503, as
/// PipeDream-Flush).
///
/// Bubble    As GPipe.
/// Memory    min(m, p − r), however large m is.
/// Messages  As GPipe.
[[nodiscard]] Schedule schedule_1f1b(const PipelineSize& size);

/// 1F1B over v chunks a rank, in groups of p micro-batches that go through one chunk after the other
/// (Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM",
/// 2021, arXiv 2104.04473). v = 2 unless said otherwise; with v = 1 it is 1F1B.
///
/// Bubble    (p − 1)·(t_F + t_B + t_W)/v, which is (p − 1)/(v·m) of the time without bubbles.
/// Memory    min(v·m, 2·(p − 1 − r) + (v − 1)·p + 1) of a chunk, each 1/v as large.
/// Messages  2·m·(v·p − 1): v for each of 1F1B's, and those from the last rank back to the first.
/// Errors    ConfigError unless p divides m; names the nearest m.
[[nodiscard]] Schedule schedule_interleaved(const PipelineSize& size);

/// 1F1B with a split backward. Rank r is r micro-batches late with the weight passes: gradients reach the
/// ranks above it sooner, and the weight passes fill what was idle at the end (Qi et al., "Zero bubble
/// pipeline parallelism", 2023, arXiv 2401.10241, as ZB-H1).
///
/// Bubble    m ≥ p: (p − 1)·max(t_F + t_B − t_W, t_F, t_B). The paper has the first of the three, which it is
///           where t_W is the shortest; for equal times a third of 1F1B's. m < p and t_W the shortest:
///           (p − 1)·(t_F + t_B) − (m − 1)·t_W.
/// Memory    min(m, p), the most that any rank of 1F1B holds, if all of it lives until the weight pass.
/// Messages  As GPipe.
[[nodiscard]] Schedule schedule_zb_h1(const PipelineSize& size);

/// Two chunks a rank, of which the first goes down the ranks and the second comes back up; backward is split
/// (Qi et al., as above, as ZB-V; "Pipeline parallelism with controllable memory", 2024, arXiv 2405.15362).
/// The lower a rank, the shorter its first chunk's activations live and the longer its second's: together as
/// long on every rank.
///
/// Bubble    Equal times and m ≥ 2·p − 1: no rank waits between its first action and its last. A step still
///           takes 6·m + p − 1 times of a chunk's pass, 6·m of which a rank works: ranks begin and end one
///           after the other.
/// Memory    min(2·m, 2·p) of a chunk, each half as large, if all of it lives until the weight pass. (Less on
///           some ranks for m < 2·p − 1.)
/// Messages  4·m·(p − 1).
/// Errors    ConfigError for another number of chunks than 2.
[[nodiscard]] Schedule schedule_zb_v(const PipelineSize& size);

/// "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v".
[[nodiscard]] std::vector<std::string> schedule_names();

/// The schedule of that name. ConfigError: no such name, the known ones are listed; sizes that it can't have.
[[nodiscard]] Schedule make_schedule(std::string_view name, const PipelineSize& size);

}  // namespace tessera::dist

#include "examples/gpt2/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "autograd/grad_mode.h"
#include "data/sampler.h"
#include "kernels/error.h"
#include "nn/evaluation_scope.h"
#include "tensor/create.h"

namespace gpt2 {

using namespace tessera;

double Evaluation::perplexity() const { return std::exp(loss()); }

double Evaluation::bits_per_byte() const {
  const double bits = nats / std::numbers::ln2;
  if (whole_file) return (bits + first_token_bits) / static_cast<double>(source_bytes);
  return bits / static_cast<double>(tokens) * file_tokens / static_cast<double>(source_bytes);
}

Evaluation evaluate(const WindowLosses& losses, std::int64_t context, const data::TokenFile& file,
                    dist::Communicator& group, const EvaluationOptions& options) {
  const std::int64_t seq = options.seq == 0 ? context : options.seq;
  if (seq > context) {
    throw ConfigError(fmt::format(
        "evaluation: windows of {} tokens are longer than the model's context of {}", seq, context));
  }
  const data::EvaluationWindows windows(file.size(), seq, options.stride);
  const std::int64_t stride = options.stride == 0 ? seq : options.stride;
  const std::int64_t wanted =
      options.max_tokens == 0 ? windows.size() : std::max<std::int64_t>(options.max_tokens / stride, 1);
  const std::int64_t num_windows = std::min(windows.size(), wanted);

  // Sum and count in f64: exact for the count, and the same sum of window losses on any number of ranks but
  // for rounding.
  std::array<double, 3> sums{0.0, 0.0, 0.0};  // of losses, of targets, of ranks that were stopped
  const std::int64_t of_all = group.size() * options.batch;
  for (std::int64_t pass = 0; pass * of_all < num_windows; ++pass) {
    if (options.stop && options.stop()) {
      sums[2] = 1.0;
      break;
    }
    // A rank that has no window left looks at one of which no target counts: others may wait for its part.
    const std::int64_t first = pass * of_all + group.rank() * options.batch;
    const std::int64_t own = std::clamp<std::int64_t>(num_windows - first, 0, options.batch);
    const std::int64_t rows = std::max<std::int64_t>(own, 1);
    std::vector<std::int64_t> inputs(static_cast<std::size_t>(rows * seq)),
        targets(inputs.size(), data::kIgnoredTarget);
    if (own > 0) static_cast<void>(windows.fill(file, first, own, inputs, targets));
    const auto [sum, count] = losses(inputs, targets, rows);
    sums[0] += sum;
    sums[1] += static_cast<double>(count);
  }
  group.all_reduce(dist::buffer_of(sums));

  return {.nats = sums[0],
          .tokens = static_cast<std::int64_t>(sums[1]),
          .whole_file = num_windows == windows.size(),
          .stopped = sums[2] != 0.0,
          .source_bytes = file.info().source_bytes,
          .first_token_bits = std::log2(static_cast<double>(file.info().vocab_size)),
          .file_tokens = static_cast<double>(file.size())};
}

Evaluation evaluate(nn::LanguageModel& model, const data::TokenFile& file, dist::Communicator& group,
                    const EvaluationOptions& options) {
  const NoGrad no_grad;
  const nn::EvaluationScope evaluation(model);
  const std::int64_t seq = options.seq == 0 ? model.context() : options.seq;
  return evaluate(
      [&](auto inputs, auto targets, std::int64_t rows) -> dist::Engine::LossSum {
        const Tensor loss = model.loss(from_span<std::int64_t>(inputs, Shape{rows, seq}),
                                       from_span<std::int64_t>(targets, Shape{rows, seq}), Reduction::kSum);
        return {.sum = loss.item(),
                .targets = std::ranges::count_if(targets, [](auto t) { return t != data::kIgnoredTarget; })};
      },
      model.context(), file, group, options);
}

}  // namespace gpt2

#include "data/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "data/atomic_file.h"
#include "data/text_file.h"
#include "data/token_file.h"
#include "data/token_stream.h"
#include "data/utf8.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

void check(const PrepareOptions& options) {
  if (!(options.validation_fraction > 0.0 && options.validation_fraction < 1.0)) {
    throw ConfigError(
        fmt::format("prepare: the part held out for validation must lie between 0 and 1, got {}",
                    options.validation_fraction));
  }
  if (options.sample_bytes < 1 || options.chunk_bytes < 1) {
    throw ConfigError(fmt::format("prepare: sample_bytes {} and chunk_bytes {} must be at least 1",
                                  options.sample_bytes, options.chunk_bytes));
  }
  if (!options.tokenizer && (options.vocab_size < 256 || options.vocab_size > (1 << 24))) {
    throw ConfigError(fmt::format("prepare: a vocabulary of {} is not between 256 (all bytes) and {}",
                                  options.vocab_size, 1 << 24));
  }
}

// Where validation begins: the asked-for part of the bytes, moved back to the start of a character.
std::int64_t split_position(const TextFile& text, double validation_fraction) {
  const auto wanted = static_cast<std::int64_t>(static_cast<double>(text.size_bytes()) * validation_fraction);
  const std::int64_t position = text.size_bytes() - std::max<std::int64_t>(wanted, 1);
  for (std::int64_t back = 0; back <= 3 && back <= position; ++back) {
    char byte = 0;
    text.read(position - back, {&byte, 1});
    if (!detail::utf8_continuation(static_cast<unsigned char>(byte))) return position - back;
  }
  return position;  // not UTF-8
}

// Cuts words in two at neither end, unless there is no white space at all.
std::string_view without_half_words(std::string_view part, bool cut_begin, bool cut_end) {
  constexpr std::string_view kWhiteSpace = " \n\r\t";
  const std::size_t first = part.find_first_of(kWhiteSpace);
  const std::size_t last = part.find_last_of(kWhiteSpace);
  if (first >= last) return part;
  const std::size_t begin = cut_begin ? first : 0;
  return part.substr(begin, (cut_end ? last : part.size()) - begin);
}

// What the tokenizer learns from: the whole training part, or parts spread evenly over it.
std::string read_sample(const TextFile& text, std::int64_t train_bytes, const PrepareOptions& options) {
  const std::int64_t sample_bytes = std::min(train_bytes, options.sample_bytes);
  const std::int64_t num_parts =
      sample_bytes == train_bytes ? 1 : std::clamp<std::int64_t>(sample_bytes >> 16, 1, 64);
  const std::int64_t part_bytes = sample_bytes / num_parts;
  std::string sample;
  sample.reserve(static_cast<std::size_t>(sample_bytes));
  std::string part(static_cast<std::size_t>(part_bytes), '\0');
  for (std::int64_t i = 0; i < num_parts; ++i) {
    const std::int64_t begin = train_bytes / num_parts * i;
    text.read(begin, part);
    sample += without_half_words(part, begin > 0, begin + part_bytes < train_bytes);
    if (options.progress) options.progress(PrepareStage::kReadSample, (i + 1) * part_bytes, sample_bytes);
  }
  return sample;
}

Tokenizer train_tokenizer(const std::string& sample, const PrepareOptions& options) {
  TrainOptions train_options;
  train_options.progress = [&](std::int64_t done, std::int64_t total) {
    if (options.progress) options.progress(PrepareStage::kTrainTokenizer, done, total);
  };
  return Tokenizer::train(sample, options.vocab_size, train_options);
}

// Encodes bytes begin to end into `writer`, part by part.
void encode(const TextFile& text, std::int64_t begin, std::int64_t end, PrepareStage stage,
            const PrepareOptions& options, const Tokenizer& tokenizer, TokenFileWriter& writer) {
  StreamEncoder encoder(tokenizer);
  std::string part;
  std::vector<std::int32_t> ids;
  for (std::int64_t done = begin; done < end;) {
    part.resize(static_cast<std::size_t>(std::min(options.chunk_bytes, end - done)));
    text.read(done, part);
    done += static_cast<std::int64_t>(part.size());
    encoder.push(part, ids);
    if (done == end) encoder.finish(ids);
    writer.write(ids);
    ids.clear();
    if (options.progress) options.progress(stage, done - begin, end - begin);
  }
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options) {
  check(options);
  const TextFile text("text", options.text);
  if (text.size_bytes() == 0) throw DataError(fmt::format("text {}: is empty", text.path().string()));
  const std::int64_t split = split_position(text, options.validation_fraction);

  // A folder that can't be written to shows before the work, not after it.
  create_folder(options.out);
  { const AtomicFile attempt(options.out / kTokenizerFile); }

  const Tokenizer tokenizer =
      options.tokenizer ? *options.tokenizer : train_tokenizer(read_sample(text, split, options), options);
  if (options.check_tokenizer) options.check_tokenizer(tokenizer);
  const std::int64_t vocab_size = tokenizer.vocab_size();
  const std::uint64_t vocabulary_hash = tokenizer.vocabulary_hash();

  TokenFileWriter train(options.out / kTrainFile, vocab_size, vocabulary_hash);
  TokenFileWriter validation(options.out / kValidationFile, vocab_size, vocabulary_hash);
  encode(text, 0, split, PrepareStage::kEncodeTraining, options, tokenizer, train);
  encode(text, split, text.size_bytes(), PrepareStage::kEncodeValidation, options, tokenizer, validation);
  if (train.num_tokens() < 2 || validation.num_tokens() < 2) {
    throw DataError(
        fmt::format("text {}: {} bytes are too few: they make {} tokens for training and {} for validation, "
                    "and each needs at least 2",
                    text.path().string(), text.size_bytes(), train.num_tokens(), validation.num_tokens()));
  }

  const std::int64_t validation_bytes = text.size_bytes() - split;
  train.complete(split);
  validation.complete(validation_bytes);
  tokenizer.save(options.out);
  train.publish();
  validation.publish();
  return {.train_bytes = split,
          .validation_bytes = validation_bytes,
          .train_tokens = train.num_tokens(),
          .validation_tokens = validation.num_tokens(),
          .vocab_size = vocab_size,
          .vocabulary_hash = vocabulary_hash};
}

}  // namespace tessera::data

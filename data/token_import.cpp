#include "data/token_import.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "data/text_file.h"
#include "kernels/error.h"

namespace tessera::data {
namespace {

constexpr std::int64_t kHeaderBytes = 256 * 4;
constexpr std::int64_t kPartTokens = 1 << 18;

struct Format {
  std::uint32_t magic, version;
  std::int64_t bytes_per_token;
};
constexpr std::array<Format, 2> kLlmC{{{20240520, 1, 2}, {20240801, 7, 4}}};

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& reason) {
  throw DataError(fmt::format("token file {}: {}", path.string(), reason));
}

}  // namespace

struct ForeignTokenFile::File {
  TextFile bytes;
};

ForeignTokenFile::ForeignTokenFile(std::filesystem::path path)
    : path_(std::move(path)), format_("nanoGPT"), file_(new File{TextFile("token file", path_)}) {
  const std::int64_t file_bytes = file_->bytes.size_bytes();
  if (file_bytes == 0) fail(path_, "is empty");
  std::array<std::uint32_t, 3> header{};
  const auto present = static_cast<std::size_t>(std::min<std::int64_t>(file_bytes, sizeof(header)));
  file_->bytes.read(0, std::span(reinterpret_cast<char*>(header.data()), present));
  const auto* llm_c = std::ranges::find(kLlmC, header[0], &Format::magic);
  if (llm_c != kLlmC.end()) {
    format_ = "llm.c";
    bytes_per_token_ = llm_c->bytes_per_token;
    header_bytes_ = kHeaderBytes;
    if (file_bytes < kHeaderBytes)
      fail(path_,
           fmt::format("cut short: llm.c's header has {} bytes, the file {}", kHeaderBytes, file_bytes));
    if (header[1] != llm_c->version) {
      fail(path_,
           fmt::format("is of llm.c's version {}, but with the magic number {} only version {} is known",
                       header[1], header[0], llm_c->version));
    }
    num_tokens_ = static_cast<std::int64_t>(header[2]);
    const std::int64_t expected = kHeaderBytes + num_tokens_ * bytes_per_token_;
    if (file_bytes != expected) {
      fail(path_,
           fmt::format("{}: {} tokens need {} bytes, the file has {}",
                       file_bytes < expected ? "cut short" : "too long", num_tokens_, expected, file_bytes));
    }
  } else {
    if (file_bytes % bytes_per_token_ != 0)
      fail(path_, fmt::format("{} bytes are not a whole number of tokens of {} bytes", file_bytes,
                              bytes_per_token_));
    num_tokens_ = file_bytes / bytes_per_token_;
  }
  if (num_tokens_ == 0) fail(path_, "holds no tokens");
}

ForeignTokenFile::ForeignTokenFile(ForeignTokenFile&&) noexcept = default;
ForeignTokenFile& ForeignTokenFile::operator=(ForeignTokenFile&&) noexcept = default;
ForeignTokenFile::~ForeignTokenFile() = default;

void ForeignTokenFile::read(std::int64_t offset, std::int64_t vocab_size, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  if (offset < 0 || count > num_tokens_ || offset > num_tokens_ - count) {
    throw IndexError(fmt::format("token file {}: asked for {} tokens from {}, it has {}", path_.string(),
                                 count, offset, num_tokens_));
  }
  const auto width = static_cast<std::size_t>(bytes_per_token_);
  std::vector<char> bytes(out.size() * width);
  file_->bytes.read(header_bytes_ + offset * bytes_per_token_, bytes);
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint32_t id = 0;
    std::memcpy(&id, bytes.data() + i * width, width);
    if (id >= static_cast<std::uint64_t>(vocab_size)) {
      fail(path_,
           fmt::format("token {} at position {} is outside the vocabulary of {}: the file is damaged, of "
                       "another format, or made with another tokenizer",
                       id, offset + static_cast<std::int64_t>(i), vocab_size));
    }
    out[i] = static_cast<std::int32_t>(id);
  }
}

std::int64_t import_tokens(const std::vector<std::filesystem::path>& from, const Tokenizer& tokenizer,
                           TokenFileWriter& to,
                           const std::function<void(std::int64_t done, std::int64_t total)>& progress) {
  std::vector<ForeignTokenFile> files;
  std::int64_t total = 0;
  for (const auto& path : from) {
    files.emplace_back(path);
    total += files.back().size();
  }
  if (total < 2)
    throw DataError(fmt::format("import_tokens: {} tokens are too few, at least 2 are needed", total));

  std::vector<std::int64_t> bytes_of;  // of the text that an id stands for
  for (const std::string& token : tokenizer.vocabulary().tokens)
    bytes_of.push_back(static_cast<std::int64_t>(token.size()));
  for (const AddedToken& added : tokenizer.vocabulary().added)
    bytes_of[static_cast<std::size_t>(added.id)] = 0;
  if (tokenizer.end_of_text()) bytes_of[static_cast<std::size_t>(*tokenizer.end_of_text())] = 0;

  std::int64_t source_bytes = 0;
  std::vector<std::int32_t> part;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const ForeignTokenFile& file = files[i];
    bool has_odd = false;  // an id that is not 0 at position 1, 3, ...
    for (std::int64_t offset = 0; offset < file.size(); offset += kPartTokens) {
      part.resize(static_cast<std::size_t>(std::min(kPartTokens, file.size() - offset)));
      file.read(offset, tokenizer.vocab_size(), part);
      to.write(part);
      for (const std::int32_t id : part) source_bytes += bytes_of[static_cast<std::size_t>(id)];
      for (std::size_t odd = 1; odd < part.size() && !has_odd; odd += 2) has_odd = part[odd] != 0;
      if (progress) progress(to.num_tokens(), total);
    }
    // numpy's own integers have 64 bits, and a file without a header does not say how many its numbers have.
    if (!has_odd && file.size() >= 8 && file.format() == "nanoGPT") {
      fail(from[i],
           "every second token is 0, as where ids of 32 or 64 bits are read as the 16 bits that nanoGPT's "
           "have; write them with numpy's dtype uint16");
    }
  }
  return source_bytes;
}

}  // namespace tessera::data

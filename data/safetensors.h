#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace tessera::data {

/// Free text beside the tensors.
using Metadata = std::map<std::string, std::string>;

/// A file of named tensors in the safetensors format (github.com/huggingface/safetensors), mapped into
/// memory: opening reads the header only, and what other tools wrote is read as it is.
///
///     offset   bytes
///          0       8  N, length of the header (little-endian)
///          8       N  JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
///                            "__metadata__": {"key": "value"}}
///      8 + N          the elements, row-major, little-endian; offsets count from here
///
/// Errors    DataError with path and reason for every header that does not describe exactly the bytes that
///           follow: longer than the file, not JSON, an unknown dtype, a size that does not match its shape,
///           ranges that overlap, leave gaps or lie outside, a name twice.
/// Threads   Reading is safe from any number of threads.
/// Example   auto file = data::SafetensorsFile::open("run/model.safetensors");
///           Tensor wte = file.read("wte.weight");
class SafetensorsFile {
 public:
  struct Entry {
    std::string name;
    DType dtype = kF32;
    Shape shape;
    std::size_t begin = 0;  ///< bytes behind the header
    std::size_t end = 0;
  };

  [[nodiscard]] static SafetensorsFile open(const std::filesystem::path& path);
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  /// In the order of the data.
  [[nodiscard]] const std::vector<Entry>& entries() const noexcept { return entries_; }
  [[nodiscard]] const Metadata& metadata() const noexcept { return metadata_; }
  [[nodiscard]] bool contains(const std::string& name) const;
  /// A copy on the cpu. DataError, naming the file, if there is no such tensor, or if one in BOOL has a byte
  /// that is neither 0 nor 1.
  [[nodiscard]] Tensor read(const std::string& name) const;
  /// All of them.
  [[nodiscard]] NamedTensors read_all() const;

 private:
  SafetensorsFile() = default;
  void parse_header();
  [[nodiscard]] Tensor read(const Entry& entry) const;

  std::filesystem::path path_;
  std::vector<Entry> entries_;
  Metadata metadata_;
  const std::byte* map_ = nullptr;
  std::size_t map_bytes_ = 0;
  std::size_t data_begin_ = 0;
};

/// Writes `tensors`; the file appears whole or not at all (see atomic_file.h).
/// Errors    DataError if the folder cannot be written to, if a name is given twice or is not UTF-8, or is
///           "__metadata__"; DeviceError for a tensor without data (on meta); FileError if the disk is full.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const Metadata& metadata = {});

}  // namespace tessera::data

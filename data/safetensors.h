#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/atomic_file.h"
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
///           follow: longer than the file or than 100 MB, not JSON, an unknown dtype, a size that does not
///           match its shape, ranges that overlap, leave gaps or lie outside, a name twice.
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

/// A tensor that is to be written: what the header says of it.
struct TensorInfo {
  std::string name;
  DType dtype = kF32;
  Shape shape;

  [[nodiscard]] std::int64_t size_bytes() const noexcept {
    return shape.num_elements() * static_cast<std::int64_t>(tessera::size_bytes(dtype));
  }
};

/// Writes a file of tensors one by one, so that they need not be in memory together. The header stands in
/// front, so names, dtypes and shapes are given first. Without commit() nothing appears under the name.
///
/// Errors    DataError if the folder cannot be written to, if a name is given twice, is not UTF-8 or is
///           "__metadata__", if a tensor is not the one whose turn it is or commit() comes before the last;
///           DeviceError for a tensor without data (on meta); FileError if the disk is full.
/// Example
///     data::SafetensorsWriter writer("model.safetensors", {{"a", kF32, {2, 3}}, {"b", kBF16, {5}}});
///     writer.write(a);
///     writer.write(b);
///     writer.commit();
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    const Metadata& metadata = {});
  /// The next one in the order of `tensors`.
  void write(const Tensor& tensor);
  void commit();

 private:
  std::vector<TensorInfo> tensors_;
  std::size_t next_ = 0;
  AtomicFile file_;
};

/// Writes `tensors`; the file appears whole or not at all (see atomic_file.h).
/// Errors    As of SafetensorsWriter.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const Metadata& metadata = {});

}  // namespace tessera::data

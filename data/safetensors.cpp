#include "data/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "data/atomic_file.h"
#include "data/json_depth.h"
#include "kernels/error.h"
#include "tensor/create.h"

namespace tessera::data {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::pair<DType, const char*>, 8> kDTypeNames{{{kF64, "F64"},
                                                                    {kF32, "F32"},
                                                                    {kF16, "F16"},
                                                                    {kBF16, "BF16"},
                                                                    {kI64, "I64"},
                                                                    {kI32, "I32"},
                                                                    {kU8, "U8"},
                                                                    {kBool, "BOOL"}}};

// As in the format's own library. In memory, a header is some ten times what it is in the file.
constexpr std::uint64_t kMostHeaderBytes = 100'000'000;

constexpr const char* kMetadataName = "__metadata__";

const char* dtype_name(DType dtype) {
  return std::ranges::find(kDTypeNames, dtype, &std::pair<DType, const char*>::first)->second;
}

[[noreturn]] void reject(const std::filesystem::path& path, const std::string& reason) {
  throw DataError(fmt::format("safetensors file {}: {}", path.string(), reason));
}

std::size_t checked_size(const Json& value) {
  if (!value.is_number_unsigned()) throw std::out_of_range("a size is not a natural number");
  return value.get<std::size_t>();
}

SafetensorsFile::Entry parse_entry(const std::string& name, const Json& json) {
  SafetensorsFile::Entry entry;
  entry.name = name;
  const auto dtype = json.at("dtype").get<std::string>();
  const auto known =
      std::ranges::find_if(kDTypeNames, [&](const auto& pair) { return dtype == pair.second; });
  if (known == kDTypeNames.end()) throw std::out_of_range(fmt::format("unknown dtype '{}'", dtype));
  entry.dtype = known->first;

  std::size_t bytes = tessera::size_bytes(entry.dtype);
  const Json& shape = json.at("shape");
  if (!shape.is_array() || shape.size() > kMaxDims) {
    throw std::out_of_range(fmt::format("the shape must be an array of at most {} sizes", kMaxDims));
  }
  bool empty = false;
  for (const Json& size_json : shape) {
    const std::size_t size = checked_size(size_json);
    if (size > static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max()))
      throw std::out_of_range("a size is too large");
    empty = empty || size == 0;
    if (size != 0 && __builtin_mul_overflow(bytes, size, &bytes))
      throw std::out_of_range("the shape is too large");
    entry.shape.push_back(static_cast<std::int64_t>(size));
  }
  if (empty) bytes = 0;
  const Json& offsets = json.at("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) throw std::out_of_range("data_offsets must be two numbers");
  entry.begin = checked_size(offsets[0]);
  entry.end = checked_size(offsets[1]);
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    throw std::out_of_range(fmt::format("data_offsets [{}, {}] do not hold the {} bytes of {} {}",
                                        entry.begin, entry.end, bytes, dtype, to_string(entry.shape)));
  }
  return entry;
}

// nlohmann-json keeps the last of equal keys; a name given twice must be refused instead. Depth 1 has the
// names of tensors, depth 2 the keys of one of them.
Json parse_refusing_duplicates(const char* begin, const char* end) {
  std::array<std::set<std::string>, 3> keys;
  const auto callback = [&keys](int depth, Json::parse_event_t event, Json& parsed) {
    if (event != Json::parse_event_t::key || depth > 2) return true;
    const auto key = parsed.get<std::string>();
    if (depth == 1) keys[2].clear();
    if (!keys[static_cast<std::size_t>(depth)].insert(key).second) {
      throw std::out_of_range(fmt::format("the name '{}' stands there twice", key));
    }
    return true;
  };
  return Json::parse(begin, end, callback);
}

Metadata parse_metadata(const Json& json) {
  if (!json.is_object()) throw std::out_of_range("must be an object of texts");
  Metadata metadata;
  for (const auto& [key, text] : json.items()) metadata[key] = text.get<std::string>();
  return metadata;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile file;
  file.path_ = path;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) reject(path, fmt::format("cannot be opened: {}", std::strerror(errno)));
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    reject(path, "is not a regular file");
  }
  file.map_bytes_ = static_cast<std::size_t>(status.st_size);
  if (file.map_bytes_ < 8) {
    ::close(descriptor);
    reject(path, fmt::format("is cut short: {} bytes, and the header alone needs 8", file.map_bytes_));
  }
  void* map = ::mmap(nullptr, file.map_bytes_, PROT_READ, MAP_SHARED, descriptor, 0);
  ::close(descriptor);
  if (map == MAP_FAILED)
    throw FileError(fmt::format("safetensors file {}: {}", path.string(), std::strerror(errno)));
  file.map_ = static_cast<const std::byte*>(map);
  file.parse_header();
  return file;
}

void SafetensorsFile::parse_header() {
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, map_, sizeof(header_bytes));
  if (header_bytes > map_bytes_ - 8) {
    reject(path_, fmt::format("is cut short: the header says it has {} bytes, and {} follow", header_bytes,
                              map_bytes_ - 8));
  }
  if (header_bytes > kMostHeaderBytes) {
    reject(path_, fmt::format("its header of {} bytes is too large: at most {} can be read", header_bytes,
                              kMostHeaderBytes));
  }
  data_begin_ = 8 + static_cast<std::size_t>(header_bytes);
  const char* begin = reinterpret_cast<const char*>(map_) + 8;
  std::string current = "header";
  try {
    if (detail::nests_too_deep({begin, static_cast<std::size_t>(header_bytes)}))
      throw std::out_of_range(detail::too_deep());
    const Json header = parse_refusing_duplicates(begin, begin + header_bytes);
    if (!header.is_object()) throw std::out_of_range("must be a JSON object");
    for (const auto& [name, value] : header.items()) {
      current = "'" + name + "'";
      if (name == kMetadataName) {
        metadata_ = parse_metadata(value);
      } else {
        entries_.push_back(parse_entry(name, value));
      }
    }
  } catch (const std::exception& error) {  // JSON's errors and ours
    reject(path_, fmt::format("{}: {}", current, error.what()));
  }
  std::ranges::stable_sort(entries_, {}, [](const Entry& e) { return std::pair(e.begin, e.end); });
  std::size_t expected = 0;
  for (const Entry& entry : entries_) {
    if (entry.begin != expected) {
      reject(path_,
             fmt::format(
                 "'{}' begins at byte {}, but the data before it ends at {}: ranges must neither overlap nor "
                 "leave gaps",
                 entry.name, entry.begin, expected));
    }
    expected = entry.end;
  }
  if (expected != map_bytes_ - data_begin_) {
    reject(path_, fmt::format("the header describes {} bytes of data, and {} follow it", expected,
                              map_bytes_ - data_begin_));
  }
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      entries_(std::move(other.entries_)),
      metadata_(std::move(other.metadata_)),
      map_(std::exchange(other.map_, nullptr)),
      map_bytes_(other.map_bytes_),
      data_begin_(other.data_begin_) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(entries_, other.entries_);
  std::swap(metadata_, other.metadata_);
  std::swap(map_, other.map_);
  std::swap(map_bytes_, other.map_bytes_);
  std::swap(data_begin_, other.data_begin_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (map_ != nullptr) ::munmap(const_cast<std::byte*>(map_), map_bytes_);
}

bool SafetensorsFile::contains(const std::string& name) const {
  return std::ranges::find(entries_, name, &Entry::name) != entries_.end();
}

Tensor SafetensorsFile::read(const std::string& name) const {
  const auto entry = std::ranges::find(entries_, name, &Entry::name);
  if (entry == entries_.end()) reject(path_, fmt::format("holds no tensor '{}'", name));
  return read(*entry);
}

Tensor SafetensorsFile::read(const Entry& entry) const {
  const std::byte* data = map_ + data_begin_ + entry.begin;
  // A bool that is neither 0 nor 1 is no bool in C++ either: what reads it may do anything.
  if (entry.dtype == kBool &&
      std::any_of(data, data + (entry.end - entry.begin), [](std::byte b) { return b > std::byte{1}; })) {
    reject(path_, fmt::format("'{}' is BOOL, but not all of its bytes are 0 or 1", entry.name));
  }
  return from_memory(data, entry.shape, entry.dtype);
}

NamedTensors SafetensorsFile::read_all() const {
  NamedTensors tensors;
  for (const Entry& entry : entries_) {
    tensors.emplace_back(entry.name, read(entry));
  }
  return tensors;
}

// --- Writing -----------------------------------------------------------------------------------------------

namespace {

std::string header_text(const std::vector<TensorInfo>& tensors, const Metadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadataName] = metadata;
  std::int64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.name == kMetadataName)
      throw DataError(fmt::format("write_safetensors: a tensor cannot be named '{}'", tensor.name));
    if (header.contains(tensor.name))
      throw DataError(fmt::format("write_safetensors: the name '{}' is given twice", tensor.name));
    const std::int64_t end = offset + tensor.size_bytes();
    header[tensor.name] = {{"dtype", dtype_name(tensor.dtype)},
                           {"shape", std::vector<std::int64_t>(tensor.shape.begin(), tensor.shape.end())},
                           {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception& error) {
    throw DataError(fmt::format("write_safetensors: a name or a text is not UTF-8: {}", error.what()));
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the elements are aligned in a mapped file
  return text;
}

void check_has_data(const std::string& name, const Tensor& tensor) {
  if (tensor.defined() && tensor.device() != meta) return;
  throw DeviceError(fmt::format("write_safetensors: '{}' has no data: it is {}; materialize the model first",
                                name, tensor.defined() ? "on meta" : "undefined"));
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                     const Metadata& metadata)
    : tensors_(std::move(tensors)), file_(path) {
  const std::string text = header_text(tensors_, metadata);
  const std::uint64_t header_bytes = text.size();
  file_.write(std::as_bytes(std::span(&header_bytes, 1)));
  file_.write(text);
}

void SafetensorsWriter::write(const Tensor& tensor) {
  if (next_ == tensors_.size()) {
    throw DataError(fmt::format("safetensors file {}: all {} tensors of its header are written, but came {}",
                                file_.path().string(), tensors_.size(),
                                tensor.defined() ? describe(tensor) : "an undefined one"));
  }
  const TensorInfo& info = tensors_[next_];
  check_has_data(info.name, tensor);
  if (tensor.dtype() != info.dtype || tensor.shape() != info.shape) {
    throw DataError(fmt::format("safetensors file {}: the header says that '{}' is {} {}, but came {}",
                                file_.path().string(), info.name, name(info.dtype), to_string(info.shape),
                                describe(tensor)));
  }
  const Tensor values = tensor.detach().contiguous();
  const auto* data = static_cast<const std::byte*>(values.view().data);
  file_.write(std::span(data, static_cast<std::size_t>(values.size_bytes())));
  ++next_;
}

void SafetensorsWriter::commit() {
  if (next_ != tensors_.size()) {
    throw DataError(fmt::format("safetensors file {}: its header lists {} tensors, and '{}' is not written",
                                file_.path().string(), tensors_.size(), tensors_[next_].name));
  }
  file_.commit();
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const Metadata& metadata) {
  std::vector<TensorInfo> infos;
  for (const auto& [name, tensor] : tensors) {
    check_has_data(name, tensor);
    infos.push_back({name, tensor.dtype(), tensor.shape()});
  }
  SafetensorsWriter writer(path, std::move(infos), metadata);
  for (const auto& [name, tensor] : tensors) writer.write(tensor);
  writer.commit();
}

}  // namespace tessera::data

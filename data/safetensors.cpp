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

// nlohmann-json keeps the last of equal keys; a name given twice must be refused instead.
Json parse_refusing_duplicates(const char* begin, const char* end) {
  std::set<std::string> names;
  const auto callback = [&names](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 && !names.insert(parsed.get<std::string>()).second) {
      throw std::out_of_range(fmt::format("the name '{}' stands there twice", parsed.get<std::string>()));
    }
    return true;
  };
  return Json::parse(begin, end, callback);
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
  data_begin_ = 8 + static_cast<std::size_t>(header_bytes);
  const char* begin = reinterpret_cast<const char*>(map_) + 8;
  std::string current = "header";
  try {
    const Json header = parse_refusing_duplicates(begin, begin + header_bytes);
    if (!header.is_object()) throw std::out_of_range("must be a JSON object");
    for (const auto& [name, value] : header.items()) {
      current = "'" + name + "'";
      if (name == "__metadata__") {
        for (const auto& [key, text] : value.items()) metadata_[key] = text.get<std::string>();
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
  return from_memory(map_ + data_begin_ + entry->begin, entry->shape, entry->dtype);
}

NamedTensors SafetensorsFile::read_all() const {
  NamedTensors tensors;
  for (const Entry& entry : entries_) {
    tensors.emplace_back(entry.name, from_memory(map_ + data_begin_ + entry.begin, entry.shape, entry.dtype));
  }
  return tensors;
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const Metadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    if (header.contains(name))
      throw DataError(fmt::format("write_safetensors: the name '{}' is given twice", name));
    const std::int64_t end = offset + tensor.size_bytes();
    header[name] = {{"dtype", dtype_name(tensor.dtype())},
                    {"shape", std::vector<std::int64_t>(tensor.shape().begin(), tensor.shape().end())},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the elements are aligned in a mapped file

  AtomicFile file(path);
  const std::uint64_t header_bytes = text.size();
  file.write(std::as_bytes(std::span(&header_bytes, 1)));
  file.write(text);
  for (const auto& [name, tensor] : tensors) {
    const Tensor values = tensor.detach().contiguous();
    const auto* data = static_cast<const std::byte*>(values.view().data);
    file.write(std::span(data, static_cast<std::size_t>(values.size_bytes())));
  }
  file.commit();
}

}  // namespace tessera::data

#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "checkpoint/json_strict.h"
#include "checkpoint/lfs_pointer.h"
#include "configs/error.h"

namespace lorashard {
namespace {

using nlohmann::json;

// The limit of the reference implementation; no real header comes near it.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

std::optional<DType> dtype_named(const std::string& name) {
  for (const DType t : {DType::F32, DType::BF16, DType::F16, DType::F64, DType::I8, DType::U8,
                        DType::I16, DType::I32, DType::I64, DType::BOOL})
    if (name == name_of(t)) return t;
  return std::nullopt;
}

// Product of the shape times element size, or nothing on overflow (of a signed 64-bit count).
std::optional<uint64_t> bytes_of(const std::vector<int64_t>& shape, DType dtype) {
  int64_t n = size_of(dtype);
  for (const int64_t d : shape)
    if (__builtin_mul_overflow(n, d, &n)) return std::nullopt;
  return static_cast<uint64_t>(n);
}

std::string shown(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (const int64_t d : shape) s += (s.size() > 1 ? ", " : "") + std::to_string(d);
  return s + "]";
}

// One entry of the header. `where` is "FILE: TENSOR".
TensorInfo parse_entry(const std::string& where, const std::string& name, const json& entry,
                       uint64_t data_begin, uint64_t data_bytes) {
  if (!entry.is_object()) fail_input(where, "its header entry is not an object");
  for (const char* key : {"dtype", "shape", "data_offsets"})
    if (!entry.contains(key)) fail_input(where, std::string("its header entry lacks ") + key);
  if (entry.size() != 3)
    fail_input(where, "its header entry has keys other than dtype, shape and data_offsets");

  TensorInfo t;
  t.name = name;
  const json& dtype = entry["dtype"];
  if (!dtype.is_string()) fail_input(where, "dtype is not a string");
  const auto known = dtype_named(dtype.get<std::string>());
  if (!known)
    fail_input(where, "dtype " + printable(dtype.get<std::string>()) +
                          " is not supported; tensors must be F32, BF16, F16, F64, I8, U8, I16, "
                          "I32, I64 or BOOL");
  t.dtype = *known;

  const json& shape = entry["shape"];
  if (!shape.is_array()) fail_input(where, "shape is not a list");
  for (const json& d : shape) {
    if (!d.is_number_unsigned() || d.get<uint64_t>() > INT64_MAX)
      fail_input(where, "shape " + shape.dump() + " is not a list of sizes");
    t.shape.push_back(d.get<int64_t>());
  }
  const auto bytes = bytes_of(t.shape, t.dtype);
  if (!bytes) fail_input(where, "shape " + shown(t.shape) + " overflows 64 bits");

  const json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    fail_input(where, "data_offsets is not a pair [begin, end]");
  const uint64_t begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end) fail_input(where, "data_offsets " + offsets.dump() + " are reversed");
  if (end > data_bytes)
    fail_input(where, "data_offsets " + offsets.dump() + " lie beyond the file's " +
                          std::to_string(data_bytes) + " bytes of data; is the file truncated?");
  if (end - begin != *bytes)
    fail_input(where, "data_offsets span " + std::to_string(end - begin) + " bytes, but " +
                          std::string(name_of(t.dtype)) + " " + shown(t.shape) + " takes " +
                          std::to_string(*bytes));
  t.offset = data_begin + begin;
  t.bytes = end - begin;
  return t;
}

// The tensors, in file order, must tile the data exactly.
void check_tiling(const std::string& file, const std::vector<TensorInfo>& tensors,
                  uint64_t data_begin, uint64_t file_bytes) {
  uint64_t at = data_begin;
  const TensorInfo* previous = nullptr;
  for (const TensorInfo& t : tensors) {
    if (t.offset < at)
      fail_input(file + ": " + printable(t.name), "overlaps tensor " + printable(previous->name));
    if (t.offset > at)
      fail_input(file + ": " + printable(t.name),
                 "a hole of " + std::to_string(t.offset - at) +
                     " bytes that no tensor claims lies before it");
    at = t.offset + t.bytes;
    previous = &t;
  }
  if (at != file_bytes)
    fail_input(file, std::to_string(file_bytes - at) +
                         " bytes after the last tensor belong to no "
                         "tensor");
}

}  // namespace

int64_t TensorInfo::elements() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

SafetensorsFile SafetensorsFile::open(const fs::path& path) {
  SafetensorsFile f;
  f.file_ = std::make_shared<MappedFile>(path);
  const std::string file = path.string();
  const uint64_t size = f.file_->size();
  refuse_lfs_pointer({f.file_->data(), size}, file);
  if (size < 8)
    fail_input(file, "is truncated: " + std::to_string(size) +
                         " bytes are less than the header length of a safetensors file");
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i)
    header_bytes = header_bytes << 8 | static_cast<unsigned char>(f.file_->data()[i]);
  if (header_bytes > kMaxHeaderBytes)
    fail_input(file, "is not a safetensors file: its header would have " +
                         std::to_string(header_bytes) + " bytes, and at most " +
                         std::to_string(kMaxHeaderBytes) + " are allowed");
  if (header_bytes > size - 8)
    fail_input(file, "is truncated: its header has " + std::to_string(header_bytes) +
                         " bytes, and only " + std::to_string(size - 8) + " follow");
  const std::string_view text(f.file_->data() + 8, header_bytes);
  if (text.empty() || text.front() != '{')
    fail_input(file, "is not a safetensors file: its header is not a JSON object");
  const json header = parse_json_strict(text, file + ": header");
  const uint64_t data_begin = 8 + header_bytes;

  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) fail_input(file, "__metadata__ is not a map of strings");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          fail_input(file, "__metadata__ \"" + printable(key) + "\" is not a string");
        f.metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    f.tensors_.push_back(
        parse_entry(file + ": " + printable(name), name, entry, data_begin, size - data_begin));
  }
  // Empty tensors share their offset with the next one and come first.
  std::sort(f.tensors_.begin(), f.tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  check_tiling(file, f.tensors_, data_begin, size);
  for (size_t i = 0; i < f.tensors_.size(); ++i) f.index_[f.tensors_[i].name] = i;
  return f;
}

const TensorInfo* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, const std::vector<Entry>& entries,
                                     const std::map<std::string, std::string>& metadata,
                                     bool hashed)
    : out_(path, hashed) {
  // Keys in file order, as a reader that streams would want them.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  for (const Entry& e : entries) {
    const uint64_t bytes = bytes_of(e.shape, e.dtype).value();
    header[e.name] = {{"dtype", std::string(name_of(e.dtype))},
                      {"shape", e.shape},
                      {"data_offsets", {remaining_, remaining_ + bytes}}};
    remaining_ += bytes;
  }
  std::string text = header.dump();
  text.resize((8 + text.size() + 63) / 64 * 64 - 8, ' ');
  char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(uint64_t{text.size()} >> (8 * i));
  out_.write(length, 8);
  out_.write(text);
}

void SafetensorsWriter::write(const void* data, uint64_t bytes) {
  if (bytes > remaining_) throw std::logic_error("SafetensorsWriter: more data than entries");
  out_.write(data, bytes);
  remaining_ -= bytes;
}

void SafetensorsWriter::close() {
  if (remaining_ != 0) throw std::logic_error("SafetensorsWriter: less data than entries");
  out_.close();
}

}  // namespace lorashard

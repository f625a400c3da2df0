#include "checkpoint/base_model.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "checkpoint/base_storage.h"
#include "configs/error.h"

namespace lorashard {
namespace {

// Bytes of the file that a copy may keep mapped at a time.
constexpr int64_t kCopyWindow = 4 << 20;

std::shared_ptr<char> allocate(uint64_t bytes) {
  constexpr uint64_t kAlign = 64, kHuge = 2 << 20;
  auto* p = static_cast<char*>(std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign));
  if (!p) throw std::bad_alloc();
  // Only whole huge pages inside the block, so that nothing beyond it becomes resident.
  const auto begin = (reinterpret_cast<uintptr_t>(p) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHuge * kHuge;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  return {p, std::free};
}

TensorPart intersect(const TensorPart& a, const TensorPart& b) {
  return {std::max(a.row_begin, b.row_begin), std::min(a.row_end, b.row_end),
          std::max(a.col_begin, b.col_begin), std::min(a.col_end, b.col_end)};
}
bool empty(const TensorPart& p) { return p.row_begin >= p.row_end || p.col_begin >= p.col_end; }

// Copies the rectangle `part` of the tensor from `piece` to its place in `target`, which holds
// `wanted`. Pages of the map are given back behind the copy.
void copy_part(const SafetensorsFile& file, const BasePiece& piece, const TensorPart& part,
               char* target, const TensorPart& wanted) {
  const int64_t element = size_of(piece.info.dtype);
  const int64_t source_ld = (piece.part.col_end - piece.part.col_begin) * element;
  const int64_t target_ld = (wanted.col_end - wanted.col_begin) * element;
  const auto width = static_cast<size_t>((part.col_end - part.col_begin) * element);
  const int64_t step = std::max<int64_t>(1, kCopyWindow / source_ld);
  const char* source = file.data(piece.info) + (part.col_begin - piece.part.col_begin) * element;
  target += (part.col_begin - wanted.col_begin) * element;
  for (int64_t begin = part.row_begin; begin < part.row_end; begin += step) {
    const int64_t end = std::min(part.row_end, begin + step);
    const uint64_t first =
        piece.info.offset + static_cast<uint64_t>((begin - piece.part.row_begin) * source_ld);
    const uint64_t last = first + static_cast<uint64_t>((end - begin) * source_ld);
    file.file().populate(first, last);
    for (int64_t row = begin; row < end; ++row)
      std::memcpy(target + (row - wanted.row_begin) * target_ld,
                  source + (row - piece.part.row_begin) * source_ld, width);
    file.file().release(first, last);
  }
}

}  // namespace

BaseModel::BaseModel(std::string path, ModelConfig config, std::string config_text,
                     std::vector<Tensor> tensors, std::shared_ptr<const BaseStorage> storage,
                     std::vector<std::string> notes)
    : path_(std::move(path)),
      config_text_(std::move(config_text)),
      config_(std::move(config)),
      tensors_(std::move(tensors)),
      storage_(std::move(storage)),
      notes_(std::move(notes)) {
  for (size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
  if (!tensors_.empty()) config_.stored_dtype = tensors_[0].dtype;
}

std::unique_ptr<BaseModel> BaseModel::open(const std::string& path) {
  std::error_code ec;
  if (!fs::exists(path, ec))
    fail_input(path, "does not exist; give a Hugging Face directory or a base shard set");
  if (!fs::is_directory(path, ec))
    fail_input(path, "is not a directory; give a Hugging Face directory or a base shard set");
  return fs::exists(fs::path(path) / kManifestName, ec) ? open_base_shards(path)
                                                        : open_hugging_face(path);
}

bool BaseModel::is_shard_set() const { return storage_->manifest.has_value(); }

const BaseModel::Tensor* BaseModel::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

WeightSlice BaseModel::whole(const std::string& name) const {
  const Tensor* t = find(name);
  if (!t) throw std::logic_error("BaseModel: no tensor " + name);
  return slice(name, {0, t->rows(), 0, t->cols()});
}

WeightSlice BaseModel::slice(const std::string& name, const TensorPart& wanted) const {
  const Tensor* t = find(name);
  if (!t) throw std::logic_error("BaseModel: no tensor " + name);
  const int64_t rows = wanted.row_end - wanted.row_begin, cols = wanted.col_end - wanted.col_begin;
  if (wanted.row_begin < 0 || rows < 0 || wanted.row_end > t->rows() || wanted.col_begin < 0 ||
      cols < 0 || wanted.col_end > t->cols())
    throw std::logic_error("BaseModel: part outside tensor " + name);
  WeightSlice result;
  result.matrix = {nullptr, rows, cols, cols, t->dtype};
  if (rows == 0 || cols == 0) return result;

  const auto& pieces = storage_->pieces.at(name);
  for (const BasePiece& p : pieces) {
    const SafetensorsFile& file = storage_->files[p.file];
    const bool contiguous =
        rows == 1 || (wanted.col_begin == p.part.col_begin && wanted.col_end == p.part.col_end);
    if (!(intersect(wanted, p.part) == wanted) || !contiguous || !file.aligned(p.info)) continue;
    const int64_t at = (wanted.row_begin - p.part.row_begin) * (p.part.col_end - p.part.col_begin) +
                       wanted.col_begin - p.part.col_begin;
    result.matrix.data = file.data(p.info) + at * size_of(t->dtype);
    result.owner = file.shared_file();
    return result;
  }
  const auto copy = allocate(static_cast<uint64_t>(rows * cols * size_of(t->dtype)));
  for (const BasePiece& p : pieces)
    if (const TensorPart part = intersect(wanted, p.part); !empty(part))
      copy_part(storage_->files[p.file], p, part, copy.get(), wanted);
  result.matrix.data = copy.get();
  result.owner = copy;
  return result;
}

void BaseModel::release(const std::string& name) const {
  for (const BasePiece& p : storage_->pieces.at(name))
    storage_->files[p.file].file().release(p.info.offset, p.info.offset + p.info.bytes);
}

std::vector<std::string> BaseModel::companion_files() const { return storage_->companions; }

void check_tensor(const std::string& file, const TensorSpec& spec, DType dtype,
                  const std::vector<int64_t>& shape) {
  const std::string where = file + ": " + spec.name;
  if (dtype != DType::BF16 && dtype != DType::F16 && dtype != DType::F32)
    fail_input(where, "has dtype " + std::string(name_of(dtype)) +
                          "; the weights of a model must be BF16, F16 or F32");
  const std::vector<int64_t> expected =
      spec.vector ? std::vector{spec.cols} : std::vector{spec.rows, spec.cols};
  if (shape == expected) return;
  const auto shown = [](const std::vector<int64_t>& s) {
    std::string text = "[";
    for (size_t i = 0; i < s.size(); ++i) text += (i ? ", " : "") + std::to_string(s[i]);
    return text + "]";
  };
  fail_input(where, "has shape " + shown(shape) + ", but config.json asks for " + shown(expected));
}

std::vector<std::string> find_companions(const std::string& path) {
  const auto is_weight_file = [](std::string_view name) {
    static const char* const endings[] = {".safetensors", ".bin",     ".pt",   ".pth",
                                          ".ckpt",        ".h5",      ".gguf", ".onnx",
                                          ".ggml",        ".msgpack", ".npz",  ".index.json"};
    return std::any_of(std::begin(endings), std::end(endings),
                       [&](std::string_view ending) { return name.ends_with(ending); });
  };
  std::vector<std::string> files;
  // The files of one folder and of those in it; nothing where a subfolder has weights.
  const auto collect = [&](const auto& self, const fs::path& below) -> bool {
    const size_t before = files.size();
    for (const auto& entry : fs::directory_iterator(path / below)) {
      const std::string name = entry.path().filename().string();
      const fs::path file = below / name;
      std::error_code ec;
      if (name.front() == '.') continue;
      if (entry.is_directory(ec)) {
        const size_t kept = files.size();
        if (!entry.is_symlink(ec) && !self(self, file)) files.resize(kept);
      } else if (is_weight_file(name)) {
        if (below.empty()) continue;
        files.resize(before);
        return false;
      } else if (entry.is_regular_file(ec) &&
                 !(below.empty() && (name == "config.json" || name == kManifestName))) {
        files.push_back(file.string());
      }
    }
    return true;
  };
  collect(collect, {});
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace lorashard

#include "checkpoint/export.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "checkpoint/safetensors.h"
#include "checkpoint/temporary_directory.h"
#include "configs/error.h"
#include "kernels/merge.h"

namespace lorashard {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kBlockBytes = 8 << 20;  // of rows merged at a time; two are in flight

// The name of a type in config.json.
const char* torch_name(DType t) {
  return t == DType::BF16 ? "bfloat16" : t == DType::F16 ? "float16" : "float32";
}

// One tensor of the export: the base's, its type in the file, and its factors, or what stands for
// it, if it has any.
struct Item {
  const BaseModel::Tensor* tensor;
  DType dtype;
  const AdapterModule* module;
  const TrainedTensor* trained = nullptr;
  bool transposed = false;          // the tensor is (in,out)
  std::string name = tensor->name;  // in the file
  uint64_t bytes() const {
    return uint64_t(tensor->rows() * tensor->cols()) * uint64_t(size_of(dtype));
  }
};
using Shard = std::vector<Item>;

constexpr const char* kHead = "lm_head.weight";

// Whether an adapter changes embedding and head of a tied model in different ways, so that the
// merged model has both.
bool unties(const ModelConfig& config, const Adapter& adapter) {
  if (!config.tied_embeddings) return false;
  const auto of_vocabulary = [&](const std::string& weight) {
    return stored_tensor(config, weight) == stored_tensor(config, kHead);
  };
  return std::any_of(adapter.modules.begin(), adapter.modules.end(),
                     [&](const auto& m) { return of_vocabulary(m.name + ".weight"); }) ||
         std::any_of(adapter.trained.begin(), adapter.trained.end(),
                     [&](const auto& t) { return !t.tied && of_vocabulary(t.base.name); });
}

std::vector<Item> list_items(const BaseModel& base, const Adapter& adapter,
                             const ExportOptions& options) {
  const std::string& carried = adapter.config.base_digest;
  if (!carried.empty() && !options.base_digest.empty() && carried != options.base_digest)
    fail_input(base.path(), "the adapter was trained on another base: it carries the digest " +
                                carried + ", this base's is " + options.base_digest);
  std::map<std::string, const AdapterModule*> by_weight;
  for (const AdapterModule& m : adapter.modules) by_weight[m.name + ".weight"] = &m;
  std::map<std::string, const TrainedTensor*> trained;
  for (const TrainedTensor& t : adapter.trained) trained[t.base.name] = &t;
  std::set<std::string> transposed;
  for (const LinearModule& m : linear_modules(base.config()))
    if (m.transposed) transposed.insert(m.name + ".weight");
  std::vector<Item> items;
  const auto add = [&](const BaseModel::Tensor& t, const std::string& name) {
    Item item{&t, options.dtype.value_or(t.dtype), nullptr};
    item.name = name;
    if (const auto own = trained.find(name); own != trained.end()) {
      item.trained = own->second;
      const int64_t rows = own->second->rows.empty() ? t.rows() : own->second->base.rows;
      if (rows * t.cols() != own->second->size())
        fail_input(base.path() + ": " + name, "has another shape than the adapter's tensor");
      trained.erase(own);
    }
    if (const auto it = by_weight.find(name); it != by_weight.end()) {
      item.module = it->second;
      std::vector<int64_t> shape{it->second->out_features, it->second->in_features};
      item.transposed = transposed.count(name) > 0;
      if (item.transposed) std::swap(shape[0], shape[1]);
      if (t.shape != shape)
        fail_input(base.path() + ": " + name, "has another shape than the adapter's factors");
      by_weight.erase(it);
    }
    items.push_back(item);
  };
  for (const BaseModel::Tensor& t : base.tensors()) add(t, t.name);
  if (unties(base.config(), adapter)) add(*base.find(stored_tensor(base.config(), kHead)), kHead);
  if (!by_weight.empty())
    fail_input(base.path(), "has no " + by_weight.begin()->first + ", which the adapter adapts");
  if (!trained.empty())
    fail_input(base.path(), "has no " + trained.begin()->first + ", which the adapter trains");
  return items;
}

// As transformers does: in order, a new file where the next tensor would not fit.
std::vector<Shard> split_shards(const std::vector<Item>& items, uint64_t max_bytes) {
  std::vector<Shard> shards;
  uint64_t used = 0;
  for (const Item& item : items) {
    if (shards.empty() || used + item.bytes() > max_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(item);
    used += item.bytes();
  }
  return shards;
}

std::string shard_name(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

// Writes one block while the caller forms the next. A block given to write() stays untouched until
// the second call after it.
class BackgroundWriter {
 public:
  explicit BackgroundWriter(SafetensorsWriter& out) : out_(out) {}
  ~BackgroundWriter() {
    if (pending_.valid()) pending_.wait();
  }
  void write(const void* data, uint64_t bytes, std::shared_ptr<const void> owner) {
    finish();
    pending_ = std::async(std::launch::async, [this, data, bytes, owner = std::move(owner)] {
      out_.write(data, bytes);
    });
  }
  void finish() {
    if (pending_.valid()) pending_.get();
  }

 private:
  SafetensorsWriter& out_;
  std::future<void> pending_;
};

std::vector<float> transpose(const std::vector<float>& x, int64_t rows, int64_t cols) {
  std::vector<float> y(x.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) y[size_t(j * rows + i)] = x[size_t(i * cols + j)];
  return y;
}

class Exporter {
 public:
  Exporter(const BaseModel& base, const Adapter& adapter, const ExportOptions& options,
           uint64_t total)
      : base_(base), adapter_(adapter), options_(options), total_(total) {}

  void write_shard(const fs::path& path, const Shard& shard) {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const Item& item : shard) entries.push_back({item.name, item.dtype, item.tensor->shape});
    SafetensorsWriter out(path, entries, {{"format", "pt"}}, false);
    {
      BackgroundWriter writer(out);
      for (const Item& item : shard) write_item(writer, item);
      writer.finish();
    }
    out.close();
  }
  std::vector<MergeError> take_errors() { return std::move(errors_); }

 private:
  void write_item(BackgroundWriter& writer, const Item& item) {
    const BaseModel::Tensor& t = *item.tensor;
    const bool copied = !item.module && !item.trained && item.dtype == t.dtype;
    const int64_t row_bytes = t.cols() * size_of(item.dtype);
    const int64_t step =
        std::max<int64_t>(1, int64_t(kBlockBytes) / std::max<int64_t>(1, row_bytes));
    RoundingError worst;
    const Update update = update_of(item);
    for (int64_t row = 0; row < t.rows(); row += step) {
      const int64_t rows = std::min(step, t.rows() - row);
      const WeightSlice slice = slice_of(item, row, rows);
      const uint64_t bytes = uint64_t(rows * row_bytes);
      if (copied) {
        writer.write(slice.matrix.data, bytes, slice.owner);
      } else {
        std::vector<char>& block = blocks_[turn_ ^= 1];
        if (block.size() < bytes) block.resize(bytes);
        const RoundingError e =
            merge_rows(matrix(block.data(), rows, t.cols(), item.dtype), slice.matrix, update.right,
                       update.left ? update.left + row * update.rank : nullptr, update.rank,
                       update.scaling, update.magnitude ? update.magnitude + row : nullptr);
        put_own_rows(item, row, matrix(block.data(), rows, t.cols(), item.dtype));
        worst.max_abs = std::max(worst.max_abs, e.max_abs);
        worst.max_magnitude = std::max(worst.max_magnitude, e.max_magnitude);
        if (!std::isfinite(e.max_abs) || !std::isfinite(e.max_magnitude))
          fail_run(base_.path() + ": " + t.name,
                   "holds a value that is not finite as " + std::string(name_of(item.dtype)) +
                       "; export with a wider --dtype, or check the base and the adapter");
        writer.write(block.data(), bytes, nullptr);
      }
      base_.release(t.name);  // what is still being written only faults in again
      done_ += bytes;
      if (options_.progress) options_.progress(done_, total_);
    }
    if (item.module)
      errors_.push_back({item.module->name, worst.max_abs,
                         worst.max_magnitude > 0 ? worst.max_abs / worst.max_magnitude : 0});
  }

  WeightSlice slice_of(const Item& item, int64_t row, int64_t rows) const {
    const int64_t cols = item.tensor->cols();
    if (!item.trained || !item.trained->rows.empty())
      return base_.slice(item.tensor->name, {row, row + rows, 0, cols});
    return {const_matrix(item.trained->values.data() + row * cols, rows, cols, DType::F32),
            nullptr};
  }

  // What is added to a tensor as it lies in the file: scaling left right, left(rows, rank),
  // right(rank, cols). B and A, or A^T and B^T.
  struct Update {
    const float *left = nullptr, *right = nullptr;
    int64_t rank = 0;
    float scaling = 0;
    const float* magnitude = nullptr;  // DoRA's, of the rows; no transposed weight has any
    std::vector<float> memory[2] = {};
  };
  Update update_of(const Item& item) const {
    Update u;
    if (!item.module) return u;
    const AdapterModule& m = *item.module;
    u.rank = m.rank;
    u.scaling = float(adapter_.scaling(m));
    if (!item.transposed) {
      u.left = m.b.data(), u.right = m.a.data();
      if (m.dora) u.magnitude = m.magnitude.data();
      return u;
    }
    u.memory[0] = transpose(m.a, m.rank, m.in_features);
    u.memory[1] = transpose(m.b, m.out_features, m.rank);
    u.left = u.memory[0].data(), u.right = u.memory[1].data();
    return u;
  }

  // Rows of single tokens in place of those of y, which begins with row `first`.
  void put_own_rows(const Item& item, int64_t first, Matrix y) const {
    if (!item.trained) return;
    const std::vector<int64_t>& rows = item.trained->rows;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] < first || rows[i] >= first + y.rows) continue;
      const float* values = item.trained->values.data() + int64_t(i) * y.cols;
      merge_rows(y.row_range(rows[i] - first, 1), const_matrix(values, 1, y.cols, DType::F32),
                 nullptr, nullptr, 0, 0);
    }
  }

  const BaseModel& base_;
  const Adapter& adapter_;
  const ExportOptions& options_;
  uint64_t total_, done_ = 0;
  std::array<std::vector<char>, 2> blocks_;
  int turn_ = 0;
  std::vector<MergeError> errors_;
};

void write_text(const fs::path& path, const std::string& text) {
  OutputFile out(path, false);
  out.write(text);
  out.close();
}

std::string index_text(const std::vector<Shard>& shards) {
  uint64_t bytes = 0, weights = 0;
  std::map<std::string, std::string> files;
  for (size_t i = 0; i < shards.size(); ++i)
    for (const Item& item : shards[i]) {
      bytes += item.bytes();
      weights += item.bytes() / uint64_t(size_of(item.dtype));
      files[item.name] = shard_name(i, shards.size());
    }
  Json json;
  json["metadata"] = {{"total_parameters", weights}, {"total_size", bytes}};
  json["weight_map"] = files;
  return json.dump(2) + "\n";
}

// config.json with the type that was written, under the key that it uses ("dtype" since
// transformers 4.56, "torch_dtype" before); byte for byte the base's where nothing changes.
std::string config_with_dtype(const std::string& text, DType dtype, bool untied) {
  Json config = Json::parse(text);
  bool found = false, changed = untied;
  if (untied) config["tie_word_embeddings"] = false;
  const auto set = [&](Json& object) {
    for (const char* key : {"dtype", "torch_dtype"})
      if (const auto it = object.find(key); it != object.end()) {
        found = true;
        if (*it == torch_name(dtype)) continue;
        *it = torch_name(dtype);
        changed = true;
      }
  };
  set(config);
  if (const auto nested = config.find("text_config"); nested != config.end() && nested->is_object())
    set(*nested);
  if (!found) config["torch_dtype"] = torch_name(dtype);  // read by every version
  return found && !changed ? text : config.dump(2) + "\n";
}

void copy_companion(const fs::path& from, const fs::path& to) {
  fs::create_directories(to.parent_path());
  const MappedFile in(from);
  OutputFile out(to, false);
  for (uint64_t at = 0; at < in.size(); at += kBlockBytes) {
    const uint64_t end = std::min(in.size(), at + kBlockBytes);
    out.write(in.data() + at, end - at);
    in.release(at, end);
  }
  out.close();
}

}  // namespace

std::vector<MergeError> export_merged(const BaseModel& base, const Adapter& adapter,
                                      const std::string& out, const ExportOptions& options) {
  const std::vector<Item> items = list_items(base, adapter, options);
  const std::vector<Shard> shards = split_shards(items, options.max_shard_bytes);
  uint64_t total = 0;
  for (const Item& item : items) total += item.bytes();
  Exporter exporter(base, adapter, options, total);
  create_directory_atomic(out, [&](const fs::path& dir) {
    for (size_t i = 0; i < shards.size(); ++i)
      exporter.write_shard(dir / shard_name(i, shards.size()), shards[i]);
    if (shards.size() > 1) write_text(dir / "model.safetensors.index.json", index_text(shards));
    write_text(
        dir / "config.json",
        config_with_dtype(base.config_text(), options.dtype.value_or(base.config().stored_dtype),
                          unties(base.config(), adapter)));
    for (const std::string& file : base.companion_files())
      copy_companion(fs::path(base.path()) / file, dir / file);
  });
  return exporter.take_errors();
}

void write_model(const BaseModel& base, const fs::path& dir, const ExportOptions& options,
                 const std::map<std::string, std::string>& metadata,
                 const std::function<void(const BaseModel::Tensor&, const EmitRows&)>& stream) {
  const std::vector<Shard> shards =
      split_shards(list_items(base, {}, options), options.max_shard_bytes);
  for (size_t i = 0; i < shards.size(); ++i) {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const Item& item : shards[i])
      entries.push_back({item.tensor->name, item.dtype, item.tensor->shape});
    SafetensorsWriter out(dir / shard_name(i, shards.size()), entries, metadata, false);
    std::vector<char> converted;
    for (const Item& item : shards[i]) {
      stream(*item.tensor, [&](ConstMatrix rows) {
        converted.resize(size_t(rows.rows * rows.cols * size_of(item.dtype)));
        const RoundingError e =
            merge_rows(matrix(converted.data(), rows.rows, rows.cols, item.dtype), rows, nullptr,
                       nullptr, 0, 0);
        if (!std::isfinite(e.max_abs) || !std::isfinite(e.max_magnitude))
          fail_run(item.tensor->name, "holds a value that is not finite as " +
                                          std::string(name_of(item.dtype)) +
                                          "; write the model in a wider type");
        out.write(converted.data(), converted.size());
      });
    }
    out.close();
  }
  if (shards.size() > 1) write_text(dir / "model.safetensors.index.json", index_text(shards));
  write_text(dir / "config.json",
             config_with_dtype(base.config_text(),
                               options.dtype.value_or(base.config().stored_dtype), false));
  for (const std::string& file : base.companion_files())
    copy_companion(fs::path(base.path()) / file, dir / file);
}

std::vector<MergeError> export_shards(const BaseModel& base, const Adapter& adapter, int ranks,
                                      const std::string& out, const ExportOptions& options,
                                      Communicator& world) {
  fs::path target = fs::absolute(out).lexically_normal();
  if (!target.has_filename()) target = target.parent_path();
  std::error_code ec;
  if (fs::exists(fs::symlink_status(target, ec)))
    fail_input(out, "exists already; name a directory that does not exist yet");
  // The merged model lies beside `out` until its parts are cut.
  const TemporaryDirectory beside(target);
  const fs::path merged = beside.path() / "merged";
  std::vector<MergeError> errors = export_merged(base, adapter, merged.string(), options);
  write_base_shards(*BaseModel::open(merged.string()), ranks, out, world);
  return errors;
}

void export_peft(const Adapter& adapter, const std::string& out) {
  create_directory_atomic(out, [&](const fs::path& dir) { write_adapter(dir, adapter); });
}

}  // namespace lorashard

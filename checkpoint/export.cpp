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

#include "checkpoint/expert_names.h"
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

// One tensor of the export: the base's, its type in the file, and its factors if it has any.
struct Item {
  const BaseModel::Tensor* tensor;
  DType dtype;
  const AdapterModule* module;
  WeightFactors factors = {};  // which of the module's
  uint64_t bytes() const {
    return uint64_t(tensor->rows() * tensor->cols()) * uint64_t(size_of(dtype));
  }
};
using Shard = std::vector<Item>;

std::vector<Item> list_items(const BaseModel& base, const Adapter& adapter,
                             const ExportOptions& options) {
  const std::string& carried = adapter.config.base_digest;
  if (!carried.empty() && !options.base_digest.empty() && carried != options.base_digest)
    fail_input(base.path(), "the adapter was trained on another base: it carries the digest " +
                                carried + ", this base's is " + options.base_digest);
  std::map<std::string, const AdapterModule*> by_weight;
  for (const AdapterModule& m : adapter.modules) by_weight[m.name] = &m;
  std::set<std::string> found;
  std::vector<Item> items;
  for (const BaseModel::Tensor& t : base.tensors()) {
    items.push_back({&t, options.dtype.value_or(t.dtype), nullptr});
    if (!t.name.ends_with(".weight")) continue;
    const WeightFactors factors = weight_factors(t.name);
    const auto it = by_weight.find(factors.module);
    if (it == by_weight.end()) continue;
    const AdapterModule& m = *it->second;
    items.back().module = &m;
    items.back().factors = factors;
    if (t.shape != std::vector<int64_t>{m.out_features / factors.parts(), m.in_features})
      fail_input(base.path() + ": " + t.name, "has another shape than the adapter's factors");
    found.insert(factors.module);
  }
  for (const auto& [name, module] : by_weight)
    if (!found.count(name))
      fail_input(base.path(), "has no " + name + ", which the adapter adapts");
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

class Exporter {
 public:
  Exporter(const BaseModel& base, const Adapter& adapter, const ExportOptions& options,
           uint64_t total)
      : base_(base), adapter_(adapter), options_(options), total_(total) {}

  void write_shard(const fs::path& path, const Shard& shard) {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const Item& item : shard)
      entries.push_back({item.tensor->name, item.dtype, item.tensor->shape});
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
    const bool copied = !item.module && item.dtype == t.dtype;
    const int64_t row_bytes = t.cols() * size_of(item.dtype);
    const int64_t step =
        std::max<int64_t>(1, int64_t(kBlockBytes) / std::max<int64_t>(1, row_bytes));
    RoundingError worst;
    for (int64_t row = 0; row < t.rows(); row += step) {
      const int64_t rows = std::min(step, t.rows() - row);
      const WeightSlice slice = base_.slice(t.name, {row, row + rows, 0, t.cols()});
      const uint64_t bytes = uint64_t(rows * row_bytes);
      if (copied) {
        writer.write(slice.matrix.data, bytes, slice.owner);
      } else {
        std::vector<char>& block = blocks_[turn_ ^= 1];
        if (block.size() < bytes) block.resize(bytes);
        const RoundingError e =
            merge(matrix(block.data(), rows, t.cols(), item.dtype), slice.matrix, item, row);
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
    if (!item.module) return;
    const double relative = worst.max_magnitude > 0 ? worst.max_abs / worst.max_magnitude : 0;
    if (item.factors.expert > 0 || item.factors.second_half) {  // one entry for all experts
      MergeError& e = errors_.back();
      e.max_abs = std::max<double>(e.max_abs, worst.max_abs);
      e.max_relative = std::max(e.max_relative, relative);
    } else {
      errors_.push_back({item.module->name, worst.max_abs, relative});
    }
  }

  RoundingError merge(Matrix y, ConstMatrix w, const Item& item, int64_t first_row) const {
    const AdapterModule* m = item.module;
    if (!m) return merge_rows(y, w, nullptr, nullptr, 0, 0);
    if (const int64_t e = item.factors.expert; e >= 0) {
      const int64_t r = m->lora_rank();
      const std::vector<float> b =
          expert_rows_of_b(*m, e, item.factors.first_row(*m) + first_row, y.rows);
      return merge_rows(y, w, m->a.data() + e * r * m->in_features, b.data(), r,
                        float(adapter_.scaling(*m)));
    }
    return merge_rows(y, w, m->a.data(), m->b.data() + first_row * m->rank, m->rank,
                      float(adapter_.scaling(*m)));
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
      files[item.tensor->name] = shard_name(i, shards.size());
    }
  Json json;
  json["metadata"] = {{"total_parameters", weights}, {"total_size", bytes}};
  json["weight_map"] = files;
  return json.dump(2) + "\n";
}

// config.json with the type that was written, under the key that it uses ("dtype" since
// transformers 4.56, "torch_dtype" before); byte for byte the base's where nothing changes.
std::string config_with_dtype(const std::string& text, DType dtype) {
  Json config = Json::parse(text);
  bool found = false, changed = false;
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
        config_with_dtype(base.config_text(), options.dtype.value_or(base.config().stored_dtype)));
    for (const std::string& file : base.companion_files())
      copy_companion(fs::path(base.path()) / file, dir / file);
  });
  return exporter.take_errors();
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

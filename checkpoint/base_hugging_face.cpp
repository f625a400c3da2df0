// Opens a Hugging Face directory as a base.
#include <algorithm>
#include <cstring>
#include <set>

#include "checkpoint/base_storage.h"
#include "checkpoint/json_strict.h"
#include "configs/error.h"

namespace lorashard {
namespace {

using nlohmann::json;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kHead = "lm_head.weight";

bool ends_with(const std::string& s, std::string_view ending) {
  return s.size() >= ending.size() &&
         s.compare(s.size() - ending.size(), ending.size(), ending) == 0;
}

// tensor -> file name of the index, each file checked to lie inside the directory.
std::map<std::string, std::string> read_index(const fs::path& index) {
  const std::string source = index.string();
  const json object = parse_json_strict(read_text(index), source);
  if (!object.is_object() || !object.contains("weight_map") || !object["weight_map"].is_object() ||
      object["weight_map"].empty())
    fail_input(source, "has no weight_map; it must map each tensor to its file");
  std::map<std::string, std::string> map;
  for (const auto& [name, value] : object["weight_map"].items()) {
    const std::string where = source + ": " + printable(name);
    if (!value.is_string() || value.get_ref<const std::string&>().empty())
      fail_input(where, "its file name is not a string");
    const auto file = value.get<std::string>();
    const fs::path relative(file);
    bool outside = relative.is_absolute();
    for (const fs::path& part : relative) outside = outside || part == "..";
    if (outside)
      fail_input(where, "names the file " + printable(file) +
                            " outside the model's directory; files must lie beside the index");
    std::error_code ec;
    if (!fs::exists(index.parent_path() / relative, ec))
      fail_input(where, "names the file " + printable(file) + ", which does not exist");
    map[name] = file;
  }
  return map;
}

[[noreturn]] void fail_without_weights(const fs::path& dir) {
  for (const auto& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("pytorch_model", 0) == 0 || ends_with(name, ".pth") || ends_with(name, ".gguf"))
      fail_input(dir.string(), "holds its weights as " + printable(name) +
                                   " only; they must be in safetensors (" + kSingle + " or " +
                                   kIndex + " with shards)");
  }
  fail_input(dir.string(), std::string("holds neither ") + kSingle + " nor " + kIndex);
}

bool equal_bytes(const SafetensorsFile& fa, const TensorInfo& a, const SafetensorsFile& fb,
                 const TensorInfo& b) {
  if (a.dtype != b.dtype || a.shape != b.shape) return false;
  constexpr uint64_t kStep = 4 << 20;
  for (uint64_t at = 0; at < a.bytes; at += kStep) {
    const uint64_t n = std::min(kStep, a.bytes - at);
    const bool same = std::memcmp(fa.data(a) + at, fb.data(b) + at, n) == 0;
    fa.file().release(a.offset + at, a.offset + at + n);
    fb.file().release(b.offset + at, b.offset + at + n);
    if (!same) return false;
  }
  return true;
}

struct Place {
  size_t file;
  const TensorInfo* info;
};

// Tensors that old files hold and that are computed since: rotary frequencies, GPT-2's causal
// masks.
bool is_computed(const ModelConfig& config, const std::string& tensor) {
  if (ends_with(tensor, "rotary_emb.inv_freq")) return true;
  return config.fused_qkv &&
         (ends_with(tensor, ".attn.bias") || ends_with(tensor, ".attn.masked_bias"));
}

std::string embedding_tensor(const ModelConfig& config) {
  return outer_name(config, config.names.embedding) + ".weight";
}

// Gives the tensors of a base that was saved without its head (Qwen3Model, not Qwen3ForCausalLM)
// the prefix that they have with it, as transformers does, where no tensor has it already. Returns
// whether it did.
bool add_base_prefix(const ModelConfig& config, std::map<std::string, Place>& places) {
  const std::string prefix = std::string(config.names.root) + ".";
  const auto prefixed = [&](const auto& entry) { return entry.first.starts_with(prefix); };
  if (!places.count(embedding_tensor(config).substr(prefix.size())) ||
      std::any_of(places.begin(), places.end(), prefixed))
    return false;
  std::map<std::string, Place> named;
  for (const auto& [name, place] : places) named[name == kHead ? name : prefix + name] = place;
  places = std::move(named);
  return true;
}

// Tied embeddings with both tensors in the files: the head is left out if it repeats the embedding
// and refused if not (transformers versions differ in which of the two they use then). A head
// alone stands for both.
void resolve_tied_head(const ModelConfig& config, const BaseStorage& storage,
                       std::map<std::string, Place>& places, std::vector<std::string>& notes) {
  const auto head = places.find(kHead);
  if (head == places.end()) return;
  const SafetensorsFile& file = storage.files[head->second.file];
  const std::string where = file.file().path().string() + ": " + kHead;
  const std::string name = embedding_tensor(config);
  const auto embedding = places.find(name);
  if (embedding == places.end()) {
    places[name] = head->second;
    notes.push_back(where + ": stands for the tied embedding too");
  } else if (equal_bytes(storage.files[embedding->second.file], *embedding->second.info, file,
                         *head->second.info)) {
    notes.push_back(where + ": left out, it repeats the tied embedding");
  } else {
    fail_input(where, "differs from " + name +
                          " although config.json says tie_word_embeddings; set that to false, or "
                          "remove the tensor");
  }
  places.erase(kHead);
}

}  // namespace

std::unique_ptr<BaseModel> open_hugging_face(const std::string& path) {
  const fs::path dir(path);
  std::error_code ec;
  if (!fs::exists(dir / "config.json", ec))
    fail_input(path, "holds no config.json; give a Hugging Face directory or a base shard set");
  std::string config_text = read_text(dir / "config.json");
  std::vector<std::string> notes;
  const ModelConfig config =
      parse_model_config(config_text, (dir / "config.json").string(), &notes);
  auto storage = std::make_shared<BaseStorage>();

  // transformers, too, prefers the single file where both forms lie side by side.
  std::map<std::string, std::string> weight_map;
  std::vector<std::string> names;
  if (fs::exists(dir / kSingle, ec)) {
    names = {kSingle};
  } else if (fs::exists(dir / kIndex, ec)) {
    weight_map = read_index(dir / kIndex);
    std::set<std::string> unique;
    for (const auto& [tensor, file] : weight_map) unique.insert(file);
    names.assign(unique.begin(), unique.end());
  } else {
    fail_without_weights(dir);
  }
  for (const std::string& name : names) storage->files.push_back(SafetensorsFile::open(dir / name));

  std::map<std::string, Place> places;
  size_t computed = 0;
  std::string first_computed;
  for (size_t f = 0; f < names.size(); ++f) {
    const std::string file = (dir / names[f]).string();
    for (const TensorInfo& t : storage->files[f].tensors()) {
      const std::string where = file + ": " + printable(t.name);
      if (is_computed(config, t.name)) {
        if (computed++ == 0) first_computed = where;
        continue;
      }
      if (!weight_map.empty()) {
        const auto listed = weight_map.find(t.name);
        if (listed == weight_map.end())
          fail_input(where, std::string("is not listed in the weight_map of ") + kIndex);
        if (listed->second != names[f])
          fail_input(where, "is here, but " + std::string(kIndex) + " places it in " +
                                printable(listed->second));
      }
      places[t.name] = {f, &t};
    }
  }
  // A tied head is listed by some indexes that were written from the model and not from the files.
  for (const auto& [tensor, file] : weight_map)
    if (!is_computed(config, tensor) && !places.count(tensor) &&
        !(config.tied_embeddings && tensor == kHead))
      fail_input((dir / file).string() + ": " + printable(tensor),
                 std::string("is missing, though ") + kIndex + " places it here");
  if (computed > 0)
    notes.push_back(
        first_computed + ": left out, it is computed from config.json" +
        (computed > 1 ? " (and " + std::to_string(computed - 1) + " more such tensors)" : ""));
  if (add_base_prefix(config, places))
    notes.push_back(path +
                    ": its tensors are named as of a base saved without its head; they are " +
                    "read as " + config.names.root + ".…");
  if (config.tied_embeddings) resolve_tied_head(config, *storage, places, notes);

  std::vector<BaseModel::Tensor> tensors;
  const std::string whole = names.size() == 1 ? (dir / names[0]).string() : path;
  for (const TensorSpec& spec : model_tensors(config)) {
    const auto place = places.find(spec.name);
    if (place == places.end())
      fail_input(whole + ": " + spec.name,
                 "is missing; " + config.architecture + " with this config.json needs it");
    const TensorInfo& info = *place->second.info;
    check_tensor(storage->files[place->second.file].file().path().string(), spec, info.dtype,
                 info.shape);
    tensors.push_back({spec.name, info.dtype, info.shape});
    storage->pieces[spec.name] = {{place->second.file, info, {0, spec.rows, 0, spec.cols}}};
    places.erase(place);
  }
  if (!places.empty()) {
    const auto& [name, place] = *places.begin();
    fail_input(storage->files[place.file].file().path().string() + ": " + printable(name),
               "is not a tensor of " + config.architecture + " with this config.json");
  }
  storage->companions = find_companions(path);
  return std::make_unique<BaseModel>(path, config, std::move(config_text), std::move(tensors),
                                     std::move(storage), std::move(notes));
}

}  // namespace lorashard

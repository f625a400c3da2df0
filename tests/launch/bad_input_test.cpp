// Wrong configurations, models, data, adapters and places to write, alone and on two ranks: one
// error that says where and what, its exit status, nothing written, no rank left waiting.
#include <sys/mount.h>

#include <cstring>
#include <functional>

#include "tests/launch/scene.h"

namespace lorashard::test {
namespace {

constexpr double kLimit = 30;  // seconds; an idle machine takes less than one

struct BadCase {
  std::string name;
  std::string where;  // CONFIG, MODEL and DIR stand for the scene's paths
  std::vector<std::string> parts;
  std::function<void(Scene&)> spoil;
  std::vector<std::string> more = {};  // arguments; DIR stands for the scene's path
  int ranks = 2;
  bool alone_too = true;
};
void PrintTo(const BadCase& c, std::ostream* out) { *out << c.name; }

std::string resolved(const Scene& scene, std::string text) {
  text = replace_all(text, "CONFIG", scene.config.string());
  text = replace_all(text, "MODEL", scene.model.string());
  return replace_all(text, "DIR", scene.dir.path().string());
}

class BadInput : public testing::TestWithParam<BadCase> {};

TEST_P(BadInput, IsRefusedAloneAndOnRanks) {
  const BadCase& c = GetParam();
  Scene scene;
  c.spoil(scene);
  std::vector<std::string> more;
  for (const std::string& argument : c.more) more.push_back(resolved(scene, argument));
  std::vector<std::string> parts;
  for (const std::string& part : c.parts) parts.push_back(resolved(scene, part));
  const auto before = scene.tree();
  std::vector<std::string> lines;
  std::vector<int> ranks{c.ranks};
  if (c.alone_too) ranks.push_back(0);
  for (const int n : ranks) {
    SCOPED_TRACE(std::to_string(n) + " ranks");
    Command command = scene.command(n, scene.configured("train", more));
    command.time_limit_s = kLimit;
    lines.push_back(expect_one_error(test::run(command), 2, resolved(scene, c.where), parts));
    EXPECT_EQ(difference(before, scene.tree()), std::vector<std::string>{});
  }
  // However many ranks, the words are the same.
  EXPECT_EQ(lines.front(), lines.back());
}

void nothing(Scene&) {}

std::function<void(Scene&)> replace_in_config(const std::string& from, const std::string& to) {
  return [=](Scene& s) { s.change_config(from, to); };
}

std::function<void(Scene&)> model_setting(const std::string& pointer, const json& value) {
  return [=](Scene& s) {
    json config = json::parse(read_file(s.model / "config.json"));
    config[json::json_pointer(pointer)] = value;
    write_file(s.model / "config.json", config.dump(1));
  };
}

// Line `number` (from 1) of the training data becomes `text`.
std::function<void(Scene&)> data_line(int number, const std::string& text) {
  return [=](Scene& s) {
    std::istringstream lines(read_file(s.data));
    std::string all;
    int n = 0;
    for (std::string line; std::getline(lines, line);) all += (++n == number ? text : line) + "\n";
    write_file(s.data, all);
  };
}

std::function<void(Scene&)> weights(const std::function<void(std::string&)>& change) {
  return [=](Scene& s) {
    std::string bytes = read_file(s.model / "model.safetensors");
    change(bytes);
    write_file(s.model / "model.safetensors", bytes);
  };
}

// The JSON header of a safetensors file, changed in place.
std::function<void(Scene&)> header(const std::function<void(json&)>& change) {
  return weights([=](std::string& bytes) {
    uint64_t size;
    std::memcpy(&size, bytes.data(), 8);
    json h = json::parse(bytes.substr(8, size));
    change(h);
    const std::string text = h.dump();
    const uint64_t new_size = text.size();
    std::string out(8, '\0');
    std::memcpy(out.data(), &new_size, 8);
    bytes = out + text + bytes.substr(8 + size);
  });
}

void not_a_number(std::string& bytes) {
  uint64_t size;
  std::memcpy(&size, bytes.data(), 8);
  const json h = json::parse(bytes.substr(8, size));
  const uint64_t at = h.at("model.layers.1.mlp.up_proj.weight").at("data_offsets")[0];
  bytes[8 + size + at + 6] = char(0xc0);  // bf16 0x7fc0, little-endian
  bytes[8 + size + at + 7] = 0x7f;
}

// model.safetensors under an index that names `file` for every tensor.
std::function<void(Scene&)> index_naming(const std::string& file, bool put_it_there) {
  return [=](Scene& s) {
    const std::string bytes = read_file(s.model / "model.safetensors");
    uint64_t size;
    std::memcpy(&size, bytes.data(), 8);
    const json h = json::parse(bytes.substr(8, size));
    json map = json::object();
    for (const auto& [name, entry] : h.items()) {
      if (name != "__metadata__") map[name] = file;
    }
    write_file(s.model / "model.safetensors.index.json", json{{"weight_map", map}}.dump());
    fs::remove(s.model / "model.safetensors");
    if (put_it_there) write_file(s.model / file, bytes);
  };
}

// An adapter that this program made on another base.
void foreign_adapter(Scene& s) {
  ASSERT_EQ(
      s.train(0, {"--set", "train.steps=1", "--set", "output.dir=" + (s.dir / "first").string()})
          .status,
      0);
  fs::remove_all(s.adapter);
  fs::rename(s.dir / "first/adapter", s.adapter);
  fs::remove_all(s.dir / "first");
  weights([](std::string& bytes) { bytes[bytes.size() - 2] ^= 1; })(s);
}

std::vector<std::string> set(const std::string& setting) { return {"--set", setting}; }

const std::vector<BadCase> kConfigs{
    {"misspelt_setting",
     "CONFIG:5:34",
     {"\"weight_decai\"", "weight_decay"},
     replace_in_config("weight_decay", "weight_decai")},
    {"wrong_type", "CONFIG:7:16", {"steps"}, replace_in_config("steps: 8", "steps: eight")},
    {"repeated_setting",
     "CONFIG:7:18",
     {"steps"},
     replace_in_config("steps: 8", "steps: 8 steps: 9")},
    {"out_of_range",
     "CONFIG:5:13",
     {"learning_rate"},
     replace_in_config("learning_rate: 0.002", "learning_rate: -1")},
    {"unknown_override", "--set lora.rnak", {"rank"}, nothing, set("lora.rnak=4")},
    {"override_of_wrong_type", "--set train.steps", {"many"}, nothing, set("train.steps=many")},
    {"no_config", "CONFIG", {"cannot be read"}, [](Scene& s) { fs::remove(s.config); }},
    {"chat", "--set data.format", {"CHAT"}, nothing, set("data.format=CHAT")},
    {"full", "--set train.method", {"FULL"}, nothing, set("train.method=FULL")},
    {"packing", "--set data.packing", {"packing"}, nothing, set("data.packing=true")},
    {"dora", "--set lora.use_dora", {"use_dora"}, nothing, set("lora.use_dora=true")},
    {"reproducible",
     "--set parallel.reproducible",
     {"reproducible"},
     nothing,
     set("parallel.reproducible=true")},
    {"sequence_parallel",
     "--set parallel.sequence",
     {"sequence"},
     nothing,
     set("parallel.sequence=true")},
    {"cuda", "--set compute.backend", {"CUDA"}, nothing, set("compute.backend=CUDA")},
    {"batch_not_a_multiple",
     "--set train.global_batch_size",
     {"3", "micro_batch_size"},
     nothing,
     set("train.global_batch_size=3")},
    {"batch_does_not_fit_ranks",
     "--set train.global_batch_size",
     {"6", "4"},
     nothing,
     set("train.global_batch_size=6"),
     2,
     false},
    {"degree_does_not_divide_ranks",
     "--set parallel.tensor",
     {"2", "3 ranks"},
     nothing,
     set("parallel.tensor=2"),
     3,
     false},
    {"degree_without_ranks",
     "--set parallel.tensor",
     {"3", "ranks"},
     nothing,
     set("parallel.tensor=3"),
     0,
     false},
    {"more_ranks_than_heads",
     "CONFIG:7:12",
     {"7", "6 query heads"},
     replace_in_config("train {", "parallel { tensor: 7 } train {"),
     {},
     7,
     false},
    {"no_such_module",
     "CONFIG:4:8",
     {"query"},
     [](Scene& s) {
       const std::string text = read_file(s.config);
       const size_t at = text.find("init_from");
       write_file(s.config, text.substr(0, at) + "target_modules: \"query\" " +
                                text.substr(text.find('}', at)));
     }},
    {"rank_unlike_the_adapter", "--set lora.rank", {"init_from", "4"}, nothing, set("lora.rank=5")},
    {"rank_pattern_with_an_adapter",
     "--set lora.rank_pattern.q_proj",
     {"init_from"},
     nothing,
     set("lora.rank_pattern.q_proj=2")},
};

const std::vector<BadCase> kModels{
    {"no_model", "DIR/gone", {}, nothing, set("model.path=DIR/gone")},
    {"no_config_json",
     "MODEL",
     {"config.json"},
     [](Scene& s) { fs::remove(s.model / "config.json"); }},
    {"config_json_is_no_json",
     "MODEL/config.json",
     {},
     [](Scene& s) { write_file(s.model / "config.json", "{\"hidden_size\": 48,"); }},
    {"no_weights",
     "MODEL",
     {"safetensors"},
     [](Scene& s) { fs::remove(s.model / "model.safetensors"); }},
    {"truncated_weights", "MODEL/model.safetensors", {}, weights([](std::string& b) {
       b.resize(b.size() - 1000);
     })},
    {"truncated_header", "MODEL/model.safetensors", {}, weights([](std::string& b) {
       b.resize(100);
     })},
    {"empty_weights", "MODEL/model.safetensors", {}, weights([](std::string& b) { b.clear(); })},
    {"lying_header_size", "MODEL/model.safetensors", {}, weights([](std::string& b) { b[6] = 1; })},
    {"overlapping_tensors", "MODEL/model.safetensors", {"model.norm.weight"}, header([](json& h) {
       h["model.norm.weight"]["data_offsets"] =
           h["model.layers.0.input_layernorm.weight"]["data_offsets"];
     })},
    {"offsets_past_the_end", "MODEL/model.safetensors: model.norm.weight", {}, header([](json& h) {
       h["model.norm.weight"]["data_offsets"] = {1 << 30, (1 << 30) + 96};
     })},
    {"not_a_number",
     "MODEL/model.safetensors: model.layers.1.mlp.up_proj.weight",
     {},
     weights(not_a_number)},
    {"wrong_shape",
     "MODEL/model.safetensors",
     {"model.layers.0.mlp.", "100", "96"},
     model_setting("/intermediate_size", 96)},
    {"missing_tensor",
     "MODEL/model.safetensors",
     {"model.layers.2."},
     model_setting("/num_hidden_layers", 3)},
    {"index_naming_an_outside_file",
     "MODEL/model.safetensors.index.json",
     {"../outside.safetensors"},
     index_naming("../outside.safetensors", true)},
    {"index_naming_a_missing_file",
     "MODEL/model.safetensors.index.json",
     {"model-2.safetensors"},
     index_naming("model-2.safetensors", false)},
    {"unsupported_architecture",
     "MODEL/config.json",
     {"MambaForCausalLM"},
     model_setting("/architectures", {"MambaForCausalLM"})},
    {"unsupported_rope",
     "MODEL/config.json",
     {"yarn"},
     model_setting("/rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}})},
    {"unsupported_activation",
     "MODEL/config.json",
     {"relu2"},
     model_setting("/hidden_act", "relu2")},
    {"no_tokenizer_for_text",
     "MODEL/tokenizer.json",
     {},
     [](Scene& s) { write_file(s.data, "{\"text\": \"a\"}\n"); },
     set("data.format=TEXT")},
    {"adapter_for_another_base", "DIR/adapter", {"digest"}, foreign_adapter},
    {"no_adapter", "DIR/adapter", {}, [](Scene& s) { fs::remove_all(s.adapter); }},
    {"truncated_adapter",
     "DIR/adapter/adapter_model.safetensors",
     {},
     [](Scene& s) { fs::resize_file(s.adapter / "adapter_model.safetensors", 3000); }},
};

const std::vector<BadCase> kData{
    {"no_data", "DIR/data.jsonl", {"cannot be read"}, [](Scene& s) { fs::remove(s.data); }},
    {"empty_data",
     "DIR/data.jsonl",
     {"at least one"},
     [](Scene& s) { write_file(s.data, "\n \n"); }},
    {"empty_evaluation",
     "DIR/eval.jsonl",
     {"at least one"},
     [](Scene& s) { write_file(s.eval, ""); }},
    {"data_is_a_folder", "DIR", {"folder"}, nothing, set("data.train=DIR")},
    {"no_json", "DIR/data.jsonl:3", {"not JSON"}, data_line(3, "{\"input_ids\": [1, 2")},
    {"no_json_in_evaluation",
     "DIR/eval.jsonl:2",
     {"not JSON"},
     [](Scene& s) { write_file(s.eval, "{\"input_ids\":[1,2]}\nnull}\n"); }},
    {"no_object", "DIR/data.jsonl:16", {"array"}, data_line(16, "[1, 2, 3]")},
    {"wrong_field",
     "DIR/data.jsonl:1",
     {"input_ids", "text"},
     data_line(1, "{\"text\": \"hello\"}")},
    {"id_out_of_range",
     "DIR/data.jsonl:5",
     {"301", "300"},
     data_line(5, "{\"input_ids\": [1, 2, 301]}")},
    {"negative_id", "DIR/data.jsonl:5", {"-1"}, data_line(5, "{\"input_ids\": [1, -1]}")},
    {"labels_of_another_length",
     "DIR/data.jsonl:5",
     {"labels"},
     data_line(5, "{\"input_ids\": [1, 2], \"labels\": [1]}")},
    {"invalid_utf8", "DIR/data.jsonl:5", {"UTF-8", "byte 3"}, data_line(5, "{\"\xff\": 1}")},
    {"too_long",
     "DIR/data.jsonl:7",
     {"40 tokens", "32"},
     data_line(7, json{{"input_ids", std::vector<int>(40, 3)}}.dump()),
     set("data.long_sequences=REFUSE")},
};

const std::vector<BadCase> kOutputs{
    {"parent_is_a_file",
     "--set output.dir",
     {"DIR/file/run"},
     [](Scene& s) { write_file(s.dir / "file", "x"); },
     set("output.dir=DIR/file/run")},
    {"output_is_a_file",
     "--set output.dir",
     {"DIR/file"},
     [](Scene& s) { write_file(s.dir / "file", "x"); },
     set("output.dir=DIR/file")},
    {"unwritable_place",
     "--set output.dir",
     {"/proc/lorashard"},
     nothing,
     set("output.dir=/proc/lorashard/run")},
};

std::string name_of_case(const testing::TestParamInfo<BadCase>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Config, BadInput, testing::ValuesIn(kConfigs), name_of_case);
INSTANTIATE_TEST_SUITE_P(Model, BadInput, testing::ValuesIn(kModels), name_of_case);
INSTANTIATE_TEST_SUITE_P(Data, BadInput, testing::ValuesIn(kData), name_of_case);
INSTANTIATE_TEST_SUITE_P(Output, BadInput, testing::ValuesIn(kOutputs), name_of_case);

TEST(BadCommandLine, IsToldOnceWithStatusTwo) {
  const Scene scene;
  const std::vector<std::vector<std::string>> wrong{
      {},
      {"fly"},
      {"train"},
      {"train", "a", "b"},
      {"train", scene.config, "--set"},
      {"generate", "--model", scene.model},
      {"export", "--model", scene.model, "--adapter", scene.adapter, "--out", "x", "--format",
       "gguf"},
      {"shard", "--model", scene.model, "--tp", "two", "--out", "x"},
  };
  for (const auto& arguments : wrong) {
    for (const int ranks : {0, 2}) {
      if (ranks == 2 && arguments.size() > 2) continue;
      expect_one_error(test::run(scene.command(ranks, arguments)), 2, "command line", {"--help"});
    }
  }
  const std::string out = (scene.dir / "out").string();
  expect_one_error(scene.lorashard({"shard", "--model", scene.model, "--tp", "0", "--out", out}), 2,
                   "--tp");
  expect_one_error(scene.lorashard({"shard", "--model", scene.model, "--tp", "7", "--out", out}), 2,
                   "--tp", {"6"});
  expect_one_error(scene.lorashard({"shard", "--model", scene.model, "--tp", "2", "--quantize",
                                    "nf4", "--out", out}),
                   2, "--quantize", {"nf4"});
  expect_one_error(scene.lorashard({"export", "--model", scene.model, "--adapter", scene.adapter,
                                    "--out", out, "--max-shard-size", "5 apples"}),
                   2, "--max-shard-size", {"5GB"});
  expect_one_error(scene.lorashard({"export", "--model", scene.model, "--adapter", scene.adapter,
                                    "--out", out, "--names", "vllm"}),
                   2, "--names", {"--format peft"});
  expect_one_error(scene.lorashard({"generate", "--model", scene.model, "--prompt", "x"}), 2,
                   (scene.model / "tokenizer.json").string());
  EXPECT_FALSE(fs::exists(out));
  for (const char* command :
       {"train", "eval", "shard", "export", "generate", "inspect", "tokenize"}) {
    const Outcome help = scene.lorashard({command, "--help"});
    EXPECT_EQ(help.status, 0);
    EXPECT_EQ(lines_with(help.out, std::string("lorashard ") + command).size(), 1u) << help.text();
    EXPECT_EQ(help.err, "");
  }
}

// A file system of a given size at a folder, while this lives.
class SmallDisk {
 public:
  SmallDisk(const fs::path& where, const std::string& size) : where_(where) {
    fs::create_directories(where);
    mounted_ = ::mount("none", where.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(where_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }

 private:
  fs::path where_;
  bool mounted_;
};

TEST(FullDisk, EndsTheRunAndLeavesWholeCheckpointsOnly) {
  const Scene scene;
  // A checkpoint takes about 130 KB: the first fits, with the older one kept the next does not.
  const SmallDisk disk(scene.dir / "disk", "200k");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small file system needs root";
  const fs::path run = scene.dir / "disk/run";
  for (const int ranks : {2, 0}) {
    Command command =
        scene.command(ranks, scene.configured("train", {"--resume", "--set", "checkpoint.every=2",
                                                        "--set", "output.dir=" + run.string()}));
    command.time_limit_s = kLimit;
    const std::string line = expect_one_error(test::run(command), 3, run.string(), {});
    EXPECT_NE(line.find("No space left"), std::string::npos) << line;
    for (const auto& entry : fs::directory_iterator(run / "checkpoints")) {
      const std::string name = entry.path().filename();
      EXPECT_TRUE(name == "latest" || name == "step-000002") << name;
    }
    EXPECT_EQ(scene.lorashard({"inspect", run / "checkpoints/step-000002"}).status, 0);
  }
  // Export onto it.
  const fs::path out = scene.dir / "disk/merged";
  fs::remove_all(run);
  const Outcome done = scene.lorashard({"export", "--model", scene.model, "--adapter",
                                        scene.adapter, "--out", out, "--dtype", "fp32"});
  const std::string line = expect_one_error(done, 3, (scene.dir / "disk").string(), {});
  EXPECT_NE(line.find("No space left"), std::string::npos) << line;
  EXPECT_TRUE(fs::is_empty(scene.dir / "disk"));
}

}  // namespace
}  // namespace lorashard::test

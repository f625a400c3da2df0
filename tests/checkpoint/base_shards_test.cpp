#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "checkpoint/base_inspect.h"
#include "checkpoint/base_model.h"
#include "checkpoint/safetensors.h"
#include "parallel/threads.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace lorashard::test {
namespace {

class BaseShardsTest : public ::testing::Test {
 protected:
  void SetUp() override { ::setenv("XDG_CACHE_HOME", (dir_ / "cache").c_str(), 1); }
  fs::path path(const std::string& name) { return dir_ / name; }
  void shard(const std::string& model, int tp, const std::string& out, int world = 1) {
    run_thread_ranks(world, [&](Communicator& w) {
      write_base_shards(*BaseModel::open(path(model).string()), tp, path(out).string(), w);
    });
  }
  std::string digest(const std::string& name, int world = 1) {
    std::string result;
    run_thread_ranks(world, [&](Communicator& w) {
      const std::string d = BaseModel::open(path(name).string())->digest(w);
      if (w.rank() == 0) result = d;
    });
    return result;
  }
  // Files are 0444; tests that damage them replace them.
  static void rewrite(const fs::path& file, const std::string& text) {
    fs::remove(file);
    std::ofstream(file, std::ios::binary) << text;
  }
  TempDir dir_;
};

std::vector<char> bytes_of(const WeightSlice& s) {
  std::vector<char> bytes;
  for (int64_t r = 0; r < s.matrix.rows; ++r)
    bytes.insert(bytes.end(), s.matrix.at(r, 0),
                 s.matrix.at(r, 0) + s.matrix.cols * size_of(s.matrix.dtype));
  return bytes;
}

TEST_F(BaseShardsTest, AnyDegreeReadsWhatAnyDegreeWrote) {
  TinyModelOptions o;
  o.model_type = "qwen2";     // 6 query and 3 key/value heads, biases
  o.intermediate_size = 272;  // cut in blocks of 16, 17 of them
  const TinyModel model = write_tiny_model(path("m"), o);
  const auto original = BaseModel::open(path("m").string());
  const std::string expected = digest("m");
  for (const int tp : {1, 2, 3, 4, 6}) {
    const std::string name = "tp" + std::to_string(tp);
    shard("m", tp, name, tp == 3 ? 2 : 1);
    const auto base = BaseModel::open(path(name).string());
    EXPECT_TRUE(base->is_shard_set());
    EXPECT_EQ(base->config_text(), original->config_text());
    EXPECT_EQ(base->companion_files().size(), original->companion_files().size());
    EXPECT_EQ(digest(name, 2), expected);
    for (int ranks = 1; ranks <= 6; ++ranks)
      for (int rank = 0; rank < ranks; ++rank)
        for (const TensorSpec& spec : model_tensors(model.config)) {
          const TensorPart part =
              tensor_part(model.config, spec.split, spec.rows, spec.cols, rank, ranks);
          ASSERT_EQ(bytes_of(base->slice(spec.name, part)),
                    bytes_of(original->slice(spec.name, part)))
              << spec.name << " rank " << rank << " of " << ranks << " from " << name;
        }
  }
}

TEST_F(BaseShardsTest, SameDegreeTakesViewsOfItsOwnFile) {
  const TinyModel model = write_tiny_model(path("m"));
  shard("m", 2, "s");
  const auto base = BaseModel::open(path("s").string());
  const std::string down = "model.layers.0.mlp.down_proj.weight";
  const TensorPart part = tensor_part(model.config, Split::ColFeatures, 48, 80, 1, 2);
  EXPECT_EQ(base->slice(down, part).matrix.data, base->slice(down, part).matrix.data);
  EXPECT_NE(base->whole(down).matrix.data, base->whole(down).matrix.data);
}

TEST_F(BaseShardsTest, EachByteIsStoredOnceReadOnlyAndDeterministically) {
  TinyModelOptions o;
  o.kv_heads = 1;  // shared by all ranks
  const TinyModel model = write_tiny_model(path("m"), o);
  shard("m", 4, "a");
  shard("m", 4, "b", 3);
  uint64_t stored = 0, expected = 0;
  for (const auto& [name, t] : model.tensors) expected += t.bytes.size();
  for (const auto& entry : fs::directory_iterator(path("a"))) {
    EXPECT_EQ(fs::status(entry.path()).permissions(), fs::perms(0444)) << entry.path();
    EXPECT_EQ(read_text(entry.path()), read_text(path("b") / entry.path().filename().string()));
    if (entry.path().extension() != ".safetensors") continue;
    const auto file = SafetensorsFile::open(entry.path());
    for (const TensorInfo& t : file.tensors()) stored += t.bytes;
  }
  EXPECT_EQ(stored, expected);
  EXPECT_TRUE(fs::exists(path("a") / "part-00003-of-00004.safetensors"));
}

TEST_F(BaseShardsTest, AShardSetCanBeCutAgain) {
  write_tiny_model(path("m"));
  shard("m", 4, "four");
  shard("four", 3, "three");
  shard("m", 3, "direct");
  for (const auto& entry : fs::directory_iterator(path("direct")))
    EXPECT_EQ(read_text(entry.path()), read_text(path("three") / entry.path().filename().string()));
}

TEST_F(BaseShardsTest, DamageIsNamed) {
  write_tiny_model(path("m"));
  shard("m", 2, "good");
  const std::string part = "part-00001-of-00002.safetensors";
  const auto refuse = [&](const std::vector<std::string>& parts,
                          const std::function<void(const fs::path&)>& damage) {
    fs::remove_all(path("bad"));
    fs::copy(path("good"), path("bad"));
    damage(path("bad"));
    for (const int world : {1, 2})
      run_thread_ranks(world, [&](Communicator& w) {
        expect_error(kExitInput, parts, [&] { BaseModel::open(path("bad").string())->digest(w); });
      });
  };
  refuse({part, "SHA-256"}, [&](const fs::path& d) {
    std::string text = read_text(d / part);
    text.back() ^= 1;
    rewrite(d / part, text);
  });
  refuse({part, "bytes and should have"}, [&](const fs::path& d) {
    std::string text = read_text(d / part);
    text.pop_back();
    rewrite(d / part, text);
  });
  refuse({part, "is missing"}, [&](const fs::path& d) { fs::remove(d / part); });
  refuse({"extra.txt", "is not listed"}, [&](const fs::path& d) { rewrite(d / "extra.txt", "x"); });
  refuse({"tokenizer_config.json", "SHA-256"}, [&](const fs::path& d) {
    std::string text = read_text(d / "tokenizer_config.json");
    text[3] ^= 1;
    rewrite(d / "tokenizer_config.json", text);
  });
  const auto edit_manifest = [&](const std::string& from, const std::string& to) {
    return [=](const fs::path& d) {
      std::string text = read_text(d / "manifest.textproto");
      const size_t at = text.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      rewrite(d / "manifest.textproto", text.replace(at, from.size(), to));
    };
  };
  refuse({"manifest.textproto:1:"}, edit_manifest("version:", "vorsion:"));
  refuse({"manifest.textproto", "version 1"}, edit_manifest("version: 1", "version: 2"));
  refuse({"manifest.textproto", "base_digest does not follow"},
         edit_manifest("base_digest: \"", "base_digest: \"0"));
  refuse({"model.embed_tokens.weight"}, edit_manifest("row_end: 48", "row_end: 47"));
  refuse({"plain name"}, edit_manifest("name: \"config.json\"", "name: \"../m/config.json\""));
}

TEST_F(BaseShardsTest, NothingIsLeftWhenItFails) {
  write_tiny_model(path("m"));
  shard("m", 2, "s");
  const auto names = [&] {
    std::vector<std::string> all;
    for (const auto& e : fs::directory_iterator(dir_.path()))
      if (e.path().filename() != "cache") all.push_back(e.path().string());
    return all;
  };
  const auto before = names();
  for (const int world : {1, 3})
    run_thread_ranks(world, [&](Communicator& w) {
      const auto base = BaseModel::open(path("m").string());
      expect_error(kExitInput, {path("s").string(), "exists already"},
                   [&] { write_base_shards(*base, 2, path("s").string(), w); });
      expect_error(kExitInput, {"7 ranks", "1 to 6"},
                   [&] { write_base_shards(*base, 7, path("t").string(), w); });
    });
  EXPECT_EQ(names(), before);
}

TEST_F(BaseShardsTest, InspectSaysWhatItIs) {
  write_tiny_model(path("m"));
  shard("m", 3, "s");
  std::string text;
  for (const auto& line : inspect_base(path("s").string(), *make_self_communicator()))
    text += line + "\n";
  for (const std::string& part :
       {std::string("base shard set, written for tensor-parallel degree 3"),
        "base digest: " + digest("m") + " (every file verified)"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
}

}  // namespace
}  // namespace lorashard::test

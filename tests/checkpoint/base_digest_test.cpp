#include "checkpoint/base_digest.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <thread>

#include "parallel/threads.h"
#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace lorashard::test {
namespace {

class BaseDigestTest : public ::testing::Test {
 protected:
  void SetUp() override { ::setenv("XDG_CACHE_HOME", (dir_ / "cache").c_str(), 1); }
  fs::path path(const std::string& name) { return dir_ / name; }
  size_t remembered() {
    std::error_code ec;
    size_t n = 0;
    for ([[maybe_unused]] const auto& e :
         fs::directory_iterator(dir_ / "cache" / "lorashard" / "digests", ec))
      ++n;
    return n;
  }
  // Files younger than the clock's granularity are not remembered.
  void age() { std::this_thread::sleep_for(std::chrono::milliseconds(40)); }
  // Overwrites one element without changing the file's size.
  void poke(const TinyModel& model, const fs::path& file, const std::string& tensor,
            int64_t element, uint32_t bits) {
    uint64_t at;
    int64_t size;
    {
      const SafetensorsFile f = SafetensorsFile::open(file);
      size = size_of(model.tensors.at(tensor).dtype);
      at = f.find(tensor)->offset + static_cast<uint64_t>(element * size);
    }
    std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(static_cast<std::streamoff>(at));
    out.write(reinterpret_cast<const char*>(&bits), size);
  }
  TempDir dir_;
};

// The definition, computed in the plainest way; every tensor here is smaller than a chunk.
std::string plain_digest(const TinyModel& model) {
  std::string lines;
  for (const auto& [name, t] : model.tensors) {
    const std::string chunk = sha256_hex(t.bytes.data(), t.bytes.size());
    std::string raw;
    for (size_t i = 0; i < chunk.size(); i += 2)
      raw.push_back(static_cast<char>(std::stoi(chunk.substr(i, 2), nullptr, 16)));
    std::string shape = std::to_string(t.shape[0]);
    if (t.shape.size() == 2) shape.append("x").append(std::to_string(t.shape[1]));
    lines += name + " " + std::string(name_of(t.dtype)) + " " + shape + " " +
             sha256_hex(raw.data(), raw.size()) + "\n";
  }
  return sha256_hex(lines.data(), lines.size());
}

TEST_F(BaseDigestTest, FollowsItsDefinitionAtEveryRankCount) {
  TinyModelOptions o;
  o.files = 2;
  const TinyModel model = write_tiny_model(path("m"), o);
  const std::string expected = plain_digest(model);
  for (const int ranks : {1, 2, 3, 5}) {
    ::setenv("XDG_CACHE_HOME", (dir_ / std::to_string(ranks)).c_str(), 1);
    run_thread_ranks(ranks, [&](Communicator& world) {
      EXPECT_EQ(BaseModel::open(path("m").string())->digest(world), expected);
    });
  }
}

TEST_F(BaseDigestTest, LargeTensorsAreDigestedByChunks) {
  TinyModelOptions o;
  o.layers = 1;
  o.vocab_size = 200'000;  // 19.2 MB of embedding: two chunks, the second not whole
  o.tied = true;
  const TinyModel model = write_tiny_model(path("m"), o);
  const auto& bytes = model.tensors.at("model.embed_tokens.weight").bytes;
  ASSERT_GT(bytes.size(), 16u << 20);
  Sha256 hash, first, second;
  first.update(bytes.data(), 16 << 20);
  second.update(bytes.data() + (16 << 20), bytes.size() - (16 << 20));
  const auto a = first.finish(), b = second.finish();
  hash.update(a.data(), a.size());
  hash.update(b.data(), b.size());
  run_thread_ranks(2, [&](Communicator& world) {
    const auto base = BaseModel::open(path("m").string());
    EXPECT_EQ(base->tensors()[0].name, "model.embed_tokens.weight");
    Sha256 copy;
    copy.update(a.data(), a.size());
    copy.update(b.data(), b.size());
    EXPECT_EQ(tensor_digests(*base, world)[0], copy.finish());
  });
}

TEST_F(BaseDigestTest, EveryByteNameAndShapeCounts) {
  const TinyModel model = write_tiny_model(path("m"));
  const auto digest = [&](const TinyModel& m) { return plain_digest(m); };
  TinyModel other = model;
  other.tensors.at("model.norm.weight").bytes[1] ^= 1;
  EXPECT_NE(digest(model), digest(other));
  const auto one = make_self_communicator();
  const std::string before = BaseModel::open(path("m").string())->digest(*one);
  poke(model, path("m") / "model.safetensors", "model.layers.1.mlp.down_proj.weight", 77, 0x3f81);
  EXPECT_NE(BaseModel::open(path("m").string())->digest(*one), before);
}

TEST_F(BaseDigestTest, NonFiniteWeightsAreNamedOnEveryRank) {
  const std::string tensor = "model.layers.1.mlp.up_proj.weight";
  const struct {
    DType dtype;
    uint32_t bits;
  } cases[] = {{DType::BF16, 0x7fc0}, {DType::BF16, 0xff80},     {DType::F16, 0x7c00},
               {DType::F16, 0xfe00},  {DType::F32, 0x7f800000u}, {DType::F32, 0xffc00001u}};
  for (const auto& c : cases) {
    fs::remove_all(path("m"));
    TinyModelOptions o;
    o.dtype = c.dtype;
    const TinyModel model = write_tiny_model(path("m"), o);
    poke(model, path("m") / "model.safetensors", tensor, 48 * 79 + 47, c.bits);
    run_thread_ranks(3, [&](Communicator& world) {
      expect_error(kExitInput, {"model.safetensors: " + tensor, "not finite at [79, 47]"},
                   [&] { BaseModel::open(path("m").string())->digest(world); });
    });
  }
}

TEST_F(BaseDigestTest, FindsTheFirstNonFiniteAnywhere) {
  std::vector<float> x(200'001, 1.5f);
  EXPECT_EQ(find_non_finite(x.data(), static_cast<int64_t>(x.size()), DType::F32), -1);
  x[3] = std::numeric_limits<float>::max();
  x[4] = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(find_non_finite(x.data(), static_cast<int64_t>(x.size()), DType::F32), -1);
  for (const size_t at : {200'000u, 131'072u, 65'535u, 1'023u, 0u}) {
    x[at] = at % 2 ? std::nanf("") : -std::numeric_limits<float>::infinity();
    EXPECT_EQ(find_non_finite(x.data(), static_cast<int64_t>(x.size()), DType::F32),
              static_cast<int64_t>(at));
    // Misaligned by a byte.
    std::vector<char> moved(x.size() * 4 + 1);
    std::memcpy(moved.data() + 1, x.data(), x.size() * 4);
    EXPECT_EQ(find_non_finite(moved.data() + 1, static_cast<int64_t>(x.size()), DType::F32),
              static_cast<int64_t>(at));
  }
}

TEST_F(BaseDigestTest, RemembersPerFileAndNoticesChanges) {
  TinyModelOptions o;
  o.files = 2;
  const TinyModel model = write_tiny_model(path("m"), o);
  age();
  const auto one = make_self_communicator();
  const std::string digest = BaseModel::open(path("m").string())->digest(*one);
  EXPECT_EQ(remembered(), 2u);

  // A change shows, also under the old time stamp.
  const fs::path file = path("m") / "model-00002-of-00002.safetensors";
  const auto time = fs::last_write_time(file);
  poke(model, file, "model.norm.weight", 0, 0x7fc0);
  const auto changed = BaseModel::open(path("m").string());
  expect_error(kExitInput, {"model.norm.weight", "not finite"}, [&] { changed->digest(*one); });
  fs::last_write_time(file, time);
  expect_error(kExitInput, {"model.norm.weight", "not finite"}, [&] { changed->digest(*one); });

  // A remembered digest is taken without reading.
  age();
  std::vector<std::string> names;
  const SafetensorsFile weights = SafetensorsFile::open(file);
  for (const auto& [name, tensor] : model.tensors)
    if (weights.find(name)) names.push_back(name);
  remember_digests(file, identify_file(file), names, std::vector<Digest>(names.size()));
  EXPECT_NE(BaseModel::open(path("m").string())->digest(*one), digest);
}

TEST_F(BaseDigestTest, DamagedOrUnwritableCacheIsNoError) {
  write_tiny_model(path("m"));
  age();
  const auto one = make_self_communicator();
  const auto digest = [&] { return BaseModel::open(path("m").string())->digest(*one); };
  const std::string expected = digest();
  for (const auto& e : fs::directory_iterator(dir_ / "cache" / "lorashard" / "digests")) {
    std::string text = read_text(e.path());
    text[text.size() / 2] ^= 1;
    std::ofstream(e.path(), std::ios::trunc) << text;
    EXPECT_EQ(digest(), expected);
    EXPECT_NE(read_text(e.path()), text) << "the damaged entry was not rewritten";
    std::ofstream(e.path(), std::ios::trunc) << "x";
    EXPECT_EQ(digest(), expected);
  }
  std::ofstream(path("file")) << "not a directory";
  ::setenv("XDG_CACHE_HOME", path("file").c_str(), 1);
  EXPECT_EQ(digest(), expected);
}

}  // namespace
}  // namespace lorashard::test

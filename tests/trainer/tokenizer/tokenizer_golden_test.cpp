// Ids and decoded texts equal those of Hugging Face tokenizers, for one tokenizer of each family
// and two real ones (tests/golden/tokenizers/make_tokenizers.py wrote them).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "tests/trainer/tokenizer/golden.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

class TokenizerGolden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    directory_.write("tokenizer.json", unpack(name + ".json.xz"));
    tokenizer_ = Tokenizer::from_directory(directory_.path());
    texts_ = Json::parse(unpack("texts.json.xz")).get<std::vector<std::string>>();
    expected_ = Json::parse(unpack(name + ".ids.json.xz"));
    ASSERT_GT(texts_.size(), 400u);
    ASSERT_EQ(expected_["with"].size(), texts_.size());
  }
  TemporaryDirectory directory_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> texts_;
  Json expected_;
};

TEST_P(TokenizerGolden, EncodesAsTheLibrary) {
  for (size_t i = 0; i < texts_.size(); ++i) {
    EXPECT_EQ(tokenizer_->encode(texts_[i]), expected_["with"][i].get<Ids>()) << Json(texts_[i]);
    EXPECT_EQ(tokenizer_->encode(texts_[i], false), expected_["without"][i].get<Ids>())
        << Json(texts_[i]);
  }
}

TEST_P(TokenizerGolden, DecodesAsTheLibrary) {
  for (size_t i = 0; i < texts_.size(); ++i) {
    const Ids ids = expected_["with"][i].get<Ids>();
    EXPECT_EQ(tokenizer_->decode(ids), expected_["decoded"][i].get<std::string>()) << i;
    EXPECT_EQ(tokenizer_->decode(ids, true), expected_["decoded_skip"][i].get<std::string>()) << i;
  }
}

// The regular expressions themselves give the words of the hand-written splitters.
TEST_P(TokenizerGolden, RegularExpressionsAgree) {
  const auto general = Tokenizer::from_directory_regex_only(directory_.path());
  for (size_t i = 0; i < texts_.size(); ++i) {
    EXPECT_EQ(general->encode(texts_[i]), expected_["with"][i].get<Ids>()) << Json(texts_[i]);
  }
  std::mt19937 random(3);
  const char32_t some[] = {U' ', U'\n', U'\r', U'\t',  U'\'',  U's',  U'T',  U'l',    U'1',   U'a',
                           U'!', 0xE9,  0x17F, 0x3000, 0x4E2D, 0x661, 0x301, 0x1F600, 0x200D, 0x85};
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int i = 0; i < 12; ++i) append_code_point(text, some[random() % std::size(some)]);
    EXPECT_EQ(general->encode(text), tokenizer_->encode(text)) << Json(text);
  }
}

TEST_P(TokenizerGolden, ThreadsShareOneTokenizer) {
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < texts_.size(); ++i) {
        wrong[t] += tokenizer_->encode(texts_[i]) != expected_["with"][i].get<Ids>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerGolden,
                         testing::Values("llama2", "llama2_normalized", "mistral", "metaspace",
                                         "gemma", "gpt2", "gpt2_prefix", "smollm", "o200k", "odd",
                                         "dropped", "llama3_1", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TokenizerLimits, AWordOfAMegabyteTakesSeconds) {
  TemporaryDirectory directory;
  directory.write("tokenizer.json", unpack("llama3_1.json.xz"));
  const auto tokenizer = Tokenizer::from_directory(directory.path());
  std::mt19937 random(5);
  std::string word(1 << 20, 'x');
  for (char& c : word) c = static_cast<char>('a' + random() % 26);
  const auto begin = std::chrono::steady_clock::now();
  const Ids ids = tokenizer->encode(word, false);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(tokenizer->decode(ids), word);
  EXPECT_GT(ids.size(), word.size() / 8);
  EXPECT_LT(taken.count(), 60.0);  // it takes below 1 s; quadratic merging would take hours
}

TEST(TokenizerLimits, TheWordCacheMayOverflow) {
  TemporaryDirectory directory;
  directory.write("tokenizer.json", unpack("gpt2.json.xz"));
  const auto tokenizer = Tokenizer::from_directory(directory.path());
  std::mt19937 random(9);
  std::vector<std::string> words;
  std::string text;
  for (int i = 0; i < 120000; ++i) {
    std::string word(" ");
    for (int k = 0; k < 7; ++k) word += static_cast<char>('a' + random() % 26);
    text += word;
    words.push_back(word);
  }
  const Ids whole = tokenizer->encode(text, false);
  const auto fresh = Tokenizer::from_directory(directory.path());
  Ids single;
  for (size_t i = words.size(); i-- > words.size() - 20000;) {
    const Ids ids = fresh->encode(words[i], false);
    single.insert(single.begin(), ids.begin(), ids.end());
  }
  ASSERT_GT(whole.size(), single.size());
  EXPECT_TRUE(std::equal(single.rbegin(), single.rend(), whole.rbegin()));
}

}  // namespace
}  // namespace lorashard

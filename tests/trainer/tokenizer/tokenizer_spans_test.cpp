// Where in the text each token comes from equals Hugging Face tokenizers' offsets
// (tests/golden/tokenizers/make_spans.py wrote them), and asking for it changes no id.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/trainer/tokenizer/golden.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

// Texts with a difference. Of a character that NFC or its like composed of several the library
// covers the first and we all (`composed`); runs of marks that are reordered and composed at once
// are beyond a simple rule (`reordered`).
struct Case {
  const char* name;
  int composed, reordered;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class TokenizerSpans : public testing::TestWithParam<Case> {};

TEST_P(TokenizerSpans, AreTheLibrarysOffsets) {
  const std::string name = GetParam().name;
  TemporaryDirectory directory;
  directory.write("tokenizer.json", unpack(name + ".json.xz"));
  const auto tokenizer = Tokenizer::from_directory(directory.path());
  const auto texts = Json::parse(unpack("texts.json.xz")).get<std::vector<std::string>>();
  const Json expected = Json::parse(unpack(name + ".spans.json.xz"));
  ASSERT_EQ(expected.size(), texts.size());
  int composed = 0, reordered = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<TextSpan> spans;
    EXPECT_EQ(tokenizer->encode(texts[i], true, spans), tokenizer->encode(texts[i]));
    ASSERT_EQ(expected[i].size(), 2 * spans.size()) << Json(texts[i]);
    bool same = true, covers = true;
    for (size_t k = 0; k < spans.size(); ++k) {
      const int64_t begin = expected[i][2 * k], end = expected[i][2 * k + 1];
      same = same && spans[k].begin == begin && spans[k].end == end;
      covers = covers && spans[k].begin <= begin && spans[k].end >= end;
    }
    composed += covers && !same;
    reordered += !covers;
  }
  EXPECT_EQ(composed, GetParam().composed) << "of " << texts.size();
  EXPECT_EQ(reordered, GetParam().reordered) << "of " << texts.size();
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerSpans,
                         testing::Values(Case{"llama3_1", 0, 0}, Case{"qwen3", 39, 3},
                                         Case{"llama2_normalized", 0, 0}, Case{"gpt2_prefix", 0, 0},
                                         Case{"metaspace", 0, 3}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace lorashard

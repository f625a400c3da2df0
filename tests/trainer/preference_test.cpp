// Preference data: ids as TRL makes them, and where every bad pair is reported.
#include "trainer/data/preference_row.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "configs/error.h"
#include "tests/support/text.h"
#include "tests/trainer/golden_run.h"
#include "tests/trainer/tokenizer/golden.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Ids = std::vector<int32_t>;
using Data = RunConfig::Data;

class Preference : public ::testing::Test {
 protected:
  Preference() {
    options_.format = Data::PREFERENCE_TOKENS;
    options_.vocab_size = 100;
    options_.seq_len = 6;
  }
  std::shared_ptr<const Dataset> open(const std::string& text) {
    dir_.write("data.jsonl", text);
    return Dataset::open((dir_.path() / "data.jsonl").string(), options_);
  }
  // Of a line behind a good one.
  std::string error(const std::string& line) {
    const bool ids = options_.format == Data::PREFERENCE_TOKENS;
    const std::string good = ids ? R"({"prompt_ids":[1],"chosen_ids":[2],"rejected_ids":[3]})"
                                 : R"({"prompt":"a","chosen":"b","rejected":"c"})";
    try {
      const auto data = open(good + "\n" + line + "\n");
      for (int64_t i = 0; i < data->size(); ++i) data->get(i);
      return "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_status, 2);
      return replace_all(e.what(), (dir_.path() / "data.jsonl").string(), "F");
    }
  }
  // One id a byte, 1 in front.
  void tokenize() {
    options_.format = Data::PREFERENCE;
    options_.eos_id = 2;
    options_.vocab_size = 256;
    options_.leading_ids = {1};
    options_.encode = [](std::string_view text, std::vector<TextSpan>*) {
      Ids ids{1};
      for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
      return ids;
    };
  }

  TemporaryDirectory dir_;
  DatasetOptions options_;
};

TEST_F(Preference, IdsBecomeTwoSequencesWhoseCompletionsCount) {
  const auto data =
      open(R"({"prompt_ids":[1,7],"chosen_ids":[8,2],"rejected_ids":[9,9,9,9,9,9],"prompt":"text"})"
           "\n"
           R"({"prompt_ids":[],"chosen_ids":[8,2],"rejected_ids":[8,3]})");
  const Example cut = data->get(0);
  EXPECT_THAT(cut.input_ids, ElementsAre(1, 7, 8, 2, 1, 7, 9, 9, 9, 9));
  EXPECT_THAT(cut.labels, ElementsAre(-100, -100, 8, 2, -100, -100, 9, 9, 9, 9));
  EXPECT_THAT(cut.starts, ElementsAre(4));
  EXPECT_TRUE(cut.truncated);
  EXPECT_EQ(count_unmasked(cut), 6);
  const Example bare = data->get(1);  // nothing predicts a first token
  EXPECT_THAT(bare.labels, ElementsAre(-100, 2, -100, 3));
}

TEST_F(Preference, TextsEndWithTheEndOfSequenceToken) {
  tokenize();
  const auto data = open(R"({"prompt":"p","chosen":"ab","rejected":"c\u0002","score_chosen":3})");
  EXPECT_THAT(data->get(0).input_ids, ElementsAre(1, 'p', 'a', 'b', 2, 1, 'p', 'c', 2));
  EXPECT_THAT(data->get(0).labels, ElementsAre(-100, -100, 'a', 'b', 2, -100, -100, 'c', 2));
  options_.add_bos = options_.append_eos = false;
  EXPECT_THAT(open(R"({"prompt":"p","chosen":"ab","rejected":"c"})")->get(0).input_ids,
              ElementsAre('p', 'a', 'b', 'p', 'c'));
}

TEST_F(Preference, BadPairsAreRefusedByLine) {
  EXPECT_EQ(error(R"({"prompt_ids":[1],"chosen_ids":[2,3],"rejected_ids":[2,3]})"),
            "F:2: \"chosen_ids\" and \"rejected_ids\" are equal, expected two completions that "
            "differ");
  EXPECT_EQ(error(R"({"prompt_ids":[1],"chosen_ids":[],"rejected_ids":[2]})"),
            "F:2: \"chosen_ids\" is empty, expected a completion of one token or more");
  EXPECT_THAT(
      error(R"({"prompt_ids":[1,1,1,1,1,1],"chosen_ids":[4],"rejected_ids":[2]})"),
      StartsWith("F:2: no token of \"chosen\" is left that counts: the prompt has 6 tokens"));
  EXPECT_THAT(error(R"({"prompt_ids":[],"chosen_ids":[4,4],"rejected_ids":[2]})"),
              StartsWith("F:2: no token of \"rejected\" is left that counts"));
  EXPECT_THAT(error(R"({"prompt_ids":[1],"chosen_ids":[100],"rejected_ids":[2]})"),
              StartsWith("F:2: \"chosen_ids\" has 100 at position 1, expected token ids"));
  EXPECT_THAT(error(R"({"prompt_ids":[1],"chosen_ids":[2]})"),
              StartsWith("F:2: no field \"rejected_ids\""));
  EXPECT_THAT(
      error(R"({"prompt_ids":[1],"chosen_ids":[2],"rejected_ids":[3],"ref_chosen_logps":-1})"),
      HasSubstr("ref_chosen_logps"));
  options_.long_sequences = Data::REFUSE;
  EXPECT_THAT(error(R"({"prompt_ids":[1,1,1],"chosen_ids":[4],"rejected_ids":[2,2,2,2]})"),
              StartsWith("F:2: prompt and rejected have 7 tokens, expected at most data.seq_len"));
  tokenize();
  EXPECT_EQ(error(R"({"prompt":"a","chosen":"b","rejected":"b"})"),
            "F:2: \"chosen\" and \"rejected\" are equal, expected two completions that differ");
  EXPECT_EQ(error(R"({"chosen":"b","rejected":"b"})"),
            "F:2: \"chosen\" and \"rejected\" are equal, expected two completions that differ");
  EXPECT_EQ(error(R"({"prompt":"a","chosen":"b","rejected":""})"),
            "F:2: \"rejected\" is empty, expected a completion of one token or more");
  EXPECT_THAT(error(R"({"prompt":"a","chosen":"b","rejected":"b\u0002"})"),
              StartsWith("F:2: \"chosen\" and \"rejected\" have equal tokens"));
  EXPECT_THAT(error(R"({"prompt":[{"role":"user","content":"a"}],"chosen":"b","rejected":"c"})"),
              StartsWith("F:2: \"prompt\" is a list (of messages?), which this version does not "
                         "support"));
}

TEST_F(Preference, TokensAreThoseOfTrl) {
  int rows = 0;
  for (const auto& c : test::read_json(test::golden("preference_rows.json"))) {
    const std::string name = c.at("tokenizer");
    dir_.write("tokenizer.json", unpack(name + ".json.xz"));
    dir_.write("tokenizer_config.json", nlohmann::json{{"eos_token", c.at("eos_token")}}.dump());
    const auto tokenizer = Tokenizer::from_directory(dir_.path());
    options_ = {};
    options_.format = Data::PREFERENCE;
    options_.vocab_size = 1 << 20;
    options_.leading_ids = tokenizer->leading_ids();
    options_.eos_id = tokenizer->eos_id();
    options_.encode = [&](std::string_view text, std::vector<TextSpan>*) {
      return tokenizer->encode(text);
    };
    std::string lines;
    for (const auto& row : c.at("rows")) lines += row.at("line").dump() + "\n";
    const auto data = open(lines);
    for (int64_t i = 0; i < data->size(); ++i, ++rows) {
      const auto& row = c.at("rows")[size_t(i)];
      const Ids prompt = row.at("prompt_ids");
      Ids want;
      for (const char* which : {"chosen_ids", "rejected_ids"}) {
        const Ids completion = row.at(which);
        want.insert(want.end(), prompt.begin(), prompt.end());
        want.insert(want.end(), completion.begin(), completion.end());
      }
      const Example example = data->get(i);
      EXPECT_EQ(example.input_ids, want) << name << " " << row.at("line");
      const Ids chosen = row.at("chosen_ids"), rejected = row.at("rejected_ids");
      const int64_t bare = prompt.empty() ? 2 : 0;
      EXPECT_EQ(count_unmasked(example), int64_t(chosen.size() + rejected.size()) - bare);
    }
  }
  EXPECT_EQ(rows, 55);
}

}  // namespace
}  // namespace lorashard

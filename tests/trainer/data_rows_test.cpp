// What a line of data says beside its text or tokens: masks, positions, other columns, the border
// between prompt and completion, a BOS of its own, and files that are no JSONL.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "configs/error.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text.h"
#include "trainer/data/batches.h"
#include "trainer/data/dataset.h"

namespace lorashard::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using Data = RunConfig::Data;

constexpr int32_t kBos = 1, kEos = 2;

class DataRows : public ::testing::Test {
 protected:
  DataRows() {
    options_.format = Data::TOKENS;
    options_.vocab_size = 400;
    // A token each byte, "ab" is one; <bos> in front, <eos> behind.
    options_.encode = [](std::string_view text, std::vector<TextSpan>* spans) {
      std::vector<int32_t> ids = {kBos};
      std::vector<TextSpan> places = {{}};
      for (size_t i = 0; i < text.size(); ++i) {
        const bool pair = text.substr(i, 2) == "ab";
        if (text.substr(i, 3) == "<s>") {
          ids.push_back(kBos);
          places.push_back({int64_t(i), int64_t(i + 3)});
          i += 2;
          continue;
        }
        ids.push_back(pair ? 300 : static_cast<unsigned char>(text[i]));
        places.push_back({int64_t(i), int64_t(i + 1 + pair)});
        i += pair;
      }
      ids.push_back(kEos);
      places.push_back({});
      if (spans) *spans = places;
      return ids;
    };
    options_.leading_ids = {kBos};
    options_.eos_id = kEos;
  }
  std::shared_ptr<const Dataset> open(const std::string& text) {
    std::ofstream(file_, std::ios::binary) << text;
    return Dataset::open(file_.string(), options_);
  }
  Example row(const std::string& text) { return open(text)->get(0); }
  std::string error(const std::string& text) {
    try {
      const auto data = open(text);
      for (int64_t i = 0; i < data->size(); ++i) data->get(i);
      return "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_status, 2);
      return replace_all(e.what(), file_.string(), "F");
    }
  }

  TempDir dir_;
  std::filesystem::path file_ = dir_ / "data.jsonl";
  DatasetOptions options_;
};

TEST_F(DataRows, MaskedPositionsAreNoTokens) {
  const Example right =
      row(R"({"input_ids":[5,6,7,0,0],"attention_mask":[1,1,1,0,0],"position_ids":[0,1,2,1,1]})");
  EXPECT_THAT(right.input_ids, ElementsAre(5, 6, 7));
  EXPECT_THAT(right.labels, ElementsAre(5, 6, 7));
  EXPECT_THAT(right.starts, IsEmpty());
  // Padding on the left, with positions of transformers' generate, of the row, and with none.
  for (const char* positions :
       {R"(,"position_ids":[1,1,0,1,2])", R"(,"position_ids":[0,1,2,3,4])", ""}) {
    const Example left = row(R"({"input_ids":[0,0,5,6,7],"labels":[-100,9,5,-100,7],)"
                             R"("attention_mask":[0,0,1,1,1])" +
                             std::string(positions) + "}");
    EXPECT_THAT(left.input_ids, ElementsAre(5, 6, 7)) << positions;
    EXPECT_THAT(left.labels, ElementsAre(5, -100, 7)) << positions;
    EXPECT_THAT(left.starts, IsEmpty()) << positions;
  }
  EXPECT_THAT(row(R"({"input_ids":[5,0,7],"attention_mask":[true,false,true]})").input_ids,
              ElementsAre(5, 7));
  EXPECT_THAT(row(R"({"input_ids":[5,7],"attention_mask":null})").input_ids, ElementsAre(5, 7));
}

// A packed row is what its sequences are as rows of their own.
TEST_F(DataRows, PositionsThatStartAgainBeginASequence) {
  const auto packed = open(R"({"input_ids":[5,6,0,7,8,9,3],"attention_mask":[1,1,0,1,1,1,1],)"
                           R"("position_ids":[0,1,2,0,1,2,0]})");
  const Example e = packed->get(0);
  EXPECT_THAT(e.starts, ElementsAre(2, 5));
  EXPECT_EQ(count_unmasked(e), 3);
  const MicroBatch one = EvalBatches(packed, 1, 0, 1).micro_batch(0);
  const auto apart = open("{\"input_ids\":[5,6]}\n{\"input_ids\":[7,8,9]}\n{\"input_ids\":[3]}\n");
  const MicroBatch three = EvalBatches(apart, 3, 0, 1).micro_batch(0);
  EXPECT_EQ(one.ids, three.ids);
  EXPECT_EQ(one.labels, three.labels);
  EXPECT_EQ(one.positions, three.positions);
  EXPECT_EQ(one.offsets, three.offsets);
  EXPECT_EQ(one.unmasked, three.unmasked);
  options_.seq_len = 5;
  EXPECT_THAT(row(R"({"input_ids":[5,6,7,8,9,3],"position_ids":[0,1,0,1,2,0]})").starts,
              ElementsAre(2));
}

TEST_F(DataRows, BrokenMasksAndPositions) {
  EXPECT_EQ(error(R"({"input_ids":[1,2],"attention_mask":[1,2]})"),
            "F:1: \"attention_mask\" has 2 at position 2, expected 0 or 1");
  EXPECT_EQ(error(R"({"input_ids":[1,2],"attention_mask":[1]})"),
            "F:1: \"attention_mask\" has 1 values and \"input_ids\" 2, expected as many");
  EXPECT_EQ(error(R"({"input_ids":[1,2],"position_ids":[0,1,2]})"),
            "F:1: \"position_ids\" has 3 values and \"input_ids\" 2, expected as many");
  EXPECT_THAT(error(R"({"input_ids":[1,2],"attention_mask":[[1,0],[1,1]]})"),
              StartsWith("F:1: \"attention_mask\" has [1,0] at position 1"));
  EXPECT_EQ(error(R"({"input_ids":[1,2],"attention_mask":[0,0]})"),
            "F:1: a sequence of no tokens, expected at least one");
  EXPECT_EQ(error(R"({"input_ids":[1,2,3],"position_ids":[0,1,3]})"),
            "F:1: \"position_ids\" has 3 at position 3, expected 2 or, for a new sequence, 0");
  EXPECT_THAT(error(R"({"input_ids":[1,2],"position_ids":[7,8]})"), HasSubstr("has 7"));
  EXPECT_THAT(error(R"({"input_ids":[1,2],"position_ids":[0,-1]})"), HasSubstr("has -1"));
  EXPECT_THAT(error(R"({"input_ids":[1,2],"position_ids":[0,0.5]})"), HasSubstr("has 0.5"));
}

TEST_F(DataRows, ColumnsThatMeanSomethingAreRefusedAndOthersListed) {
  EXPECT_EQ(error("{\"input_ids\":[1]}\n{\"input_ids\":[1],\"completion_mask\":[1]}"),
            "F:2: has the column \"completion_mask\", which data.format TOKENS does not read; "
            "remove it, or give the data in a format that says the same");
  for (const char* name : {"token_type_ids", "messages", "seq_lengths", "weight", "images"}) {
    EXPECT_THAT(error("{\"input_ids\":[1],\"" + std::string(name) + "\":[1]}"), HasSubstr(name));
  }
  EXPECT_STREQ(row(R"({"input_ids":[1],"text":"a","id":3,"tools":null})").other_columns.text(),
               R"("id", "text", "tools")");
  options_.format = Data::TEXT;
  EXPECT_THAT(error(R"({"text":"a","labels":[1]})"), HasSubstr("\"labels\""));
  options_.format = Data::PROMPT_COMPLETION;
  EXPECT_THAT(error(R"({"prompt":"a","completion":"b","messages":[]})"), HasSubstr("\"messages\""));

  ColumnNames names, more;
  for (int i = 20; i-- > 0;) names.add("column" + std::to_string(i));
  EXPECT_THAT(names.text(), HasSubstr("\"column0\", \"column1\""));
  EXPECT_THAT(names.text(), HasSubstr(", ..."));
  more.add("a");
  more.add(names);
  EXPECT_THAT(more.text(), StartsWith("\"a\", \"column0\""));
}

TEST_F(DataRows, TheCompletionBeginsWhereItsFirstTokenDoes) {
  options_.format = Data::PROMPT_COMPLETION;
  const Example closed = row(R"({"prompt":"xy","completion":"z"})");
  EXPECT_THAT(closed.input_ids, ElementsAre(kBos, 'x', 'y', 'z', kEos));
  EXPECT_THAT(closed.labels, ElementsAre(-100, -100, -100, 'z', kEos));
  EXPECT_FALSE(closed.spans_border);
  const Example across = row(R"({"prompt":"xa","completion":"bz"})");
  EXPECT_THAT(across.labels, ElementsAre(-100, -100, -100, 'z', kEos));
  EXPECT_TRUE(across.spans_border);
  EXPECT_THAT(row(R"({"prompt":"xy","completion":""})").labels,
              ElementsAre(-100, -100, -100, kEos));
  EXPECT_THAT(row(R"({"prompt":"","completion":"z"})").labels, ElementsAre(-100, 'z', kEos));
}

TEST_F(DataRows, ABosOfItsOwnIsNoticedAndTheTokenizersCanBeLeftOut) {
  options_.format = Data::TEXT;
  EXPECT_TRUE(row(R"({"text":"<s>x"})").bos_twice);
  EXPECT_FALSE(row(R"({"text":"x<s>"})").bos_twice);
  options_.add_bos = false;
  const Example once = row(R"({"text":"<s>x"})");
  EXPECT_THAT(once.input_ids, ElementsAre(kBos, 'x', kEos));
  EXPECT_FALSE(once.bos_twice);
  options_.format = Data::PROMPT_COMPLETION;
  EXPECT_THAT(row(R"({"prompt":"<s>x","completion":"z"})").labels,
              ElementsAre(-100, -100, 'z', kEos));
}

TEST_F(DataRows, FilesThatAreNotOneObjectALine) {
  options_.format = Data::TEXT;
  const std::string array = "F:1: the file is a JSON array, expected one object a line";
  EXPECT_THAT(error("[{\"text\":\"a\"},{\"text\":\"b\"}]\n"), StartsWith(array));
  EXPECT_THAT(error("[\n  {\"text\":\"a\"}\n]\n"), StartsWith(array));
  EXPECT_THAT(error("[\n  {\n    \"text\":\"a\"\n  }\n]\n"), HasSubstr("jq -c '.[]'"));
  EXPECT_THAT(
      error("{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n"),
      StartsWith("F:1: an object that goes on in the next line, expected one object a line"));
  EXPECT_THAT(error("{\"text\":\"a\"}\n{\"text\":\"b\n{\"text\":\"c\"}\n"),
              StartsWith("F:2: not JSON"));
}

}  // namespace
}  // namespace lorashard::test

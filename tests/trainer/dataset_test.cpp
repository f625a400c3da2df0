// Data files: what every format gives, and where every broken line is reported.
#include "trainer/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "configs/error.h"
#include "tests/support/text.h"

namespace lorashard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
namespace fs = std::filesystem;
using Data = RunConfig::Data;

constexpr int32_t kBos = 1, kEos = 2;

// A tokenizer to see through: one id a byte, "ab" is one token (so that a border can fall inside
// it), <bos> in front.
std::vector<int32_t> encode(std::string_view text, std::vector<TextSpan>* spans) {
  std::vector<int32_t> ids = {kBos};
  if (spans) *spans = {TextSpan{}};
  for (size_t i = 0; i < text.size(); ++i) {
    const bool pair = text.substr(i, 2) == "ab";
    ids.push_back(pair ? 300 : static_cast<unsigned char>(text[i]));
    if (spans) spans->push_back({int64_t(i), int64_t(i + 1 + pair)});
    i += pair;
  }
  return ids;
}

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest() {
    file_ = fs::path(::testing::TempDir()) /
            ("dataset_test_" + std::to_string(::getpid()) + "_" +
             ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl");
    options_.vocab_size = 400;
    options_.encode = encode;
    options_.eos_id = kEos;
  }
  ~DatasetTest() override { fs::remove_all(file_); }

  std::shared_ptr<const Dataset> open(const std::string& text) {
    std::ofstream(file_, std::ios::binary) << text;
    return Dataset::open(file_.string(), options_);
  }
  // What opening the file and reading all of it throws; the file's name is replaced by F.
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
  void format(Data::Format format) { options_.format = format; }

  fs::path file_;
  DatasetOptions options_;
};

TEST_F(DatasetTest, TextCountsEveryToken) {
  const auto data = open("{\"text\": \"xy\", \"source\": 3}\n{\"text\":\"\\u00e9\\n\"}\n");
  ASSERT_EQ(data->size(), 2);
  EXPECT_THAT(data->get(0).input_ids, ElementsAre(kBos, 'x', 'y', kEos));
  EXPECT_EQ(data->get(0).labels, data->get(0).input_ids);
  EXPECT_THAT(data->get(1).input_ids, ElementsAre(kBos, 0xc3, 0xa9, '\n', kEos));
}

TEST_F(DatasetTest, EndOfSequenceIsAddedOnceAndOnlyWhenAsked) {
  options_.encode = [](std::string_view, std::vector<TextSpan>*) {
    return std::vector<int32_t>{5, kEos};
  };
  EXPECT_THAT(open("{\"text\":\"x\"}")->get(0).input_ids, ElementsAre(5, kEos));
  options_.encode = encode;
  options_.append_eos = false;
  EXPECT_THAT(open("{\"text\":\"x\"}")->get(0).input_ids, ElementsAre(kBos, 'x'));
  options_.append_eos = true;
  options_.eos_id.reset();
  EXPECT_THAT(open("{\"text\":\"x\"}")->get(0).input_ids, ElementsAre(kBos, 'x'));
}

TEST_F(DatasetTest, CompletionsCountAndPromptsDoNot) {
  format(Data::PROMPT_COMPLETION);
  const auto data = open(
      "{\"prompt\":\"xy\",\"completion\":\"z\"}\n"
      "{\"completion\":\"bc\",\"prompt\":\"xa\"}\n"
      "{\"prompt\":\"xy\",\"completion\":\"\"}\n");
  EXPECT_THAT(data->get(0).input_ids, ElementsAre(kBos, 'x', 'y', 'z', kEos));
  EXPECT_THAT(data->get(0).labels, ElementsAre(-100, -100, -100, 'z', kEos));
  EXPECT_FALSE(data->get(0).spans_border);
  // <bos> x ab c: ab spans the border and counts to the prompt.
  const Example across = data->get(1);
  EXPECT_THAT(across.input_ids, ElementsAre(kBos, 'x', 300, 'c', kEos));
  EXPECT_THAT(across.labels, ElementsAre(-100, -100, -100, 'c', kEos));
  EXPECT_TRUE(across.spans_border);
  EXPECT_THAT(data->get(2).labels, ElementsAre(-100, -100, -100, kEos));
}

TEST_F(DatasetTest, TokensAreTakenAsTheyAre) {
  format(Data::TOKENS);
  options_.encode = nullptr;
  const auto data = open("{\"input_ids\":[3,0,399],\"labels\":[-100,7,8]}\n{\"input_ids\":[4,5]}");
  EXPECT_THAT(data->get(0).input_ids, ElementsAre(3, 0, 399));
  EXPECT_THAT(data->get(0).labels, ElementsAre(-100, 7, 8));
  EXPECT_THAT(data->get(1).labels, ElementsAre(4, 5));
}

TEST_F(DatasetTest, LongSequencesAreCutOrRefused) {
  options_.seq_len = 4;
  const std::string text = "{\"text\":\"xy\"}\n\n{\"text\":\"xyz\"}\n";
  const auto data = open(text);
  EXPECT_EQ(data->get(0).input_ids.size(), 4u);
  EXPECT_FALSE(data->get(0).truncated);
  EXPECT_THAT(data->get(1).input_ids, ElementsAre(kBos, 'x', 'y', 'z'));
  EXPECT_EQ(data->get(1).labels.size(), 4u);
  EXPECT_TRUE(data->get(1).truncated);
  options_.long_sequences = Data::REFUSE;
  EXPECT_EQ(error(text),
            "F:3: a sequence of 5 tokens, expected at most data.seq_len = 4 (or "
            "data.long_sequences: TRUNCATE)");
}

TEST_F(DatasetTest, LineEndsBlankLinesAndByteOrderMark) {
  for (const std::string text :
       {"{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}\n",
        "{\"text\":\"a\"}\r\n{\"text\":\"b\"}\r\n{\"text\":\"c\"}\r\n",
        "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}",
        "\xef\xbb\xbf{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}",
        "\n \t\r\n{\"text\":\"a\"}\n\n\n  {\"text\":\"b\"}  \n{\"text\":\"c\"}\n\n  "}) {
    const auto data = open(text);
    ASSERT_EQ(data->size(), 3) << text;
    for (int64_t i : {2, 0, 1})
      EXPECT_THAT(data->get(i).input_ids, ElementsAre(kBos, 'a' + i, kEos)) << text;
  }
}

TEST_F(DatasetTest, BrokenLinesAreNamed) {
  const std::string good = "{\"text\":\"a\"}\n\n";
  EXPECT_THAT(error(good + "{\"text\": oops}\n"), StartsWith("F:3: not JSON (byte 10: "));
  EXPECT_THAT(error(good + "{\"text\":\"a\"\n"), StartsWith("F:3: not JSON (byte "));
  EXPECT_THAT(error(good + "{\"text\":\"a\"} x\n"), StartsWith("F:3: not JSON"));
  EXPECT_THAT(error(good + "{\"text\":\"\\ud800\"}\n"), StartsWith("F:3: not JSON"));
  EXPECT_THAT(error("\x1f\x8b compressed"), StartsWith("F:1: "));
  EXPECT_EQ(error(good + "[1]\n"), "F:3: a JSON array, expected {\"text\": \"...\"}");
  EXPECT_EQ(error(good + "null\n"), "F:3: a JSON null, expected {\"text\": \"...\"}");
  EXPECT_EQ(error(good + "{\"prompt\":\"a\",\"completion\":\"b\"}"),
            "F:3: no field \"text\" (there is \"completion\", \"prompt\"), expected "
            "{\"text\": \"...\"}");
  EXPECT_EQ(error(good + "{}"),
            "F:3: no field \"text\" (the object is empty), expected {\"text\": \"...\"}");
  EXPECT_EQ(error(good + "{\"text\":null}"), "F:3: \"text\" is of type null, expected a string");
  EXPECT_EQ(error(good + "{\"text\":\"ab\xff\"}"),
            "F:3: invalid UTF-8 at byte 12 of the line, expected UTF-8 text");
  EXPECT_EQ(error(good + "{\"text\":\"\xed\xa0\x80\"}"),
            "F:3: invalid UTF-8 at byte 10 of the line, expected UTF-8 text");
  EXPECT_EQ(error(good + std::string("{\"text\":\"a\"}\0x", 14)),
            "F:3: a NUL at byte 13 of the line, expected one JSON object");
  EXPECT_LT(error("{\"a\\n" + std::string(100'000, 'x') + "\":1}").size(), 400u);
  EXPECT_EQ(error("{\"a\\nb\":1}").find('\n'), std::string::npos) << "an error is one line";
  EXPECT_LT(error("{\"text\":\"" + std::string(100'000, 'x')).size(), 400u);
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(error(deep), StartsWith("F:1: "));
  EXPECT_EQ(error("{\"text\":\"a\",\"x\":" + deep + std::string(1'000'000, ']') + "}"), "no error");
  format(Data::PROMPT_COMPLETION);
  EXPECT_THAT(error("{\"prompt\":\"a\"}"), StartsWith("F:1: no field \"completion\" (there is "));
  EXPECT_THAT(error("{\"prompt\":\"a\",\"completion\":7}"),
              StartsWith("F:1: \"completion\" is of type number"));
}

TEST_F(DatasetTest, BrokenTokenLists) {
  format(Data::TOKENS);
  const char* ids = "expected token ids from 0 to 399";
  EXPECT_EQ(error("{\"input_ids\":[1,400]}"),
            std::string("F:1: \"input_ids\" has 400 at position 2, ") + ids);
  EXPECT_EQ(error("{\"input_ids\":[-100]}"),
            std::string("F:1: \"input_ids\" has -100 at position 1, ") + ids);
  EXPECT_THAT(error("{\"input_ids\":[18446744073709551615]}"), HasSubstr(ids));
  EXPECT_THAT(error("{\"input_ids\":[9223372036854775808]}"), HasSubstr(ids));
  EXPECT_THAT(error("{\"input_ids\":[1.5]}"), HasSubstr("has 1.5 at position 1"));
  EXPECT_THAT(error("{\"input_ids\":[\"1\"]}"), HasSubstr(ids));
  EXPECT_EQ(error("{\"input_ids\":7}"),
            "F:1: \"input_ids\" is of type number, expected a list of token ids");
  EXPECT_THAT(error("{\"input_ids\":[1],\"labels\":[-1]}"), HasSubstr("or -100"));
  EXPECT_THAT(error("{\"input_ids\":[1],\"labels\":[400]}"), HasSubstr("\"labels\" has 400"));
  EXPECT_EQ(error("{\"input_ids\":[1,2],\"labels\":[1]}"),
            "F:1: \"labels\" has 1 values and \"input_ids\" 2, expected as many");
  EXPECT_EQ(error("{\"input_ids\":[]}"), "F:1: a sequence of no tokens, expected at least one");
  EXPECT_EQ(error("{\"input_ids\":[1,2],\"labels\":[-100,-100]}"), "no error");
}

TEST_F(DatasetTest, TokenizerThatDoesNotFitTheModel) {
  options_.vocab_size = 256;
  EXPECT_THAT(error("{\"text\":\"xab\"}"), StartsWith("F:1: the tokenizer gives id 300"));
}

TEST_F(DatasetTest, FilesWithoutSequences) {
  EXPECT_EQ(error(""), "F: no sequences, expected at least one JSON object a line");
  EXPECT_EQ(error("\n \r\n\n"), "F: no sequences, expected at least one JSON object a line");
  auto refused = [&](const fs::path& path) -> std::string {
    try {
      Dataset::open(path.string(), options_);
      return "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.exit_status, 2);
      return e.what();
    }
  };
  const fs::path none = file_.string() + ".none";
  EXPECT_EQ(refused(none), none.string() +
                               ": cannot be read (No such file or directory), expected a JSONL "
                               "file");
  EXPECT_THAT(refused(file_.parent_path()), HasSubstr("is a folder, expected a JSONL file"));
  EXPECT_THAT(refused("/dev/null"), HasSubstr("is no regular file"));
}

TEST_F(DatasetTest, FileCutWhileOpenIsAnError) {
  const auto data = open("{\"text\":\"a\"}\n{\"text\":\"b\"}\n");
  fs::resize_file(file_, 13);
  EXPECT_NO_THROW(data->get(0));
  EXPECT_THROW(data->get(1), Error);
}

TEST_F(DatasetTest, LinesLongerThanAnyBlock) {
  const std::string longest(3 << 20, 'x');
  options_.seq_len = 4 << 20;
  const auto data = open("{\"text\":\"a\"}\n{\"text\":\"" + longest + "\"}\n{\"text\":\"b\"}\n");
  ASSERT_EQ(data->size(), 3);
  EXPECT_EQ(data->get(1).input_ids.size(), longest.size() + 2);
  EXPECT_THAT(data->get(2).input_ids, ElementsAre(kBos, 'b', kEos));
}

int64_t resident_bytes() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

// 200,000 lines, 127 MiB; every line differs in length and every 7th is blank.
TEST_F(DatasetTest, ManyLinesAreIndexedAndNotLoaded) {
  constexpr int64_t kLines = 200'000;
  {
    std::ofstream out(file_, std::ios::binary);
    const std::string filler(1000, 'x');
    for (int64_t i = 0; i < kLines; ++i) {
      out << "{\"text\":\"" << i << ' ' << std::string_view(filler).substr(0, 300 + i % 700)
          << "\"}\n";
      if (i % 7 == 0) out << "  \n";
    }
  }
  ASSERT_GT(fs::file_size(file_), 120u << 20);
  options_.seq_len = 1 << 20;
  const int64_t before = resident_bytes();
  const auto data = Dataset::open(file_.string(), options_);
  ASSERT_EQ(data->size(), kLines);
  std::vector<std::thread> readers;
  std::atomic<int> wrong = 0;
  for (int64_t r = 0; r < 4; ++r)
    readers.emplace_back([&, r] {
      for (int64_t k = r; k < 4000; k += 4) {
        const int64_t i = k * 7919 % kLines;
        const std::string number = std::to_string(i);
        const Example e = data->get(i);
        const std::string text(e.input_ids.begin() + 1, e.input_ids.end() - 1);
        wrong += text.substr(0, number.size() + 1) != number + ' ' ||
                 static_cast<int64_t>(text.size()) != int64_t(number.size()) + 301 + i % 700;
      }
    });
  for (std::thread& t : readers) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LT(resident_bytes() - before, 16 << 20);
}

// Line 900 of a file too large to be checked when it is opened, blank lines counted.
TEST_F(DatasetTest, LargeFilesNameTheLineWhenItIsRead) {
  {
    std::ofstream out(file_, std::ios::binary);
    const std::string line = "{\"text\":\"" + std::string(50'000, 'x') + "\"}\n";
    for (int i = 1; i <= 900; ++i)
      out << (i == 900 ? "{}\n" : i % 2 ? line : i < 100 ? "\n" : line);
  }
  ASSERT_GT(fs::file_size(file_), 32u << 20);
  const auto data = Dataset::open(file_.string(), options_);
  ASSERT_EQ(data->size(), 900 - 49);
  try {
    data->get(data->size() - 1);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), StartsWith(file_.string() + ":900: no field"));
  }
}

}  // namespace
}  // namespace lorashard

// What tokenizer files and texts may be wrong about, and how it is said.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "configs/error.h"
#include "tests/trainer/tokenizer/golden.h"
#include "trainer/data/tokenizer/regex.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/data/tokenizer/unicode.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

// a b c ab abc, with one special token behind.
Json small() {
  return Json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 5, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": false, "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "dropout": null, "unk_token": null,
              "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
              "byte_fallback": false, "ignore_merges": false,
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
              "merges": [["a", "b"], "ab c"]}})");
}

template <typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_status, kExitInput);
    return error.what();
  }
  return "(no error)";
}

std::string loading(const std::string& content) {
  TemporaryDirectory directory;
  directory.write("tokenizer.json", content);
  return message_of([&] { Tokenizer::from_directory(directory.path()); });
}

// transformers resets both at every call, whatever the file was saved with.
TEST(TokenizerInput, SavedTruncationAndPaddingAreNotApplied) {
  Json tree = small();
  tree["truncation"] = {
      {"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  tree["padding"] = {{"strategy", {{"Fixed", 8}}},
                     {"direction", "Right"},
                     {"pad_to_multiple_of", nullptr},
                     {"pad_id", 5},
                     {"pad_type_id", 0},
                     {"pad_token", "<s>"}};
  TemporaryDirectory directory;
  directory.write("tokenizer.json", tree.dump());
  EXPECT_EQ(Tokenizer::from_directory(directory.path())->encode("abcabc"),
            (std::vector<int32_t>{4, 4}));
}

TEST(TokenizerInput, ASmallModelWorks) {
  TemporaryDirectory directory;
  directory.write("tokenizer.json", small().dump());
  directory.write("tokenizer_config.json", R"({"bos_token": "a", "eos_token": null})");
  // It wins over the config, which has no added_tokens_decoder.
  directory.write("special_tokens_map.json",
                  R"({"bos_token": {"content": "<s>"}, "eos_token": "<s>"})");
  const auto tokenizer = Tokenizer::from_directory(directory.path());
  EXPECT_EQ(tokenizer->encode("abcab<s>c"), (std::vector<int32_t>{4, 3, 5, 2}));
  EXPECT_EQ(tokenizer->vocab_size(), 6);
  EXPECT_EQ(tokenizer->bos_id(), 5);
  EXPECT_EQ(tokenizer->eos_id(), 5);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{4, 5, 77, -1, 2}), "abc <s> c");
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{4, 5, 2}, true), "abc c");
}

TEST(TokenizerInput, BrokenFilesAreNamed) {
  TemporaryDirectory empty;
  EXPECT_THAT(message_of([&] { Tokenizer::from_directory(empty.path()); }),
              HasSubstr("tokenizer.json: cannot be read"));
  EXPECT_THAT(loading("{\"model\": "), HasSubstr("tokenizer.json: is no valid JSON: parse error"));
  EXPECT_THAT(loading("[]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(loading("{}"), HasSubstr("model is missing"));
}

struct Broken {
  const char* pointer;  // JSON pointer of what is replaced; a '-' before it removes
  const char* value;
  const char* message;
};

TEST(TokenizerInput, EveryWrongPartIsNamed) {
  const Broken cases[] = {
      {"-/model/vocab", "", "model.vocab is missing"},
      {"-/model/merges", "", "model.merges is missing"},
      {"/model/type", "\"Unigram\"", "model.type 'Unigram' is not supported"},
      {"/model/type", "\"WordPiece\"", "model.type 'WordPiece' is not supported"},
      {"/model/vocab", "[[\"a\", 1.5]]", "model.vocab is missing"},
      {"/model/vocab/a", "-1", "id of 'a' must be a whole number"},
      {"/model/vocab/a", "1.5", "id of 'a' must be a whole number"},
      {"/model/vocab/a", "\"x\"", "id of 'a' must be a whole number"},
      {"/model/vocab/a", "3000000000", "id of 'a' must be a whole number"},
      {"/model/vocab/a", "1", "gives id 1 to both"},
      {"/model/merges/0", "[\"a\", \"x\"]",
       "merges[0] ('a', 'x'): the vocabulary has no token 'x'"},
      {"/model/merges/0", "\"b c\"", "merges[0] ('b', 'c'): the vocabulary has no token 'bc'"},
      {"/model/merges/0", "\"abc\"", "model.merges[0]: must be two tokens"},
      {"/model/merges/1", "[\"ab\"]", "model.merges[1]: must be a pair"},
      {"/model/merges/1", "7", "model.merges[1]: must be a text or a pair"},
      {"/model/dropout", "0.1", "model.dropout must be null or 0"},
      {"/model/fuse_unk", "\"no\"", "model.fuse_unk must be true or false, not string"},
      {"/model/new_setting", "1", "model.new_setting is a setting that is not supported"},
      {"/surprise", "1", "surprise is a setting that is not supported"},
      {"/version", "\"2.0\"", "version must be"},
      {"/added_tokens/0/id", "7", "added_tokens[0].id is 7, but '<s>' gets id 5"},
      {"/added_tokens/0/content", "3", "added_tokens[0].content must be a text"},
      {"-/added_tokens/0/special", "", "added_tokens[0].special is missing"},
      {"/normalizer", R"({"type": "Precompiled", "precompiled_charsmap": ""})",
       "normalizer.type 'Precompiled' is not supported"},
      {"/normalizer", R"({"type": "NFC", "form": 1})", "normalizer.form is a setting"},
      {"/normalizer", R"({"type": "Replace", "pattern": "a", "content": "b"})",
       "normalizer.pattern must be"},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}]})",
       "pre_tokenizer.pretokenizers[0].type 'BertPreTokenizer' is not supported"},
      {"/pre_tokenizer",
       R"({"type": "Split", "pattern": {"Regex": "a(?<x>b"}, "behavior": "Isolated", "invert": false})",
       "pre_tokenizer: regular expression at offset 1: the group"},
      {"/pre_tokenizer",
       R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Both", "invert": false})",
       "pre_tokenizer.behavior 'Both' is not known"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "replacement": "ab"})",
       "pre_tokenizer.replacement must be one character"},
      {"/decoder", R"({"type": "WordPiece"})", "decoder.type 'WordPiece' is not supported"},
      {"/post_processor", R"({"type": "Other"})", "post_processor.type 'Other' is not supported"},
      {"/post_processor",
       R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
           "pair": [], "special_tokens": {}})",
       "post_processor.single[0] names the special token 'x'"},
      {"/post_processor", R"({"type": "BertProcessing", "cls": ["a", 0], "sep": ["b", 99]})",
       "post_processor adds id 99, but the highest id is 5"},
  };
  ASSERT_EQ(loading(small().dump()), "(no error)");
  for (const Broken& broken : cases) {
    Json changed = small();
    if (broken.pointer[0] == '-') {
      const Json::json_pointer at(broken.pointer + 1);
      changed[at.parent_pointer()].erase(at.back());
    } else {
      changed[Json::json_pointer(broken.pointer)] = Json::parse(broken.value);
    }
    const std::string message = loading(changed.dump());
    EXPECT_THAT(message, HasSubstr(broken.message)) << broken.pointer;
    EXPECT_THAT(message, HasSubstr("tokenizer.json: ")) << broken.pointer;
  }
}

TEST(TokenizerInput, ATokenThatStandsTwiceIsRefused) {
  std::string content = small().dump();
  content.replace(content.find("\"vocab\":{"), 9, "\"vocab\":{\"b\":9,");
  EXPECT_THAT(loading(content), HasSubstr("model.vocab: the token 'b' stands twice"));
}

TEST(TokenizerInput, OtherFilesAreReadAndMustAgree) {
  TemporaryDirectory directory;
  directory.write("tokenizer.json", small().dump());
  directory.write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  const auto fresh = Tokenizer::from_directory(directory.path());
  EXPECT_EQ(fresh->eos_id(), 6);
  EXPECT_EQ(fresh->encode("</s>"), std::vector<int32_t>{6});
  ASSERT_EQ(fresh->notes().size(), 1u);
  EXPECT_THAT(fresh->notes()[0], HasSubstr("eos_token is '</s>', which has no id anywhere"));
  const auto declare = [&](const std::string& list) {
    directory.write("tokenizer_config.json", "{\"added_tokens_decoder\": " + list + "}");
    return message_of([&] { Tokenizer::from_directory(directory.path()); });
  };
  EXPECT_THAT(
      declare(R"({"4": {"content": "<x>"}})"),
      HasSubstr("added_tokens_decoder.4: gives '<x>' the id 4, but the next free one is 6"));
  EXPECT_THAT(declare(R"({"6": {"content": "<s>"}})"), HasSubstr("but it has 5"));
  EXPECT_THAT(declare(R"({"x": {"content": "<s>"}})"), HasSubstr("has the id 'x'"));
  EXPECT_THAT(declare(R"({"6": "<x>"})"), HasSubstr("must be an object"));
  EXPECT_THAT(declare(R"({"6": {"content": "<x>", "lstrip": 1}})"), HasSubstr("lstrip must be"));
  EXPECT_THAT(declare("[]"), HasSubstr("must map ids to tokens"));
  // Other flags of a token that is there count, and so does the config alone.
  directory.write("special_tokens_map.json", R"({"eos_token": "<s>"})");
  directory.write("added_tokens.json", R"({"<y>": 6})");
  EXPECT_EQ(declare(R"({"5": {"content": "<s>", "lstrip": true, "special": true}})"), "(no error)");
  const auto changed = Tokenizer::from_directory(directory.path());
  EXPECT_EQ(changed->encode("a  <s>"), (std::vector<int32_t>{0, 5}));
  EXPECT_EQ(changed->eos_id(), std::nullopt);
  ASSERT_EQ(changed->notes().size(), 3u);
  EXPECT_THAT(changed->notes()[0],
              HasSubstr("special_tokens_map.json: eos_token '<s>' is not read"));
  EXPECT_THAT(changed->notes()[1], HasSubstr("added_tokens.json: '<y>' is not read"));
  EXPECT_THAT(changed->notes()[2], HasSubstr("its flags for '<s>'"));
  std::filesystem::remove(directory.path() / "special_tokens_map.json");
  std::filesystem::remove(directory.path() / "added_tokens.json");
  directory.write("tokenizer_config.json", "{");
  EXPECT_THAT(message_of([&] { Tokenizer::from_directory(directory.path()); }),
              HasSubstr("tokenizer_config.json: is not valid JSON"));
}

TEST(TokenizerInput, InvalidUtf8IsFound) {
  EXPECT_EQ(find_invalid_utf8(""), kValidUtf8);
  EXPECT_EQ(find_invalid_utf8("plain text, long enough\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80"),
            kValidUtf8);
  EXPECT_EQ(find_invalid_utf8("\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF"), kValidUtf8);
  EXPECT_EQ(find_invalid_utf8("ab\x80"), 2u);
  EXPECT_EQ(find_invalid_utf8("12345678\xC0\x80"), 8u);   // overlong
  EXPECT_EQ(find_invalid_utf8("a\xE0\x80\x80"), 1u);      // overlong
  EXPECT_EQ(find_invalid_utf8("a\xED\xA0\x80"), 1u);      // surrogate
  EXPECT_EQ(find_invalid_utf8("a\xF4\x90\x80\x80"), 1u);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("abc\xE4\xB8"), 3u);        // cut off
  EXPECT_EQ(replace_invalid_utf8("a\xE4\xB8"
                                 "b\xFF"),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD");
}

class TokenizeLines : public testing::Test {
 protected:
  TokenizeLines() {
    directory_.write("tokenizer.json", small().dump());
    tokenizer_ = Tokenizer::from_directory(directory_.path());
  }
  std::string run(const std::string& input, bool decode) {
    std::istringstream in(input);
    std::ostringstream out;
    tokenize_lines(*tokenizer_, in, out, decode, "lines");
    return out.str();
  }
  std::string error(const std::string& input, bool decode) {
    return message_of([&] { run(input, decode); });
  }
  TemporaryDirectory directory_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

TEST_F(TokenizeLines, EncodesAndDecodes) {
  EXPECT_EQ(run("\"abc\"\n\"\"\n\"\\u0061b\"\n", false), "[4]\n[]\n[3]\n");
  EXPECT_EQ(run("[4,5]\n[]\n[ 0 ]", true), "\"abc <s>\"\n\"\"\n\"a\"\n");
}

TEST_F(TokenizeLines, NamesTheLine) {
  EXPECT_EQ(error("\"a\"\n\"a\xFF\"\n", false), "lines:2: byte 3 is no valid UTF-8");
  EXPECT_THAT(error("\"a\"\nabc\n", false), HasSubstr("lines:2: is no valid JSON"));
  EXPECT_THAT(error("\"\\ud800\"\n", false), HasSubstr("lines:1: is no valid JSON"));
  EXPECT_EQ(error("[1]\n", false), "lines:1: must be one JSON string");
  EXPECT_EQ(error("\"a\"\n", true), "lines:1: must be a JSON array of ids");
  EXPECT_EQ(error("[0]\n[1, 6]\n", true), "lines:2: element 2 is 6, which no token has as its id");
  EXPECT_EQ(error("[1.5]\n", true), "lines:1: element 1 must be a whole number");
}

TEST_F(TokenizeLines, EncodeNamesTheByte) {
  EXPECT_EQ(message_of([&] { tokenizer_->encode("abc\xC3"); }),
            "text: is no valid UTF-8 at byte 3");
}

std::vector<std::string> matches(const std::string& pattern, const std::string& text) {
  std::vector<Match> found;
  Regex(translate_regex(pattern, "test"), "test").find_matches(text, found);
  std::vector<std::string> result;
  for (const Match& match : found) {
    if (match.is_match) result.push_back(text.substr(match.begin, match.end - match.begin));
  }
  return result;
}

using Texts = std::vector<std::string>;

TEST(TokenizerRegex, ReadsPatternsAsOnigurumaDoes) {
  EXPECT_EQ(matches("\\p{N}{1,3}+", "123456 78"), (Texts{"123456", "78"}));  // not possessive
  EXPECT_EQ(matches("a{,2}b", "aaab"), (Texts{"aab"}));
  EXPECT_EQ(matches("^a$", "a\nb\na"), (Texts{"a", "a"}));             // lines
  EXPECT_EQ(matches("\\s", "\u180e \u0085"), (Texts{" ", "\u0085"}));  // U+180E is no space
  EXPECT_EQ(matches("(?i:'s)", "'S'\u017f"), (Texts{"'S", "'\u017f"}));
  EXPECT_EQ(matches("\\h+", "af09g"), (Texts{"af09"}));  // hexadecimal digits
  EXPECT_EQ(matches("x*", "axb"), (Texts{"", "x", ""}));
  EXPECT_EQ(matches("[^\\S\\n]+", " \n\t"), (Texts{" ", "\t"}));
  EXPECT_EQ(matches("\\bab\\b", "ab cab ab\u0301"), (Texts{"ab"}));
  EXPECT_EQ(matches("\\p{Lo}+", "\U0002ebf0\u4e2d"), (Texts{"\U0002ebf0\u4e2d"}));  // Unicode 16
  EXPECT_EQ(matches("\\bab\\b", "ab ab1 \u200dab ab\u00b2"), (Texts{"ab", "ab"}));
  EXPECT_EQ(matches("(?i)ab|C", "AB c"), (Texts{"AB", "c"}));
  EXPECT_EQ(matches("[^\\W\\d]+", "a1_b"), (Texts{"a", "_b"}));
  EXPECT_EQ(matches("\\W", "a_-\u00b2\u0301"), (Texts{"-"}));
  EXPECT_EQ(matches("\\p{^L}+", "a12b"), (Texts{"12"}));
  EXPECT_EQ(matches(".", "a\nb"), (Texts{"a", "b"}));
  EXPECT_EQ(matches("a|", "ba"), (Texts{"", "a"}));
  EXPECT_EQ(matches("\\v", "\v\n\u2028"), (Texts{"\v"}));
  EXPECT_EQ(matches("b\\Z", "b\nb\n"), (Texts{"b"}));
  EXPECT_EQ(matches("[\\x41-\\x43]+", "ABCD"), (Texts{"ABC"}));
  EXPECT_EQ(matches("\\u00e9+\\x{1F600}", "\u00e9\u00e9\U0001F600"),
            (Texts{"\u00e9\u00e9\U0001F600"}));
  EXPECT_EQ(matches("[a\\-c]+x{", "a-cx{"), (Texts{"a-cx{"}));
  for (const char* pattern :
       {"[a[bc]]", "[a&&b]", "(?m:.)", "a(?i)b", "\\p{Greek}", "\\1", "a{2}?", "(?i:\\p{L})",
        "(?i:ss)", "(?i:\u00e9)", "\\R", "(?<n>a)", "a\\", "(a"}) {
    EXPECT_THAT(message_of([&] { translate_regex(pattern, "test"); }),
                HasSubstr("test: regular expression at offset"))
        << pattern;
  }
}

// What the library matches, or refused: quantifiers that PCRE2 reads otherwise.
TEST(TokenizerRegex, QuantifiersAreReadAsOnigurumaDoes) {
  const std::pair<const char*, Texts> cases[] = {
      {"xa{,2}", {"xaa", "xa", "xaa", "xa", "x"}},
      {"xa{1,2}+", {"xaaaaaaaaa", "xa", "xaa", "xa"}},
      {"xa{2}{3}", {"xaaaaaa"}},
      {"xa{2,1}", {"xaa", "xa", "xaa", "xa"}},
      {"xa?{2}", {"xaa", "xa", "xaa", "xa", "x"}},
      {"xa*{2}", {"xaaaaaaaaa", "xa", "xaa", "xa", "x"}},
      {"xa+{2}", {"xaaaaaaaaa", "xaa"}},
      {"xa{2}*", {"xaaaaaaaa", "x", "xaa", "x", "x"}},
      {"xa{2}+", {"xaaaaaaaa", "xaa"}},
      {"xa{1,2}?", {"xa", "xa", "xa", "xa"}},
      {"xa{0,1}{2}", {"xaa", "xa", "xaa", "xa", "x"}},
      {"xa??{2}", {"x", "x", "x", "x", "x"}},
      {"xa+?+", {"xaaaaaaaaa", "xa", "xaa", "xa"}},
      {"xa?+*", {"xaaaaaaaaa", "xa", "xaa", "xa", "x"}},
      {"xa{1,2}??", {"xa", "xa", "xa", "xa", "x"}},
      {"xa{1,2}*?", {"x", "x", "x", "x", "x"}},
      {"xa**", {"xaaaaaaaaa", "xa", "xaa", "xa", "x"}},
      {"xa+*", {"xaaaaaaaaa", "xa", "xaa", "xa", "x"}},
      {"xa?+a", {"xaa", "xaa"}},
      {"xa++a", {}},
      {"xa*+a", {}},
      {"xa{,2}?", {"x", "x", "x", "x", "x"}},
      {"xa{,2}+", {"xaaaaaaaaa", "xa", "xaa", "xa", "x"}},
      {"xa{1,}+a", {"xaaaaaaaaa", "xaa"}},
      {"xa{1,}?", {"xa", "xa", "xa", "xa"}},
      {"xa{,1}{,2}", {"xaa", "xa", "xaa", "xa", "x"}},
      {"x(?:a{2}){,2}", {"xaaaa", "x", "xaa", "x", "x"}},
  };
  std::string refused;
  for (const auto& [pattern, expected] : cases) {
    try {
      EXPECT_EQ(matches(pattern, "yxaaaaaaaaay xab xaaz xaz xz"), expected) << pattern;
    } catch (const Error&) {
      refused += std::string(pattern) + " ";
    }
  }
  EXPECT_EQ(refused,
            "xa{2}{3} xa{2,1} xa?{2} xa*{2} xa+{2} xa{2}* xa{0,1}{2} xa??{2} xa+?+ xa?+* "
            "xa{1,2}?? xa{1,2}*? xa** xa+* xa{,1}{,2} ");
}

TEST(TokenizerUnicode, KeepsTheVersionsOfTheLibrary) {
  EXPECT_EQ(normalize(NormalForm::kNfc, "e\u0301\u212b"), "\u00e9\u00c5");
  EXPECT_EQ(normalize(NormalForm::kNfkc, "\ufb01\u00bd"), "fi1\u20442");
  // U+0898 is a mark of Unicode 14 that blocks nothing there and all in Unicode 9.
  EXPECT_EQ(normalize(NormalForm::kNfc, "a\u1dfa\u0301"), "a\u1dfa\u0301");
  EXPECT_TRUE(is_numeric(0x16FF4));  // Unicode 17
  EXPECT_FALSE(character_kind(0x16FF4) & kNumber);
  EXPECT_FALSE(is_punctuation(0x2E52));  // Unicode 14
  EXPECT_TRUE(is_punctuation(0x2E42));
  EXPECT_FALSE(is_combining_mark(0x1DFA));
  std::string lower;
  append_lowercase(lower, 0x130);
  append_lowercase(lower, 0x10D50);
  EXPECT_EQ(lower, "i\u0307\U00010d70");
}

}  // namespace
}  // namespace lorashard

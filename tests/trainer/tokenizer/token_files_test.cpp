// Tokens that stand beside tokenizer.json give the ids of transformers
// (tests/golden/tokenizers/make_token_files.py wrote them).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/expect_error.h"
#include "tests/trainer/tokenizer/golden.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

TEST(TokenFiles, AreReadAsTransformersDoes) {
  const std::string tree = unpack("smollm.json.xz");
  const Json cases = Json::parse(unpack("token_files.json.xz"));
  ASSERT_GE(cases.size(), 80u);
  for (const Json& one : cases) {
    SCOPED_TRACE(one["files"].dump());
    TemporaryDirectory directory;
    directory.write("tokenizer.json", tree);
    for (const auto& [name, content] : one["files"].items()) directory.write(name, content.dump());
    const auto tokenizer = Tokenizer::from_directory(directory.path());
    for (size_t i = 0; i < one["texts"].size(); ++i) {
      EXPECT_EQ(Json(tokenizer->encode(one["texts"][i].get<std::string>())), one["ids"][i])
          << one["texts"][i];
    }
    const auto id = [](const std::optional<int32_t>& value) {
      return value ? Json(*value) : Json();
    };
    EXPECT_EQ(id(tokenizer->bos_id()), one["bos"]);
    EXPECT_EQ(id(tokenizer->eos_id()), one["eos"]);
  }
}

TEST(TokenFiles, ThatAreBrokenAreNamed) {
  TemporaryDirectory directory;
  directory.write("tokenizer.json", unpack("smollm.json.xz"));
  const std::pair<const char*, const char*> cases[] = {
      {"{\"a\": ", "is not valid JSON"},
      {"[]", "must be a JSON object"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"},
      {R"({"eos_token": "<s>", "eos_token": "</s>"})", "\"eos_token\" is given twice"}};
  for (const std::string name :
       {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}) {
    for (const auto& [content, what] : cases) {
      directory.write(name, content);
      test::expect_error(2, {name + ": ", what},
                         [&] { Tokenizer::from_directory(directory.path()); });
    }
    std::filesystem::remove(directory.path() / name);
  }
}

}  // namespace
}  // namespace lorashard

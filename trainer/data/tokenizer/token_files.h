// The tokens that a Hugging Face folder declares beside tokenizer.json, and what it calls bos and
// eos: what transformers 5 reads for a tokenizer of its tokenizers library, in its order.
//
//   tokenizer_config.json with added_tokens_decoder: that list and the config's names (bos_token,
//   …,
//     *_token, extra_special_tokens or additional_special_tokens). special_tokens_map.json and
//     added_tokens.json are not read.
//   otherwise: special_tokens_map.json, whose names win over the config's, and added_tokens.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/tokenizer/added_tokens.h"

namespace lorashard {

struct DeclaredToken {
  AddedToken token;           // id: not set
  std::optional<int64_t> id;  // as declared
  bool overrides = true;      // its flags count also where tokenizer.json or the list of ids have
                              // the token; else those do
  std::string where;          // "FILE: key", for messages
};

struct TokenFiles {
  std::vector<DeclaredToken> tokens;    // in the order in which they are added
  std::optional<std::string> bos, eos;  // contents
  std::vector<std::string> notes;       // what is there and not read
};

// Errors: status 2, "FILE: key …": broken files, lists and tokens of another form.
TokenFiles read_token_files(const std::filesystem::path& directory);

}  // namespace lorashard

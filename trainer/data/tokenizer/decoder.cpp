#include "trainer/data/tokenizer/decoder.h"

#include <algorithm>
#include <cctype>

#include "trainer/data/tokenizer/normalizer.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

std::string join(const std::vector<std::string>& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

// The bytes that byte-level characters stand for; a token with another character is itself.
std::string join_byte_level(const std::vector<std::string>& tokens) {
  std::string bytes;
  for (const std::string& token : tokens) {
    const size_t before = bytes.size();
    for (const char* p = token.data(); p < token.data() + token.size();) {
      const int byte = byte_of_character(next_code_point(p));
      if (byte < 0) {
        bytes.resize(before);
        bytes += token;
        break;
      }
      bytes += static_cast<char>(byte);
    }
  }
  return find_invalid_utf8(bytes) == kValidUtf8 ? bytes : replace_invalid_utf8(bytes);
}

// The byte of a token "<0xHH>", or -1.
int fallback_byte(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int value = 0;
  for (int i = 3; i < 5; ++i) {
    const auto digit = static_cast<unsigned char>(token[static_cast<size_t>(i)]);
    if (!std::isxdigit(digit)) return -1;
    value = value * 16 + (std::isdigit(digit) ? digit - '0' : std::tolower(digit) - 'a' + 10);
  }
  return value;
}

// Runs of byte tokens become text; where they are no UTF-8, each becomes U+FFFD.
std::vector<std::string> join_byte_fallback(std::vector<std::string> tokens) {
  std::vector<std::string> result;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (find_invalid_utf8(bytes) == kValidUtf8) {
      result.push_back(bytes);
    } else {
      result.insert(result.end(), bytes.size(), "\xEF\xBF\xBD");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const int byte = fallback_byte(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {
      flush();
      result.push_back(std::move(token));
    }
  }
  flush();
  return result;
}

void strip(std::string& token, const std::string& character, int64_t start, int64_t stop) {
  size_t begin = 0;
  for (int64_t i = 0; i < start && token.compare(begin, character.size(), character) == 0; ++i) {
    begin += character.size();
  }
  size_t end = token.size();
  for (int64_t i = 0; i < stop && end >= begin + character.size() &&
                      token.compare(end - character.size(), character.size(), character) == 0;
       ++i) {
    end -= character.size();
  }
  token = token.substr(begin, end - begin);
}

}  // namespace

Decoder::Step Decoder::read_step(Fields& fields) {
  const std::string type = fields.type();
  Step step{};
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"}) fields.ignore(key);
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    append_code_point(step.content, fields.character("replacement"));
    const std::string scheme = fields.text_or("prepend_scheme", "always");
    if (scheme != "first" && scheme != "never" && scheme != "always") {
      fields.fail("prepend_scheme", "must be first, never or always, not '" + scheme + "'");
    }
    if (!fields.flag_or("add_prefix_space", true) && scheme != "never") {
      fields.fail("add_prefix_space", "is false, which contradicts prepend_scheme " + scheme);
    }
    step.drops_first = scheme != "never";
    fields.ignore("split");
    fields.ignore("str_rep");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    const PatternField pattern = read_pattern(fields);
    step.regex =
        std::make_shared<Regex>(pattern.is_regex ? translate_regex(pattern.text, fields.where())
                                                 : escape_regex(pattern.text),
                                fields.where());
    step.content = fields.text("content");
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    append_code_point(step.content, fields.character("content"));
    step.start = fields.integer("start");
    step.stop = fields.integer("stop");
    if (step.start < 0) fields.fail("start", "must not be negative");
    if (step.stop < 0) fields.fail("stop", "must not be negative");
  } else {
    fields.fail("type", "'" + type +
                            "' is not supported; known decoders are Sequence, ByteLevel, "
                            "ByteFallback, Fuse, Metaspace, Replace and Strip");
  }
  fields.finish();
  return step;
}

Decoder::Decoder(const Json* component, const std::string& file) {
  if (component == nullptr || component->is_null()) return;
  present_ = true;
  for (Fields& fields : flatten_sequence(*component, file, "decoder", "decoders")) {
    steps_.push_back(read_step(fields));
  }
}

std::string Decoder::decode(std::vector<std::string> tokens) const {
  if (!present_) {
    std::string text;
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) text += ' ';
      text += tokens[i];
    }
    return text;
  }
  for (const Step& step : steps_) run(step, tokens);
  return join(tokens);
}

void Decoder::run(const Step& step, std::vector<std::string>& tokens) {
  switch (step.kind) {
    case Kind::kByteLevel:
      tokens = {join_byte_level(tokens)};
      break;
    case Kind::kByteFallback:
      tokens = join_byte_fallback(std::move(tokens));
      break;
    case Kind::kFuse:
      tokens = {join(tokens)};
      break;
    case Kind::kMetaspace:
      for (size_t i = 0; i < tokens.size(); ++i) {
        std::string text;
        std::string_view rest = tokens[i];
        while (!rest.empty()) {
          if (rest.starts_with(step.content)) {
            if (i > 0 || !step.drops_first) text += ' ';
            rest.remove_prefix(step.content.size());
          } else {
            const auto length = static_cast<size_t>(utf8_length(rest[0]));
            text += rest.substr(0, length);
            rest.remove_prefix(length);
          }
        }
        tokens[i] = std::move(text);
      }
      break;
    case Kind::kReplace: {
      std::vector<Match> matches;
      for (std::string& token : tokens) {
        std::string text;
        step.regex->find_matches(token, matches);
        for (const Match& match : matches) {
          if (match.is_match) {
            text += step.content;
          } else {
            text.append(token, match.begin, match.end - match.begin);
          }
        }
        token = std::move(text);
      }
      break;
    }
    case Kind::kStrip:
      for (std::string& token : tokens) strip(token, step.content, step.start, step.stop);
      break;
  }
}

}  // namespace lorashard

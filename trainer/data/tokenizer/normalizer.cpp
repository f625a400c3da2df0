#include "trainer/data/tokenizer/normalizer.h"

#include <algorithm>
#include <array>

#include "configs/error.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

// Control characters that Nmt drops, and the characters it takes for spaces.
bool nmt_drops(char32_t c) {
  return (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F ||
         c == 0x8F || c == 0x9F;
}
bool nmt_is_space(char32_t c) {
  return c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF ||
         c == 0xFFFD;
}

// Bytes that print as themselves in byte-level vocabularies.
bool prints_as_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct ByteLevelAlphabet {
  std::array<std::string, 256> character;
  std::array<int16_t, 512> byte;
  ByteLevelAlphabet() {
    byte.fill(-1);
    char32_t next = 256;  // the others follow in order
    for (int b = 0; b < 256; ++b) {
      const char32_t c = prints_as_itself(b) ? static_cast<char32_t>(b) : next++;
      append_code_point(character[static_cast<size_t>(b)], c);
      byte[c] = static_cast<int16_t>(b);
    }
  }
};

const ByteLevelAlphabet& byte_level_alphabet() {
  static const ByteLevelAlphabet alphabet;
  return alphabet;
}

// Appends to `after` the origins of part[first …], to which a normal form rewrote old[first …] at
// byte `from` of the input. As the library has it: the first character stands for as many as are
// gone, the others are counted from the end.
void align_rewritten(std::string_view old, std::string_view part, size_t first, size_t from,
                     const std::vector<uint32_t>& before, std::vector<uint32_t>& after) {
  std::vector<uint32_t> sources;  // of each character of old[first …]
  for (size_t i = first; i < old.size(); ++i) {
    if (begins_code_point(old[i])) sources.push_back(before[from + i]);
  }
  if (sources.empty()) sources.push_back(before[from + old.size() - 1]);
  const auto written =
      std::count_if(part.begin() + static_cast<ptrdiff_t>(first), part.end(), begins_code_point);
  const auto gone = static_cast<ptrdiff_t>(sources.size()) - written;
  ptrdiff_t character = 0;
  for (size_t i = first; i < part.size(); ++character) {
    const auto length = static_cast<size_t>(utf8_length(part[i]));
    const auto last = static_cast<size_t>(std::max<ptrdiff_t>(0, character + gone));
    after.resize(after.size() + length, sources[character == 0 ? 0 : last]);
    after.back() = sources[length > 1 || character > 0 ? last : 0];
    i += length;
  }
}

}  // namespace

const std::string& byte_level_character(unsigned char byte) {
  return byte_level_alphabet().character[byte];
}

void append_byte_level(std::string& text, std::string_view bytes) {
  const ByteLevelAlphabet& alphabet = byte_level_alphabet();
  for (const char c : bytes) text += alphabet.character[static_cast<unsigned char>(c)];
}

int byte_of_character(char32_t c) { return c < 512 ? byte_level_alphabet().byte[c] : -1; }

Normalizer::Normalizer(const Json* component, const std::string& file) {
  if (component == nullptr || component->is_null()) return;
  for (Fields& fields : flatten_sequence(*component, file, "normalizer", "normalizers")) {
    const std::string type = fields.type();
    Step step{};
    if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
      step.kind = Kind::kForm;
      step.form = type == "NFC"    ? NormalForm::kNfc
                  : type == "NFD"  ? NormalForm::kNfd
                  : type == "NFKC" ? NormalForm::kNfkc
                                   : NormalForm::kNfkd;
    } else if (type == "Lowercase") {
      step.kind = Kind::kLowercase;
    } else if (type == "Prepend") {
      step.kind = Kind::kPrepend;
      step.content = fields.text("prepend");
    } else if (type == "Replace") {
      step.kind = Kind::kReplace;
      const PatternField pattern = read_pattern(fields);
      if (pattern.is_regex) {
        const std::string where = fields.where();
        step.regex = std::make_shared<Regex>(translate_regex(pattern.text, where), where);
      } else {
        step.literal = pattern.text;
      }
      step.content = fields.text("content");
    } else if (type == "Strip") {
      step.kind = Kind::kStrip;
      step.left = fields.flag("strip_left");
      step.right = fields.flag("strip_right");
    } else if (type == "StripAccents") {
      step.kind = Kind::kStripAccents;
    } else if (type == "Nmt") {
      step.kind = Kind::kNmt;
    } else if (type == "ByteLevel") {
      step.kind = Kind::kByteLevel;
    } else {
      fields.fail("type",
                  "'" + type +
                      "' is not supported; known normalizers are Sequence, NFC, "
                      "NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents, Nmt "
                      "and ByteLevel");
    }
    fields.finish();
    steps_.push_back(std::move(step));
  }
}

std::string_view Normalizer::apply(std::string_view text, std::string& buffer,
                                   std::vector<uint32_t>* origins) const {
  std::vector<uint32_t> before;
  if (origins != nullptr) {
    origins->resize(text.size());
    for (size_t i = 0; i < text.size(); ++i) (*origins)[i] = static_cast<uint32_t>(i);
  }
  std::string next;
  for (const Step& step : steps_) {
    if (origins != nullptr) before = *origins;
    next.clear();
    if (run(step, text, next, origins != nullptr ? &before : nullptr, origins)) {
      buffer.swap(next);
      text = buffer;
    }
  }
  return text;
}

// Writes the result to `out` and returns true, or returns false where the step changes nothing.
bool Normalizer::run(const Step& step, std::string_view text, std::string& out,
                     const std::vector<uint32_t>* before, std::vector<uint32_t>* after) {
  if (text.empty()) return false;
  if (after != nullptr) after->clear();
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  // Gives the bytes written since the last call the origin of the input byte at `from`.
  const auto mark = [&](size_t from) {
    if (after != nullptr) after->resize(out.size(), (*before)[from]);
  };
  const auto copy = [&](size_t from, size_t to) {
    out.append(text.substr(from, to - from));
    if (after != nullptr) {
      after->insert(after->end(), before->begin() + static_cast<ptrdiff_t>(from),
                    before->begin() + static_cast<ptrdiff_t>(to));
    }
  };
  const auto unchanged = [&] {
    if (after != nullptr) *after = *before;
    return false;
  };
  switch (step.kind) {
    case Kind::kForm:
      if (is_normalized(step.form, text)) return unchanged();
      if (after == nullptr) {
        out = normalize(step.form, text);
        return true;
      }
      // Nothing is composed across a boundary, so what lies between two is aligned by itself.
      for (size_t from = 0, to; from < text.size(); from = to) {
        to = end_of_normalized_part(step.form, text, from);
        const std::string_view old = text.substr(from, to - from);
        const std::string part = normalize(step.form, old);
        const auto [same, unused] = std::mismatch(old.begin(), old.end(), part.begin(), part.end());
        auto first = static_cast<size_t>(same - old.begin());
        while (first > 0 && first < old.size() && !begins_code_point(old[first])) --first;
        out.append(old.substr(0, first));
        after->insert(after->end(), before->begin() + static_cast<ptrdiff_t>(from),
                      before->begin() + static_cast<ptrdiff_t>(from + first));
        out.append(part, first);
        align_rewritten(old, part, first, from, *before, *after);
      }
      return true;
    case Kind::kPrepend:
      out = step.content;
      mark(0);
      copy(0, text.size());
      // The library aligns the first character with what was put before it.
      return true;
    case Kind::kReplace: {
      out.reserve(text.size() + text.size() / 4);
      size_t last = 0;
      const auto replace = [&](size_t from, size_t to) {
        copy(last, from);
        out += step.content;
        mark(to > 0 ? to - 1 : 0);  // aligned with the last byte that it replaces
        last = to;
      };
      if (step.regex != nullptr) {
        std::vector<Match> matches;
        step.regex->find_matches(text, matches);
        for (const Match& match : matches) {
          if (match.is_match) replace(match.begin, match.end);
        }
      } else {
        for (size_t at = text.find(step.literal); at != std::string_view::npos;
             at = text.find(step.literal, last)) {
          replace(at, at + step.literal.size());
        }
      }
      if (last == 0 && out.empty()) return unchanged();
      copy(last, text.size());
      return true;
    }
    case Kind::kStrip: {
      const char* from = begin;
      const char* to = end;
      while (step.left && from < to) {
        const char* next = from;
        if (!is_space(next_code_point(next))) break;
        from = next;
      }
      while (step.right && to > from) {
        const char* last = previous_code_point(to);
        const char* p = last;
        if (!is_space(next_code_point(p))) break;
        to = last;
      }
      copy(static_cast<size_t>(from - begin), static_cast<size_t>(to - begin));
      return true;
    }
    case Kind::kByteLevel:
      for (size_t i = 0; i < text.size(); ++i) {
        out += byte_level_character(static_cast<unsigned char>(text[i]));
        mark(i);
      }
      return true;
    case Kind::kLowercase:
    case Kind::kStripAccents:
    case Kind::kNmt:
      out.reserve(text.size());
      for (const char* p = begin; p < end;) {
        const auto from = static_cast<size_t>(p - begin);
        const char32_t c = next_code_point(p);
        if (step.kind == Kind::kLowercase) {
          append_lowercase(out, c);
        } else if (step.kind == Kind::kStripAccents) {
          if (!is_combining_mark(c)) append_code_point(out, c);
        } else if (!nmt_drops(c)) {
          append_code_point(out, nmt_is_space(c) ? U' ' : c);
        }
        mark(from);
      }
      return true;
  }
  return unchanged();
}

}  // namespace lorashard

#include "trainer/data/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "trainer/data/tokenizer/normalizer.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace lorashard {
namespace {

// Each character that `accepts` is one match.
template <typename Accepts>
void match_characters(std::string_view text, std::vector<Match>& matches, Accepts accepts) {
  matches.clear();
  const char* const begin = text.data();
  size_t covered = 0;
  for (const char* p = begin; p < begin + text.size();) {
    const auto from = static_cast<size_t>(p - begin);
    if (!accepts(next_code_point(p))) continue;
    const auto to = static_cast<size_t>(p - begin);
    if (covered < from) matches.push_back({covered, from, false});
    matches.push_back({from, to, true});
    covered = to;
  }
  if (covered < text.size()) matches.push_back({covered, text.size(), false});
}

// Rust's \w+|[^\w\s]+: runs of word characters, runs of what is neither word nor space.
void match_whitespace_words(std::string_view text, std::vector<Match>& matches) {
  matches.clear();
  const char* const begin = text.data();
  int previous = -1;
  for (const char* p = begin; p < begin + text.size();) {
    const auto from = static_cast<size_t>(p - begin);
    const char32_t c = next_code_point(p);
    const int kind = is_added_word(c) ? 1 : is_space(c) ? 0 : 2;
    const auto to = static_cast<size_t>(p - begin);
    if (kind == previous) {
      matches.back().end = to;
    } else {
      matches.push_back({from, to, kind != 0});
    }
    previous = kind;
  }
}

// Joins a match with what lies before it (in the order of iteration).
template <typename Iterator>
std::vector<Match> merge_with_previous(Iterator first, Iterator last) {
  std::vector<Match> merged;
  bool previous = false;
  for (; first != last; ++first) {
    if (first->is_match && !previous && !merged.empty()) {
      merged.back().begin = std::min(merged.back().begin, first->begin);
      merged.back().end = std::max(merged.back().end, first->end);
    } else {
      merged.push_back(*first);
    }
    previous = first->is_match;
  }
  return merged;
}

}  // namespace

PreTokenizer::Behavior PreTokenizer::read_behavior(Fields& fields) {
  const std::string name = fields.text("behavior");
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  fields.fail("behavior", "'" + name +
                              "' is not known; known are Removed, Isolated, "
                              "MergedWithPrevious, MergedWithNext and Contiguous");
}

PreTokenizer::Stage PreTokenizer::read_stage(Fields& fields) {
  const std::string type = fields.type();
  Stage stage{};
  if (type == "ByteLevel") {
    stage.kind = Kind::kByteLevel;
    stage.prefix_space = fields.flag("add_prefix_space");
    stage.use_regex = fields.flag_or("use_regex", true);
    fields.ignore("trim_offsets");  // offsets only
    if (stage.use_regex) {
      stage.pattern = WordPattern::kGpt2;
      stage.regex_text = kGpt2Regex;
    }
  } else if (type == "Split") {
    stage.kind = Kind::kSplit;
    const PatternField pattern = read_pattern(fields);
    stage.behavior = read_behavior(fields);
    stage.invert = fields.flag("invert");
    if (pattern.is_regex && stage.behavior == Behavior::kIsolated) {
      stage.pattern = known_word_pattern(pattern.text);
    }
    if (stage.pattern) {
      stage.regex_text = pattern.text;
    } else {
      stage.regex =
          std::make_shared<Regex>(pattern.is_regex ? translate_regex(pattern.text, fields.where())
                                                   : escape_regex(pattern.text),
                                  fields.where());
    }
  } else if (type == "Metaspace") {
    stage.kind = Kind::kMetaspace;
    append_code_point(stage.replacement, fields.character("replacement"));
    const std::string scheme = fields.text_or("prepend_scheme", "always");
    if (scheme != "first" && scheme != "never" && scheme != "always") {
      fields.fail("prepend_scheme", "must be first, never or always, not '" + scheme + "'");
    }
    stage.scheme = scheme == "first"   ? Scheme::kFirst
                   : scheme == "never" ? Scheme::kNever
                                       : Scheme::kAlways;
    if (!fields.flag_or("add_prefix_space", true)) {
      if (stage.scheme != Scheme::kNever) {
        fields.fail("add_prefix_space", "is false, which contradicts prepend_scheme " + scheme);
      }
    }
    stage.split = fields.flag_or("split", true);
    fields.ignore("str_rep");  // the replacement once more
  } else if (type == "Whitespace") {
    stage.kind = Kind::kWhitespace;
  } else if (type == "WhitespaceSplit") {
    stage.kind = Kind::kWhitespaceSplit;
  } else if (type == "Digits") {
    stage.kind = Kind::kDigits;
    stage.behavior = fields.flag("individual_digits") ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "Punctuation") {
    stage.kind = Kind::kPunctuation;
    if (fields.find("behavior") != nullptr) stage.behavior = read_behavior(fields);
  } else {
    fields.fail("type", "'" + type +
                            "' is not supported; known pre-tokenizers are Sequence, "
                            "ByteLevel, Split, Metaspace, Whitespace, WhitespaceSplit, Digits and "
                            "Punctuation");
  }
  fields.finish();
  return stage;
}

PreTokenizer::PreTokenizer(const Json* component, const std::string& file) {
  if (component == nullptr || component->is_null()) return;
  for (Fields& fields : flatten_sequence(*component, file, "pre_tokenizer", "pretokenizers")) {
    stages_.push_back(read_stage(fields));
  }
}

void PreTokenizer::use_regex_only() {
  regex_only_ = true;
  for (Stage& stage : stages_) {
    if (!stage.pattern) continue;
    const std::string where = "pre_tokenizer";
    stage.regex = std::make_shared<Regex>(translate_regex(stage.regex_text, where), where);
  }
}

bool PreTokenizer::needs_origins() const {
  return std::any_of(stages_.begin(), stages_.end(), [](const Stage& stage) {
    return stage.kind == Kind::kMetaspace && stage.scheme == Scheme::kFirst;
  });
}

void PreTokenizer::run(const Piece& piece, bool raw_bytes, Workspace& work,
                       const Sink& sink) const {
  work.matches.resize(stages_.size());
  work.text.resize(stages_.size());
  work.word.resize(stages_.size());
  work.text_origins.resize(stages_.size());
  work.word_origins.resize(stages_.size());
  run_stage(0, piece, raw_bytes, work, sink);
}

namespace {

Piece part_of(const Piece& piece, size_t begin, size_t end) {
  const bool at_start = piece.at_start && (piece.origins ? piece.origins[begin] == 0 : begin == 0);
  return {piece.text.substr(begin, end - begin), at_start,
          piece.origins ? piece.origins + begin : nullptr};
}

}  // namespace

void PreTokenizer::run_stage(size_t index, const Piece& piece, bool raw, Workspace& work,
                             const Sink& sink) const {
  if (piece.text.empty()) return;
  if (index == stages_.size()) return sink(piece);
  const Stage& stage = stages_[index];
  if (stage.kind == Kind::kByteLevel) return run_byte_level(index, piece, raw, work, sink);
  if (stage.kind == Kind::kMetaspace) return run_metaspace(index, piece, raw, work, sink);

  const auto emit = [&](const Match& part) {
    run_stage(index + 1, part_of(piece, part.begin, part.end), raw, work, sink);
  };
  if (stage.pattern && !regex_only_) {
    const char* const begin = piece.text.data();
    const char* const end = begin + piece.text.size();
    for (const char* p = begin; p < end;) {
      const char* next = end_of_word(*stage.pattern, p, end);
      emit({static_cast<size_t>(p - begin), static_cast<size_t>(next - begin), true});
      p = next;
    }
    return;
  }
  std::vector<Match>& matches = work.matches[index];
  find_matches(stage, piece.text, matches);
  switch (stage.behavior) {
    case Behavior::kIsolated:
      break;
    case Behavior::kRemoved:
      std::erase_if(matches, [](const Match& match) { return match.is_match; });
      break;
    case Behavior::kContiguous: {
      std::vector<Match> joined;
      bool previous = false;
      for (const Match& match : matches) {
        if (match.is_match == previous && !joined.empty()) {
          joined.back().end = match.end;
        } else {
          joined.push_back(match);
        }
        previous = match.is_match;
      }
      matches.swap(joined);
      break;
    }
    case Behavior::kMergedWithPrevious:
      matches = merge_with_previous(matches.begin(), matches.end());
      break;
    case Behavior::kMergedWithNext:
      matches = merge_with_previous(matches.rbegin(), matches.rend());
      std::reverse(matches.begin(), matches.end());
      break;
  }
  for (const Match& match : matches) emit(match);
}

void PreTokenizer::find_matches(const Stage& stage, std::string_view text,
                                std::vector<Match>& matches) const {
  switch (stage.kind) {
    case Kind::kDigits:
      return match_characters(text, matches, is_numeric);
    case Kind::kPunctuation:
      return match_characters(text, matches, is_punctuation);
    case Kind::kWhitespaceSplit:
      match_characters(text, matches, is_space);
      std::erase_if(matches, [](const Match& match) { return match.is_match; });
      return;
    case Kind::kWhitespace:
      match_whitespace_words(text, matches);
      std::erase_if(matches, [](const Match& match) { return !match.is_match; });
      return;
    default:
      stage.regex->find_matches(text, matches);
      if (stage.invert) {
        for (Match& match : matches) match.is_match = !match.is_match;
      }
  }
}

void PreTokenizer::run_byte_level(size_t index, const Piece& piece, bool raw, Workspace& work,
                                  const Sink& sink) const {
  const Stage& stage = stages_[index];
  Piece whole = piece;
  if (stage.prefix_space && piece.text[0] != ' ') {
    work.text[index].assign(1, ' ').append(piece.text);
    whole = {work.text[index], piece.at_start, nullptr};
    if (piece.origins != nullptr) {
      std::vector<uint32_t>& origins = work.text_origins[index];
      origins.assign(1, piece.origins[0]);
      origins.insert(origins.end(), piece.origins, piece.origins + piece.text.size());
      whole.origins = origins.data();
    }
  }
  const bool last = index + 1 == stages_.size();
  const auto emit = [&](const Piece& word) {
    if (word.text.empty()) return;
    if (last && raw) return sink(word);
    std::string& mapped = work.word[index];
    mapped.clear();
    append_byte_level(mapped, word.text);
    Piece next{mapped, word.at_start, nullptr};
    if (word.origins != nullptr) {
      std::vector<uint32_t>& origins = work.word_origins[index];
      origins.clear();
      for (size_t i = 0; i < word.text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(word.text[i]);
        origins.resize(origins.size() + byte_level_character(byte).size(), word.origins[i]);
      }
      next.origins = origins.data();
    }
    run_stage(index + 1, next, raw, work, sink);
  };
  if (!stage.use_regex) return emit(whole);
  if (regex_only_) {
    std::vector<Match>& matches = work.matches[index];
    stage.regex->find_matches(whole.text, matches);
    for (const Match& match : matches) emit(part_of(whole, match.begin, match.end));
    return;
  }
  const char* const begin = whole.text.data();
  const char* const end = begin + whole.text.size();
  for (const char* p = begin; p < end;) {
    const char* next = end_of_word(*stage.pattern, p, end);
    emit(part_of(whole, static_cast<size_t>(p - begin), static_cast<size_t>(next - begin)));
    p = next;
  }
}

void PreTokenizer::run_metaspace(size_t index, const Piece& piece, bool raw, Workspace& work,
                                 const Sink& sink) const {
  const Stage& stage = stages_[index];
  std::string& text = work.text[index];
  text.clear();
  const bool starts_with_it = piece.text[0] == ' ' || piece.text.starts_with(stage.replacement);
  if (!starts_with_it &&
      (stage.scheme == Scheme::kAlways || (stage.scheme == Scheme::kFirst && piece.at_start))) {
    text += stage.replacement;
  }
  std::vector<uint32_t>& origins = work.text_origins[index];
  origins.assign(piece.origins != nullptr ? text.size() : 0, piece.origins ? piece.origins[0] : 0);
  for (size_t i = 0; i < piece.text.size(); ++i) {
    if (piece.text[i] == ' ') {
      text += stage.replacement;
    } else {
      text += piece.text[i];
    }
    if (piece.origins != nullptr) origins.resize(text.size(), piece.origins[i]);
  }
  const Piece whole{text, piece.at_start, piece.origins != nullptr ? origins.data() : nullptr};
  if (!stage.split) return run_stage(index + 1, whole, raw, work, sink);
  // Each replacement character opens a word (MergedWithNext): of several in a row all but the
  // last stand alone.
  size_t begin = 0;
  while (begin < text.size()) {
    size_t from = begin;
    if (std::string_view(text).substr(begin).starts_with(stage.replacement)) {
      from += stage.replacement.size();
    }
    const size_t end = std::min(text.find(stage.replacement, from), text.size());
    run_stage(index + 1, part_of(whole, begin, end), raw, work, sink);
    begin = end;
  }
}

}  // namespace lorashard

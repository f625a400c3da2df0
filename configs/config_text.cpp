#include "configs/config_text.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <tuple>

#include "configs/error.h"

namespace lorashard {
namespace {

namespace pb = google::protobuf;

constexpr const char* kEntry = "{ key: \"q_proj\" value: 2 }";

// Edits (insert, delete, replace, swap of neighbours) between two names.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1,
                          d[i - 1][j - 1] + (std::tolower(a[i - 1]) != std::tolower(b[j - 1]))});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// The name most like `name`, or "" if none is like it.
std::string nearest(const std::string& name, const std::vector<std::string>& known) {
  std::string best;
  size_t least = std::max<size_t>(1, name.size() / 3) + 1;
  for (const std::string& k : known) {
    if (const size_t d = edit_distance(name, k); d < least) least = d, best = k;
  }
  if (!best.empty()) return best;
  for (const std::string& k : known) {  // "lora_alpha" for "alpha", "train_path" for "path"
    if (name.find(k) != std::string::npos || (name.size() > 2 && k.find(name) != std::string::npos))
      return k;
  }
  return "";
}

std::string join(const std::vector<std::string>& names, const std::string& last) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i)
    text += (i == 0 ? "" : i + 1 == names.size() ? last : ", ") + names[i];
  return text;
}

std::string block_name(const pb::Descriptor& block) {
  const pb::Descriptor& root = *RunConfig::descriptor();
  for (int i = 0; i < root.field_count(); ++i)
    if (root.field(i)->message_type() == &block) return root.field(i)->name();
  return "";
}

// A problem as protobuf's parser reports it; line and column are 0-based, tabs advance to the next
// multiple of 8.
struct ParserProblem {
  int line, column;
  std::string message;
};

// Unknown names come as warnings, so that all of them are found in one pass.
class Collector : public pb::io::ErrorCollector {
 public:
  void AddError(int line, int column, const std::string& message) override {
    problems.push_back({line, column, message});
  }
  void AddWarning(int line, int column, const std::string& message) override {
    AddError(line, column, message);
  }
  std::vector<ParserProblem> problems;
};

class Text {
 public:
  Text(const std::string& text, const std::string& file) : text_(text), file_(file) {}

  size_t offset(int line, int column) const {
    size_t at = 0;
    for (; line > 0 && at < text_.size(); ++at) line -= text_[at] == '\n';
    for (int c = 0; c < column && at < text_.size() && text_[at] != '\n'; ++at)
      c = text_[at] == '\t' ? (c / 8 + 1) * 8 : c + 1;
    return at;
  }
  std::string where(size_t offset) const {
    const size_t line = std::count(text_.begin(), text_.begin() + offset, '\n');
    const size_t start = offset == 0 ? std::string::npos : text_.rfind('\n', offset - 1);
    const size_t column = start == std::string::npos ? offset : offset - start - 1;
    return file_ + ":" + std::to_string(line + 1) + ":" + std::to_string(column + 1);
  }
  std::string where(const pb::TextFormat::ParseLocation& l) const {
    return where(offset(l.line, l.column));
  }

  // The parser often reports the token after the one it means; this finds that one again.
  size_t token_before(const std::string& token, size_t offset) const {
    const size_t at = text_.rfind(token, offset);
    return at == std::string::npos ? offset : at;
  }
  // The name in front of the colon that `offset` follows.
  std::string name_before(size_t offset) const {
    const size_t end =
        offset == 0 ? std::string::npos : text_.find_last_not_of(": \t\r\n", offset - 1);
    if (end == std::string::npos) return "";
    size_t start = end + 1;
    while (start > 0 &&
           (std::isalnum(static_cast<unsigned char>(text_[start - 1])) || text_[start - 1] == '_'))
      --start;
    return text_.substr(start, end + 1 - start);
  }

 private:
  const std::string& text_;
  const std::string& file_;
};

// The strings in double quotes in a message of the parser.
std::vector<std::string> quoted(const std::string& message) {
  std::vector<std::string> out;
  for (size_t at = message.find('"'); at != std::string::npos;) {
    const size_t end = message.find('"', at + 1);
    if (end == std::string::npos) break;
    out.push_back(message.substr(at + 1, end - at - 1));
    at = message.find('"', end + 1);
  }
  return out;
}

// The setting of that name in any block, for the parser's messages, which leave the block out.
const pb::FieldDescriptor* find_setting(const std::string& name) {
  const pb::Descriptor& root = *RunConfig::descriptor();
  for (int i = 0; i < root.field_count(); ++i) {
    if (const auto* f = root.field(i)->message_type()->FindFieldByName(name)) return f;
  }
  return nullptr;
}

// The parser's problem in our words; unknown texts are passed on as they are.
std::string explain(const ParserProblem& problem, const Text& text) {
  const std::string& message = problem.message;
  const std::vector<std::string> q = quoted(message);
  const size_t at = text.offset(problem.line, problem.column);
  auto says = [&](const char* words, size_t strings) {
    return message.find(words) != std::string::npos && q.size() >= strings;
  };
  auto located = [&](size_t offset, const std::string& what) {
    return text.where(offset) + ": " + what;
  };
  if (says("has no field named", 2)) {
    const pb::Descriptor* block =
        RunConfig::descriptor()->file()->pool()->FindMessageTypeByName(q[0]);
    if (block) return located(text.token_before(q[1], at), unknown_setting(*block, q[1]));
  }
  if (says("is specified multiple times", 1))
    return located(text.token_before(q[0], at),
                   q[0] + " is set a second time, expected each setting and block once");
  if (says("Unknown enumeration value of", 2)) {
    if (const pb::FieldDescriptor* f = find_setting(q[1]))
      return located(text.token_before(q[0], at), wrong_value(*f, q[0]));
  }
  if (says("Invalid value for boolean field", 2)) {
    if (const pb::FieldDescriptor* f = find_setting(q[0]))
      return located(text.token_before(q[1], at), wrong_value(*f, q[1]));
  }
  for (const char* wanted : {"Expected integer, got: ", "Expected double, got: ",
                             "Expected string, got: ", "Integer out of range ("}) {
    if (!message.starts_with(wanted)) continue;
    const pb::FieldDescriptor* f = find_setting(text.name_before(at));
    std::string value = q.empty() ? message.substr(std::strlen(wanted)) : q[0];
    if (value.ends_with(')')) value.pop_back();
    if (f && !value.empty()) return located(at, wrong_value(*f, value));
  }
  if (message == "Expected identifier, got: ")
    return located(at, "the file ends inside a block, expected \"}\"");
  if (message == "Invalid control characters encountered in text.")
    return located(at, "a control character, expected a run configuration in text format");
  return located(at, message);
}

void record_locations(const pb::Message& message, const pb::TextFormat::ParseInfoTree& tree,
                      const std::string& prefix, const Text& text, Config& config,
                      std::vector<std::string>& problems) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const pb::FieldDescriptor* f : fields) {
    const std::string path = prefix + f->name();
    if (!f->is_repeated()) {
      config.locations[path] = text.where(tree.GetLocation(f, -1));
      if (f->message_type())
        record_locations(reflection.GetMessage(message, f), *tree.GetTreeForNested(f, -1),
                         path + ".", text, config, problems);
      continue;
    }
    config.locations[path] = text.where(tree.GetLocation(f, 0));
    std::set<std::string> keys;
    for (int i = 0; i < reflection.FieldSize(message, f); ++i) {
      const std::string where = text.where(tree.GetLocation(f, i));
      if (!is_pattern_list(*f)) {
        config.locations[path + "[" + std::to_string(i) + "]"] = where;
        continue;
      }
      const pb::Message& entry = reflection.GetRepeatedMessage(message, f, i);
      const std::string key =
          entry.GetReflection()->GetString(entry, f->message_type()->FindFieldByName("key"));
      if (key.empty()) problems.push_back(where + ": " + path + " has no key, expected " + kEntry);
      config.locations[path + "." + key] = where;
      if (!keys.insert(key).second)
        problems.push_back(where + ": " + path + " has the key \"" + key +
                           "\" a second time, expected each key once");
    }
  }
}

}  // namespace

bool is_pattern_list(const pb::FieldDescriptor& field) {
  return field.is_repeated() && field.message_type() &&
         field.message_type()->FindFieldByName("key") &&
         field.message_type()->FindFieldByName("value");
}

void throw_problems(const std::vector<std::string>& problems) {
  if (problems.empty()) return;
  std::string all;
  for (const std::string& p : problems) all += (all.empty() ? "" : "\nerror: ") + p;
  fail_input("", all);
}

std::string unknown_setting(const pb::Descriptor& block, const std::string& name) {
  std::vector<std::string> known;
  for (int i = 0; i < block.field_count(); ++i) known.push_back(block.field(i)->name());
  const std::string of = block_name(block);
  std::string text = "there is no " + std::string(of.empty() ? "block" : "setting") + " \"" + name +
                     "\"" + (of.empty() ? "" : " in " + of);
  const pb::Descriptor& root = *RunConfig::descriptor();
  std::vector<std::string> elsewhere;
  for (int i = 0; i < root.field_count(); ++i) {
    if (root.field(i)->message_type()->FindFieldByName(name))
      elsewhere.push_back(root.field(i)->name() + "." + name);
  }
  if (!elsewhere.empty()) return text + ", did you mean " + join(elsewhere, " or ") + "?";
  if (const std::string like = nearest(name, known); !like.empty())
    return text + ", did you mean \"" + like + "\"?";
  return text + ", expected one of " + join(known, ", ");
}

std::string wrong_value(const pb::FieldDescriptor& field, const std::string& value) {
  std::string text = field.name() + " is \"" + value + "\", expected ";
  switch (field.cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_ENUM: {
      std::vector<std::string> known;
      for (int i = 0; i < field.enum_type()->value_count(); ++i)
        known.push_back(field.enum_type()->value(i)->name());
      return text + join(known, " or ");
    }
    case pb::FieldDescriptor::CPPTYPE_BOOL:
      return text + "true or false";
    case pb::FieldDescriptor::CPPTYPE_DOUBLE:
      return text + "a number";
    case pb::FieldDescriptor::CPPTYPE_UINT64:
      return text + "a whole number from 0 to " +
             std::to_string(std::numeric_limits<uint64_t>::max());
    case pb::FieldDescriptor::CPPTYPE_INT64:
      return text + "a whole number";
    default:
      return text + "a string";
  }
}

void parse_config_text(const std::string& source, Config& config) {
  const Text text(source, config.file);
  Collector collector;
  pb::TextFormat::ParseInfoTree tree;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&collector);
  parser.WriteLocationsTo(&tree);
  parser.AllowUnknownField(true);  // reported as warnings, which the collector keeps
  const bool parsed = parser.ParseFromString(source, &config.run);
  std::vector<std::string> problems;
  std::stable_sort(collector.problems.begin(), collector.problems.end(),
                   [](const ParserProblem& a, const ParserProblem& b) {
                     return std::tie(a.line, a.column) < std::tie(b.line, b.column);
                   });
  for (const ParserProblem& p : collector.problems) problems.push_back(explain(p, text));
  if (!parsed && problems.empty())
    problems.push_back(text.where(0) + ": not a run configuration in text format");
  throw_problems(problems);
  record_locations(config.run, tree, "", text, config, problems);
  throw_problems(problems);
}

}  // namespace lorashard

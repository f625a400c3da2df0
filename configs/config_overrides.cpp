#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/stubs/strutil.h>
#include <google/protobuf/text_format.h>

#include <set>

#include "configs/config_text.h"
#include "configs/error.h"

namespace lorashard {
namespace {

namespace pb = google::protobuf;

class Silent : public pb::io::ErrorCollector {
 public:
  void AddError(int, int, const std::string&) override {}
};

std::string trim(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

bool is_quoted(const std::string& text) {
  return text.size() > 1 && (text[0] == '"' || text[0] == '\'') && text.back() == text[0];
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  for (size_t at = 0;;) {
    const size_t end = text.find(separator, at);
    parts.push_back(trim(text.substr(at, end - at)));
    if (end == std::string::npos) return parts;
    at = end + 1;
  }
}

// Sets (or, for lists, adds) one value of `field`; false if `value` is none of its type.
bool set_value(pb::Message& message, const pb::FieldDescriptor& field, const std::string& value) {
  std::string text = trim(value);
  if (field.cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING && !is_quoted(text))
    text = std::string("\"").append(pb::CEscape(text)).append("\"");
  Silent silent;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&silent);
  return parser.ParseFieldValueFromString(text, &field, &message);
}

// Replaces the list by the elements of text format's [..], if `value` is such a list.
bool set_text_list(pb::Message& block, const pb::FieldDescriptor& field, const std::string& value) {
  Silent silent;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&silent);
  std::unique_ptr<pb::Message> parsed(block.New());
  if (!parser.ParseFromString(field.name() + ": " + value, parsed.get())) return false;
  std::vector<const pb::FieldDescriptor*> set;
  parsed->GetReflection()->ListFields(*parsed, &set);
  if (set.size() > 1 || (set.size() == 1 && set[0] != &field)) return false;
  block.MergeFrom(*parsed);
  return true;
}

void set_list(pb::Message& block, const pb::FieldDescriptor& field, const std::string& value,
              const std::string& where) {
  const std::string text = trim(value);
  if (text.empty()) return;
  const bool bracketed = text.front() == '[' && text.back() == ']';
  if ((bracketed || is_quoted(text)) &&
      set_text_list(block, field, bracketed ? text : "[" + text + "]"))
    return;
  for (const std::string& part : split(bracketed ? text.substr(1, text.size() - 2) : text, ',')) {
    if (part.empty())
      fail_input(where,
                 "\"" + text + "\" has an empty element, expected values with commas between");
    if (!set_value(block, field, part)) fail_input(where, wrong_value(field, part));
  }
}

// Sets the value of `key`, in its place if the list has it, else behind the others: what comes
// first decides.
void set_pattern(pb::Message& block, const pb::FieldDescriptor& field, const std::string& key,
                 const std::string& value, const std::string& where) {
  const pb::Reflection& reflection = *block.GetReflection();
  const pb::FieldDescriptor& key_field = *field.message_type()->FindFieldByName("key");
  const pb::FieldDescriptor& value_field = *field.message_type()->FindFieldByName("value");
  pb::Message* entry = nullptr;
  for (int i = 0; i < reflection.FieldSize(block, &field); ++i) {
    pb::Message* const at = reflection.MutableRepeatedMessage(&block, &field, i);
    if (at->GetReflection()->GetString(*at, &key_field) == key) entry = at;
  }
  if (!entry) {
    entry = reflection.AddMessage(&block, &field);
    entry->GetReflection()->SetString(entry, &key_field, key);
  }
  entry->GetReflection()->ClearField(entry, &value_field);
  if (!set_value(*entry, value_field, value)) fail_input(where, wrong_value(value_field, value));
}

// "KEY:VALUE,KEY:VALUE" into the empty list.
void set_patterns(pb::Message& block, const pb::FieldDescriptor& field, const std::string& value,
                  const std::string& where) {
  if (value.empty()) return;
  std::set<std::string> keys;
  for (const std::string& part : split(value, ',')) {
    const size_t colon = part.rfind(':');
    const std::string key = colon == std::string::npos ? "" : trim(part.substr(0, colon));
    if (key.empty())
      fail_input(where, "\"" + part + "\" is no entry, expected KEY:VALUE,KEY:VALUE");
    if (!keys.insert(key).second)
      fail_input(where, "has the key \"" + key + "\" a second time, expected each key once");
    set_pattern(block, field, key, part.substr(colon + 1), where);
  }
}

void forget(Config& config, const std::string& path) {
  std::erase_if(config.locations, [&](const auto& entry) {
    return entry.first == path || entry.first.starts_with(path + "[") ||
           entry.first.starts_with(path + ".");
  });
}

}  // namespace

void apply_overrides(const std::vector<std::string>& overrides, Config& config) {
  std::set<std::string> done;  // paths overridden so far
  for (const std::string& argument : overrides) {
    const size_t equals = argument.find('=');
    if (equals == std::string::npos)
      fail_input("--set " + argument,
                 "there is no \"=\", expected a path and a value, for example "
                 "lora.rank=16");
    const std::string path = argument.substr(0, equals), value = argument.substr(equals + 1);
    const std::string where = "--set " + path;

    const size_t dot = path.find('.');
    const std::string block_path = path.substr(0, dot);
    const pb::FieldDescriptor* block_field = RunConfig::descriptor()->FindFieldByName(block_path);
    if (!block_field) fail_input(where, unknown_setting(*RunConfig::descriptor(), block_path));
    const pb::Descriptor& block_type = *block_field->message_type();
    if (dot == std::string::npos)
      fail_input(where, path + " is a block, expected one of its settings, for example " + path +
                            "." + block_type.field(0)->name());
    std::string name = path.substr(dot + 1), key;
    if (const size_t next = name.find('.'); next != std::string::npos) {
      key = name.substr(next + 1);
      name.resize(next);
    }
    const pb::FieldDescriptor* field = block_type.FindFieldByName(name);
    if (!field) fail_input(where, unknown_setting(block_type, name));
    const std::string field_path = block_path + "." + name;
    const bool patterns = is_pattern_list(*field);
    if (name.size() + dot + 1 < path.size() && (!patterns || key.empty()))
      fail_input(where, field_path + (patterns ? " needs a key after the dot"
                                               : " has no settings inside, expected " + field_path +
                                                     "=value"));
    const bool first = done.insert(path).second;
    if (!first && (!field->is_repeated() || patterns))
      fail_input(where, "set a second time, expected each setting once");

    pb::Message& block = *config.run.GetReflection()->MutableMessage(&config.run, block_field);
    if (!key.empty()) {
      set_pattern(block, *field, key, value, where);
    } else {
      if (first) {
        block.GetReflection()->ClearField(&block, field);
        forget(config, field_path);
      }
      if (patterns) {
        set_patterns(block, *field, value, where);
      } else if (field->is_repeated()) {
        set_list(block, *field, value, where);
      } else if (!set_value(block, *field, value)) {
        fail_input(where, wrong_value(*field, value));
      }
    }
    config.locations[path] = where;
    if (!key.empty() && !config.locations.count(field_path)) config.locations[field_path] = where;
  }
}

}  // namespace lorashard

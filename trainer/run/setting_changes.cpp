#include "trainer/run/setting_changes.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <map>

namespace lorashard {
namespace {

namespace pb = google::protobuf;

// A path, or all settings of a block.
bool is_one_of(const std::string& path, const std::vector<std::string>& names) {
  return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
    return name.ends_with('.') ? path.starts_with(name) : path == name;
  });
}

bool is_recorded(const std::string& path) {
  static const std::vector<std::string> kAlways{"lora.dropout", "lora.init_from", "compute.dtype"};
  static const std::vector<std::string> kNever{"model.",
                                               "data.train",
                                               "lora.",
                                               "train.micro_batch_size",
                                               "train.eval_every",
                                               "train.replica_check_every",
                                               "train.log_every",
                                               "parallel.",
                                               "checkpoint.",
                                               "compute.",
                                               "output."};
  return is_one_of(path, kAlways) || !is_one_of(path, kNever);
}

bool is_to_accept(const std::string& path, const std::string& before, const std::string& after) {
  // Steps that cross the end of an epoch, and steps that end with it, see other sequences.
  if (path == "train.epochs") return before == "0" || after == "0";
  return path != "data.eval" && is_one_of(path, {"data.", "train.seed", "train.global_batch_size"});
}

void record(const pb::Message& message, const std::string& block, std::vector<std::string>& to) {
  const pb::Reflection& r = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const pb::FieldDescriptor* f = message.GetDescriptor()->field(i);
    const std::string path = block + f->name();
    if (f->message_type() && !f->is_repeated()) {
      record(r.GetMessage(message, f), path + ".", to);
      continue;
    }
    if (!is_recorded(path)) continue;
    std::string value;
    if (f->is_repeated()) {
      for (int k = 0; k < r.FieldSize(message, f); ++k) {
        std::string one;
        pb::TextFormat::PrintFieldValueToString(message, f, k, &one);
        value += (k == 0 ? "" : ", ") + one;
      }
      value = "[" + value + "]";
    } else {
      pb::TextFormat::PrintFieldValueToString(message, f, -1, &value);
    }
    to.push_back(path + ": " + value);
  }
}

std::pair<std::string, std::string> split(const std::string& setting) {
  const size_t colon = setting.find(": ");
  return {setting.substr(0, colon), colon == std::string::npos ? "" : setting.substr(colon + 2)};
}

}  // namespace

std::vector<std::string> recorded_settings(const RunConfig& run) {
  std::vector<std::string> settings;
  record(run, "", settings);
  if (run.train().has_epochs()) {
    std::erase_if(settings, [](const std::string& s) { return s.starts_with("train.steps: "); });
  }
  return settings;
}

std::vector<SettingChange> changed_settings(const std::vector<std::string>& before,
                                            const std::vector<std::string>& now) {
  std::map<std::string, std::string> values;
  for (const std::string& setting : recorded_settings(RunConfig())) values.insert(split(setting));
  for (const std::string& setting : before) {
    const auto [path, value] = split(setting);
    values[path] = value;
  }
  std::vector<SettingChange> changes;
  for (const std::string& setting : now) {
    const auto [path, value] = split(setting);
    const std::string& was = values[path];
    if (was != value) changes.push_back({path, was, value, is_to_accept(path, was, value)});
  }
  return changes;
}

}  // namespace lorashard

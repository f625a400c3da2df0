#include "trainer/run/agreed_inputs.h"

#include <fmt/format.h>

#include <map>
#include <sstream>

#include "checkpoint/agreed_files.h"
#include "configs/error.h"

namespace lorashard {
namespace {

// The program that runs here. Its file may have been built anew meanwhile, and is then only to be
// had under this name.
std::string program_file() {
  static const std::string kSelf = "/proc/self/exe";
  std::error_code ec;
  const fs::path file = fs::read_symlink(kSelf, ec);
  return ec || !fs::exists(file, ec) ? kSelf : file.string();
}

// Of lines NAME, VALUE, …; the values of a list one after the other.
std::map<std::string, std::string> values_by_name(const std::string& text) {
  std::map<std::string, std::string> values;
  std::istringstream lines(text);
  for (std::string name, value; std::getline(lines, name) && std::getline(lines, value);) {
    std::string& all = values[name];
    all += (all.empty() ? "" : ", ") + value;
  }
  return values;
}

}  // namespace

std::vector<Setting> settings_of(const Config& config) {
  std::vector<Setting> settings;
  std::vector<std::string> blocks;
  std::istringstream lines(to_textproto(config.run));
  for (std::string line; std::getline(lines, line);) {
    line.erase(0, line.find_first_not_of(' '));
    if (line == "}") {
      blocks.pop_back();
    } else if (line.ends_with(" {")) {
      blocks.push_back(line.substr(0, line.size() - 2));
    } else {
      const size_t colon = line.find(": ");
      std::string name;
      for (const std::string& block : blocks) name += block + ".";
      name += line.substr(0, colon);
      settings.push_back({name, line.substr(colon + 2), config.where(name)});
    }
  }
  return settings;
}

void agree_on_settings(const Ranks& ranks, const std::vector<Setting>& settings) {
  if (ranks.world.size() == 1) return;
  std::string text;
  for (const Setting& s : settings) text += s.name + "\n" + s.value + "\n";
  agree_on_text(ranks.world, text, [&](const std::string& of_rank_0) {
    const auto here = values_by_name(text), there = values_by_name(of_rank_0);
    for (const Setting& s : settings) {
      const auto other = there.find(s.name);
      const std::string& mine = here.at(s.name);
      if (other != there.end() && other->second == mine) continue;
      fail_input(s.where, fmt::format("{} is {} on {} and {} on rank 0; give every host the same",
                                      s.name, mine, ranks.world.place(),
                                      other == there.end() ? "not set" : other->second));
    }
    for (const auto& [name, value] : there) {
      if (here.contains(name)) continue;
      fail_input(name, fmt::format("is not set on {} and {} on rank 0; give every host the same",
                                   ranks.world.place(), value));
    }
  });
  agree_on_inputs(ranks, {program_file()});
}

std::vector<std::string> agree_on_inputs(const Ranks& ranks,
                                         const std::vector<std::string>& files) {
  return agreed_file_digests(ranks.world, {files.begin(), files.end()});
}

std::vector<std::string> model_files(const std::string& dir, bool with_tokenizer) {
  std::vector<std::string> files{dir + "/config.json"};
  if (!with_tokenizer) return files;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "added_tokens.json"}) {
    files.push_back(dir + "/" + name);
  }
  return files;
}

std::vector<std::string> adapter_files(const std::string& dir) {
  if (dir.empty()) return {};
  return {dir + "/adapter_config.json", dir + "/adapter_model.safetensors"};
}

}  // namespace lorashard

// All ranks start from the same inputs, each from the files that it sees itself: a stale copy on
// one host would otherwise train on, with wrong results, or wait for ranks that do other steps.
#pragma once

#include <string>
#include <vector>

#include "configs/config.h"
#include "trainer/run/compute.h"

namespace lorashard {

// A setting by the name that the user knows it by, and where it stands ("FILE:LINE:COLUMN").
struct Setting {
  std::string name, value, where;
};

// Every setting of the configuration with its value.
std::vector<Setting> settings_of(const Config& config);

// Error (status 2) on every rank, naming the setting, both values, ranks and hosts, unless all have
// the same settings and the same program. To be called before anything that a setting decides.
// Collective.
void agree_on_settings(const Ranks& ranks, const std::vector<Setting>& settings);

// Error (status 2) on every rank, naming the file, ranks and hosts, unless all have the same of
// each file, or none. Returns their SHA-256 in hexadecimal, empty where there is none. Collective.
std::vector<std::string> agree_on_inputs(const Ranks& ranks, const std::vector<std::string>& files);

// The files of a model's folder that say how it computes, and how text becomes ids; its weights are
// compared by BaseModel::digest. And those of an adapter's folder; none for an empty name.
std::vector<std::string> model_files(const std::string& dir, bool with_tokenizer);
std::vector<std::string> adapter_files(const std::string& dir);

}  // namespace lorashard

#include "checkpoint/adapter_base.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "configs/error.h"

namespace lorashard {
namespace {

// The name under which a base is known: the last part of a path, or what the Hugging Face hub's
// cache makes of "org/name" (models--org--name/snapshots/REVISION).
std::string base_name(const std::string& path) {
  const std::string marker = "models--";
  if (const size_t at = path.rfind(marker); at != std::string::npos) {
    const std::string folder = path.substr(at, path.find('/', at) - at);
    return folder.substr(folder.rfind("--") + 2);
  }
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return "";
  const std::string whole = path.substr(0, end + 1);
  return whole.substr(whole.rfind('/') + 1);
}

// The names of the base at hand: of its folder, and as its config.json says.
std::vector<std::string> base_names(const BaseModel& base) {
  std::error_code ec;
  std::vector<std::string> found = {base_name(fs::absolute(base.path(), ec).lexically_normal()),
                                    base_name(fs::canonical(base.path(), ec))};
  const auto config = nlohmann::json::parse(base.config_text(), nullptr, false);
  if (config.is_object() && config.contains("_name_or_path") && config["_name_or_path"].is_string())
    found.push_back(base_name(config["_name_or_path"].get<std::string>()));
  return found;
}

bool same_name(const std::string& a, const std::string& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

}  // namespace

void check_adapter_base(const Adapter& adapter, const std::string& where,
                        const std::string& base_digest) {
  const std::string& theirs = adapter.config.base_digest;
  if (!theirs.empty() && theirs != base_digest) {
    fail_input(where, "the adapter was made for the base with digest " + theirs.substr(0, 16) +
                          "…, this base has " + base_digest.substr(0, 16) +
                          "…; give the base that it was made for");
  }
}

std::vector<std::string> adapter_base_notes(const Adapter& adapter, const std::string& where,
                                            const BaseModel& base) {
  if (!adapter.config.base_digest.empty()) return {};
  const std::string& named = adapter.config.base_model;
  std::string note =
      where + ": the adapter carries no digest of its base, as those made elsewhere; ";
  const std::vector<std::string> ours = base_names(base);
  if (named.empty()) {
    note += "it names no base either; its shapes fit " + base.path();
  } else if (std::any_of(ours.begin(), ours.end(), [&](const std::string& name) {
               return same_name(name, base_name(named));
             })) {
    note += "it names " + named + " as its base, as this one is called, and its shapes fit";
  } else {
    note += "it names " + named + " as its base, and this one is " + base.path() +
            ": its shapes fit, check that the weights are the same";
  }
  return {note};
}

}  // namespace lorashard

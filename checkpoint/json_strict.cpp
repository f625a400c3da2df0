#include "checkpoint/json_strict.h"

#include <set>
#include <vector>

#include "checkpoint/lfs_pointer.h"
#include "configs/error.h"

namespace lorashard {

std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  return text;
}

nlohmann::json parse_json_strict(std::string_view text, const std::string& where) {
  using nlohmann::json;
  refuse_lfs_pointer(text, where);
  std::vector<std::set<std::string>> open_objects;
  const auto check = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) {
      open_objects.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      open_objects.pop_back();
    } else if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second)
        fail_input(where, "the key \"" + printable(key) + "\" is given twice; it must stand once");
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::exception& e) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error …"
    std::string what = e.what();
    if (const size_t end = what.find("] "); end != std::string::npos) what.erase(0, end + 2);
    fail_input(where, "is not valid JSON: " + printable(what));
  }
}

}  // namespace lorashard

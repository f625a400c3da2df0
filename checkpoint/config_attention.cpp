#include "checkpoint/config_attention.h"

#include <algorithm>
#include <set>

#include "checkpoint/json_strict.h"

namespace lorashard {
namespace {

using nlohmann::json;

constexpr const char* kFull = "full_attention";
constexpr const char* kSliding = "sliding_attention";

bool given(const json& j) { return !j.is_null() && !j.empty(); }

// rope_scaling or rope_parameters with what its absent keys mean filled in, for comparison.
json whole_rope(json rope, double theta) {
  if (!rope.is_object()) return rope;
  if (rope.contains("type")) {
    if (!rope.contains("rope_type")) rope["rope_type"] = rope["type"];
    rope.erase("type");
  }
  if (!rope.contains("rope_type")) rope["rope_type"] = "default";
  if (!rope.contains("rope_theta")) rope["rope_theta"] = theta;
  return rope;
}

// The keys of one rotary embedding.
RopeConfig parse_one_rope(Settings& r, double theta, int64_t max_positions,
                          std::vector<std::string>& unread) {
  RopeConfig rope;
  rope.theta = r.positive("rope_theta", theta);
  if (r.number("partial_rotary_factor", 1) != 1)
    r.fail("partial_rotary_factor", "must be 1 (rotation of a part of each head is not supported)");

  const std::string old_type = r.text("type", "default");
  const std::string type = r.text("rope_type", old_type);
  if (r.has("type") && old_type != type)
    r.fail("type", "is \"" + printable(old_type) + "\", but rope_type is \"" + printable(type) +
                       "\"; keep one of the two");
  std::set<std::string> unused;  // by this type in transformers
  if (type == "default") {
    rope.kind = RopeConfig::Kind::Default;
    unused = {"factor", "original_max_position_embeddings"};
    if (r.has("factor") && r.number("factor", 1) != 1)
      r.fail("factor", "has no meaning for rope_type default; say linear or llama3, or remove it");
  } else if (type == "linear") {
    rope.kind = RopeConfig::Kind::Linear;
    rope.factor = r.positive("factor");
    unused = {"original_max_position_embeddings"};
  } else if (type == "llama3") {
    rope.kind = RopeConfig::Kind::Llama3;
    rope.factor = r.positive("factor");
    rope.low_freq_factor = r.positive("low_freq_factor");
    rope.high_freq_factor = r.positive("high_freq_factor");
    if (rope.high_freq_factor <= rope.low_freq_factor)
      r.fail("high_freq_factor", "must be larger than low_freq_factor");
    rope.original_max_position_embeddings =
        r.size("original_max_position_embeddings", max_positions, max_positions);
  } else {
    r.fail(
        r.has("rope_type") ? "rope_type" : "type",
        "\"" + printable(type) + "\" is not supported; supported are default, linear and llama3");
  }
  for (std::string& key : r.unread(unused)) unread.push_back(std::move(key));
  return rope;
}

// layer_types as windows: `window` where a layer is a sliding one.
std::vector<int64_t> windows_of_types(const Settings& s, const json& types, int64_t window,
                                      int64_t layers, const char* how) {
  if (!types.is_array() || int64_t(types.size()) != layers)
    s.fail("layer_types",
           "must be null or list one type for each of the " + std::to_string(layers) + " layers");
  std::vector<int64_t> windows;
  for (const json& t : types) {
    if (t != kFull && t != "attention" && t != kSliding)
      s.fail("layer_types", t.dump() + " is not supported; supported are \"full_attention\" and " +
                                "\"sliding_attention\"");
    if (t == kSliding && window == 0)
      s.fail("layer_types", "has \"sliding_attention\", but there is no window; " +
                                std::string(how) + ", or say \"full_attention\"");
    windows.push_back(t == kSliding ? window : 0);
  }
  return windows;
}

}  // namespace

RopeConfig parse_rope(Settings& s, const std::string& source, double default_theta,
                      int64_t max_positions, std::vector<std::string>& unread) {
  const json& scaling = s.get("rope_scaling");
  const json& parameters = s.get("rope_parameters");
  const double theta = s.positive("rope_theta", default_theta);
  if (given(scaling) && given(parameters) &&
      whole_rope(scaling, theta) != whole_rope(parameters, theta))
    s.fail("rope_scaling", "stands beside a different rope_parameters; keep one of the two");
  const char* key = given(parameters) ? "rope_parameters" : "rope_scaling";
  static const json empty = json::object();
  const json& object = given(parameters) ? parameters : given(scaling) ? scaling : empty;
  if (!object.is_object()) s.fail(key, "is not an object");
  Settings r(object, source, std::string(key) + ".");
  for (const char* type : {kFull, kSliding})
    if (r.has(type))
      r.fail(type, "a rotary embedding by layer is not supported for this architecture; give one");
  RopeConfig rope = parse_one_rope(r, theta, max_positions, unread);
  // transformers gives the key outside priority.
  if (const int64_t original = rope.original_max_position_embeddings;
      rope.kind == RopeConfig::Kind::Llama3)
    rope.original_max_position_embeddings =
        s.size("original_max_position_embeddings", original, original);
  return rope;
}

LayerRopes parse_layer_ropes(Settings& s, const std::string& source, double default_theta,
                             double default_local_theta, int64_t max_positions,
                             std::vector<std::string>& unread) {
  const json& scaling = s.get("rope_scaling");
  const json& parameters = s.get("rope_parameters");
  const double theta = s.positive("rope_theta", default_theta);
  const double local_theta = s.positive("rope_local_base_freq", default_local_theta);
  json objects[] = {json::object(), json::object()};
  std::string names[] = {"rope_scaling.", "rope_parameters.sliding_attention."};
  if (given(parameters)) {
    if (!parameters.is_object() || !(parameters.contains(kFull) || parameters.contains(kSliding)))
      s.fail("rope_parameters",
             "must hold full_attention and sliding_attention, each with its own rope_type and "
             "rope_theta");
    Settings r(parameters, source, "rope_parameters.");
    for (size_t i = 0; i < 2; ++i) {
      const char* type = i == 0 ? kFull : kSliding;
      const json& object = r.get(type);
      if (!object.is_null() && !object.is_object()) r.fail(type, "is not an object");
      if (object.is_object()) objects[i] = object;
    }
    names[0] = "rope_parameters.full_attention.";
    for (std::string& key : r.unread({})) unread.push_back(std::move(key));
  }
  if (given(scaling)) {
    if (!scaling.is_object()) s.fail("rope_scaling", "is not an object");
    // transformers puts its keys over those of rope_parameters.full_attention, whose rope_type is
    // there by then.
    if (scaling.contains("type") && !scaling.contains("rope_type"))
      s.fail("rope_scaling",
             "has type, which transformers does not read for this architecture; say rope_type");
    json merged = objects[0];
    merged.update(scaling);
    if (given(parameters) && whole_rope(merged, theta) != whole_rope(objects[0], theta))
      s.fail("rope_scaling", "stands beside a different rope_parameters; keep one of the two");
    objects[0] = std::move(merged);
  }
  Settings full(objects[0], source, names[0]), sliding(objects[1], source, names[1]);
  return {parse_one_rope(full, theta, max_positions, unread),
          parse_one_rope(sliding, local_theta, max_positions, unread)};
}

std::vector<int64_t> parse_windows(Settings& s, Window window, int64_t default_window,
                                   int64_t layers) {
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  const auto size = [&] { return s.size("sliding_window", default_window, 0); };
  switch (window) {
    case Window::None:
      if (const json& types = s.get("layer_types"); !types.is_null())
        windows_of_types(s, types, 0, layers, "this architecture has none");
      break;
    case Window::All:
      std::fill(windows.begin(), windows.end(), size());
      break;
    case Window::Flagged: {
      const int64_t given_size = size();
      const int64_t used = s.flag("use_sliding_window", false) ? given_size : 0;
      const json& v = s.get("max_window_layers");
      const int64_t first = v.is_number_integer() ? v.get<int64_t>() : v.is_null() ? 28 : -1;
      if (first < 0) s.fail("max_window_layers", "is " + v.dump() + "; it must be an integer >= 0");
      if (const json& types = s.get("layer_types"); !types.is_null())
        return windows_of_types(s, types, used, layers,
                                "give use_sliding_window true and sliding_window");
      for (int64_t i = first; i < layers; ++i) windows[static_cast<size_t>(i)] = used;
      break;
    }
    case Window::FlaggedAll: {
      const int64_t given_size = size();
      if (s.flag("use_sliding_window", false))
        std::fill(windows.begin(), windows.end(), given_size);
      break;
    }
    case Window::Pattern: {
      const int64_t used = size();
      const int64_t pattern = s.size("sliding_window_pattern", 6);
      const json& noted = s.get("_sliding_window_pattern");  // what transformers saves, not reads
      const json& types = s.get("layer_types");
      if (!types.is_null()) return windows_of_types(s, types, used, layers, "give sliding_window");
      if (!noted.is_null() && noted != json(pattern))
        s.fail("_sliding_window_pattern", "is " + noted.dump() +
                                              ", which transformers does not read; give "
                                              "layer_types or sliding_window_pattern");
      for (int64_t i = 0; i < layers; ++i)
        windows[static_cast<size_t>(i)] = (i + 1) % pattern != 0 ? used : 0;
      if (used == 0 && pattern > 1 && layers > 0)
        s.fail("sliding_window", "is null, but layers with a sliding window need one");
      break;
    }
  }
  return windows;
}

}  // namespace lorashard

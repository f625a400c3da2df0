#include <istream>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>

#include "configs/error.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

Json parse_line(const std::string& line, const std::string& where, const char* wanted) {
  const size_t invalid = find_invalid_utf8(line);
  if (invalid != kValidUtf8) {
    fail_input(where, "byte " + std::to_string(invalid + 1) + " is no valid UTF-8");
  }
  try {
    return Json::parse(line);
  } catch (const Json::exception& error) {
    fail_input(where, std::string("is no valid JSON; ") + wanted + " is needed");
  }
}

std::vector<int32_t> read_ids(const Json& value, const Tokenizer& tokenizer,
                              const std::string& where) {
  if (!value.is_array()) fail_input(where, "must be a JSON array of ids");
  std::vector<int32_t> ids;
  for (size_t i = 0; i < value.size(); ++i) {
    const Json& id = value[i];
    const std::string which = "element " + std::to_string(i + 1);
    if (!id.is_number_integer()) fail_input(where, which + " must be a whole number");
    if (id < 0 || id > std::numeric_limits<int32_t>::max() ||
        !tokenizer.has_id(id.get<int32_t>())) {
      fail_input(where, which + " is " + id.dump() + ", which no token has as its id");
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

void tokenize_lines(const Tokenizer& tokenizer, std::istream& in, std::ostream& out, bool decode,
                    const std::string& source_name) {
  std::string line, written;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const std::string where = source_name + ":" + std::to_string(number);
    const Json value =
        parse_line(line, where, decode ? "an array of ids" : "one JSON string a line");
    written.clear();
    if (decode) {
      written = Json(tokenizer.decode(read_ids(value, tokenizer, where))).dump();
    } else {
      if (!value.is_string()) fail_input(where, "must be one JSON string");
      written.assign(1, '[');
      for (const int32_t id : tokenizer.encode(value.get_ref<const std::string&>())) {
        if (written.size() > 1) written += ",";
        written += std::to_string(id);
      }
      written += ']';
    }
    written += '\n';
    out << written;
    if (!out)
      fail_run(source_name,
               "the result of line " + std::to_string(number) + " could not be written");
  }
  if (in.bad()) fail_run(source_name, "reading failed");
  out.flush();
  if (!out) fail_run(source_name, "the results could not be written");
}

}  // namespace lorashard

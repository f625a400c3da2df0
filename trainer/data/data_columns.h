// The columns of a line beside those that its format reads.
#pragma once

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "configs/run_config.pb.h"

namespace lorashard {

// A sorted list of names, '"id", "source"', of bounded size: it is remembered in the cache and sent
// between ranks as it is. What does not fit is left out, and "..." says so.
class ColumnNames {
 public:
  void add(const std::string& name);
  void add(const ColumnNames& other);
  bool empty() const { return text_[0] == '\0'; }
  const char* text() const { return text_; }

 private:
  void join(const std::set<std::string>& names);
  char text_[112] = {};
};

// Adds the columns of `row` that are harmless (an id, a source, anything unknown) to `others`.
// LineProblem: one that means something to trainers (Hugging Face's, TRL's) and that this format
// does not read, unless it is null.
void check_columns(const nlohmann::json& row, RunConfig::Data::Format format, ColumnNames& others);

}  // namespace lorashard

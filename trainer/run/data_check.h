// What can be known of the data before step 1: every sequence is read and tokenized once, so that
// no bad line ends a run in its middle.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/base_model.h"
#include "configs/config.h"
#include "trainer/data/dataset.h"
#include "trainer/run/compute.h"
#include "trainer/run/console.h"

namespace lorashard {

// Reads every sequence of `data` once, shared out over the ranks and `threads` threads of each.
// Returns, where the console is, notes on how many were cut, how many have no unmasked token left,
// and where the first of them stands; the console shows the progress of a long check. Errors
// (status 2, the same on all ranks): that of the lowest line that Dataset::get refuses; no unmasked
// token in any sequence; the file was changed meanwhile.
//
// What a file holds is remembered beside its digest in the user's cache folder, for as long as the
// file, the tokenizer, the settings of the data and the program stay as they are: a large file is
// read once, not at every start. Collective over ranks.world.
std::vector<std::string> check_data(const Dataset& data, const std::string& path,
                                    const RunConfig& run, const BaseModel& base, const Ranks& ranks,
                                    int threads, Console& console);

}  // namespace lorashard

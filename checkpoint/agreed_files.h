// Files that every rank reads from its own disk and that must be the same everywhere.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "checkpoint/file_io.h"
#include "parallel/collectives.h"

namespace lorashard {

// Ranks of one host for which `files` are the same files (device, inode, size, time) get the same
// color, others another: what one of them reads, all of them have read. Collective.
int color_of_same_files(Communicator& world, const std::vector<FileIdentity>& files);

// SHA-256 of each file in hexadecimal, empty where there is none. Ranks that have the same files
// share the work, all others read their own. Error (status 2) on every rank, naming the file, ranks
// and hosts, unless a file is the same on all ranks or on none. REQUIRES: as many files on every
// rank. Collective.
std::vector<std::string> agreed_file_digests(Communicator& world,
                                             const std::vector<fs::path>& files);

// Error (status 2) on every rank unless `mine` is the same text on all of them: what(rank 0's text)
// is called on the first rank that has another, and throws the Error that says so. Collective.
void agree_on_text(Communicator& world, const std::string& mine,
                   const std::function<void(const std::string& of_rank_0)>& what);

}  // namespace lorashard

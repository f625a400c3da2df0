// SHA-256 of a whole file, remembered in the user's cache folder like the digests of weights.
#pragma once

#include <string>

#include "checkpoint/file_io.h"

namespace lorashard {

// SHA-256 of the file's bytes in hexadecimal; reads them only where the file has changed (size,
// inode, device, modification time) since they were last read. Error (status 2) where it cannot be
// read.
std::string cached_file_digest(const fs::path& path);

}  // namespace lorashard

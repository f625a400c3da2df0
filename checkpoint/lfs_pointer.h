// Git LFS leaves a small text in place of a file that it has not fetched.
#pragma once

#include <string>
#include <string_view>

namespace lorashard {

// Error (status 2) if `content`, the file's whole content or its beginning, is such a text. `where`
// names the file.
void refuse_lfs_pointer(std::string_view content, const std::string& where);

}  // namespace lorashard

#include "checkpoint/lfs_pointer.h"

#include "configs/error.h"

namespace lorashard {

void refuse_lfs_pointer(std::string_view content, const std::string& where) {
  if (content.starts_with("version https://git-lfs.github.com/spec/"))
    fail_input(where,
               "is a Git LFS pointer and not the file itself; fetch the file with \"git lfs pull\" "
               "in its repository");
}

}  // namespace lorashard

#include "checkpoint/file_digest.h"

#include "checkpoint/base_digest.h"

namespace lorashard {

std::string cached_file_digest(const fs::path& path) {
  // The key under which the files of base shard sets are remembered too.
  static const std::vector<std::string> key{"file"};
  const FileIdentity identity = identify_file(path);
  if (const auto known = recall_digests(path, identity, key)) {
    return to_hex((*known)[0].data(), sizeof(Digest));
  }
  const std::string hex = sha256_file(path);
  Digest digest;
  // Does nothing where the file has been written to meanwhile.
  if (parse_hex(hex, digest)) remember_digests(path, identity, key, {digest});
  return hex;
}

}  // namespace lorashard

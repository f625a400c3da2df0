// Digests of a base, shared out over ranks and threads and remembered in the user's cache folder.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/base_storage.h"

namespace lorashard {

using Digest = std::array<unsigned char, 32>;

// Calls work(i) for i in [0, count) on as many threads as this rank's share of the processors.
// An exception ends the loop and is rethrown.
void run_in_threads(int64_t count, int ranks, const std::function<void(int64_t)>& work);

// Index of the first element that is an infinity or a NaN, or -1. dtype: F32, BF16 or F16.
int64_t find_non_finite(const void* data, int64_t elements, DType dtype);

// The logical base digest over the tensors (in any order) and theirs.
std::string combine_digests(const std::vector<BaseModel::Tensor>& tensors,
                            const std::vector<Digest>& digests);

// What is remembered of one file: the digests that `keys` name, if the file has not changed since.
// Anything unreadable counts as nothing remembered.
std::optional<std::vector<Digest>> recall_digests(const fs::path& file,
                                                  const FileIdentity& identity,
                                                  const std::vector<std::string>& keys);
// Remembers them, beside what other keys have. Does nothing if the file has changed since
// `identity` was taken, or the folder cannot be written.
void remember_digests(const fs::path& file, const FileIdentity& identity,
                      const std::vector<std::string>& keys, const std::vector<Digest>& digests);

// Hexadecimal of a digest into its bytes; false if it is none.
bool parse_hex(std::string_view hex, Digest& digest);

// Digest of every tensor of a base, in the order of tensors(). What BaseModel::digest does and
// checks before combining them. Collective.
std::vector<Digest> tensor_digests(const BaseModel& base, Communicator& world);

// Digests of the files that the ranks of `group` share, without asking any other rank. Collective
// over `group`.
std::vector<Digest> own_tensor_digests(const BaseModel& base, Communicator& group);

}  // namespace lorashard

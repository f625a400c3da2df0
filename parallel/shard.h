// All split arithmetic: which part of what belongs to which tensor-parallel rank.
//
// Part r of t over n units is [floor(r n / t), floor((r+1) n / t)). Any degree works, parts differ
// by at most one unit, and the boundaries at degree t are boundaries at every multiple of t, so a
// part at TP=1, 2 or 4 is a union of parts at TP=8.
#pragma once

#include <cstdint>

namespace lorashard {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Part `rank` of `ranks` over n units.
inline Range split_units(int64_t n, int rank, int ranks) {
  return {n * rank / ranks, n * (rank + 1) / ranks};
}

// Features that may be cut anywhere (feed-forward width, vocabulary) are cut in blocks of 16, so
// that vector loads and tiles stay aligned, when there are enough blocks to balance; else one by
// one.
inline Range split_features(int64_t n, int rank, int ranks) {
  const int64_t block = n % 16 == 0 && n >= 256 ? 16 : 1;
  const Range units = split_units(n / block, rank, ranks);
  return {units.begin * block, units.end * block};
}

// Query heads are balanced; each rank holds the key/value heads that its query heads use, so
// neighbouring ranks may hold the same one.
struct HeadSplit {
  Range query, kv;
};
inline HeadSplit split_heads(int64_t heads, int64_t kv_heads, int rank, int ranks) {
  const Range q = split_units(heads, rank, ranks);
  const int64_t group = heads / kv_heads;
  return {q, {q.begin / group, (q.end + group - 1) / group}};
}

}  // namespace lorashard

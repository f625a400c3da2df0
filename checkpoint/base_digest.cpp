#include "checkpoint/base_digest.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "configs/error.h"
#include "parallel/agree.h"

namespace lorashard {
namespace {

constexpr int64_t kChunk = 16 << 20;  // of the digest's definition
constexpr int64_t kBlock = 64 << 10;  // scanned, then hashed while it lies in the cache

template <class Word>
bool any_with_exponent(const Word* x, int64_t n, Word exponent) {
  unsigned found = 0;  // no early exit, so that the compiler vectorises
  for (int64_t i = 0; i < n; ++i) found |= (x[i] & exponent) == exponent;
  return found != 0;
}

template <class Word>
int64_t find_exponent(const void* data, int64_t n, Word exponent) {
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    Word block[1024];
    const int64_t count = std::min<int64_t>(n - begin, kBlock);
    const char* at = static_cast<const char*>(data) + begin * static_cast<int64_t>(sizeof(Word));
    if (reinterpret_cast<uintptr_t>(at) % sizeof(Word) == 0 &&
        !any_with_exponent(reinterpret_cast<const Word*>(at), count, exponent))
      continue;
    // Something is there, or the data are misaligned: piece by piece through a copy.
    for (int64_t i = 0; i < count; i += 1024) {
      const int64_t m = std::min<int64_t>(1024, count - i);
      std::memcpy(block, at + i * static_cast<int64_t>(sizeof(Word)),
                  static_cast<size_t>(m) * sizeof(Word));
      for (int64_t j = 0; j < m; ++j)
        if ((block[j] & exponent) == exponent) return begin + i + j;
    }
  }
  return -1;
}

int threads_for(int ranks) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::clamp(cpus / ranks, 1, 32);
}

// 16 MiB of one tensor.
struct Chunk {
  size_t tensor;
  int64_t begin, end;  // bytes
};

std::string describe(const BaseModel::Tensor& t, int64_t element) {
  std::string at = std::to_string(element % t.cols());
  if (t.shape.size() == 2) at = std::to_string(element / t.cols()) + ", " + at;
  return "holds a value that is not finite at [" + at + "]; every weight must be finite";
}

// Hashes and scans `bytes` at `data`; returns the first non-finite element or -1.
int64_t hash_and_scan(Sha256& hash, const char* data, int64_t bytes, DType dtype) {
  int64_t bad = -1;
  for (int64_t at = 0; at < bytes; at += kBlock) {
    const int64_t n = std::min(kBlock, bytes - at);
    if (bad < 0) {
      bad = find_non_finite(data + at, n / size_of(dtype), dtype);
      if (bad >= 0) bad += at / size_of(dtype);
    }
    hash.update(data + at, static_cast<uint64_t>(n));
  }
  return bad;
}

// Digest of every tensor of a Hugging Face directory; refuses values that are not finite.
std::vector<Digest> hash_tensors(const BaseStorage& storage,
                                 const std::vector<BaseModel::Tensor>& tensors,
                                 Communicator& world) {
  // Rank 0 alone looks into the cache, so that all ranks agree on what is left to do.
  std::vector<std::vector<size_t>> of_file(storage.files.size());
  std::vector<std::vector<std::string>> keys(storage.files.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const BasePiece& p = storage.pieces.at(tensors[i].name).front();
    of_file[p.file].push_back(i);
    keys[p.file].push_back(tensors[i].name);
  }
  struct Entry {
    Digest digest{};
    unsigned char known = 0;
  };
  std::vector<Entry> entries(tensors.size());
  if (world.rank() == 0) {
    for (size_t f = 0; f < storage.files.size(); ++f) {
      const MappedFile& file = storage.files[f].file();
      if (const auto known = recall_digests(file.path(), file.identity(), keys[f]))
        for (size_t k = 0; k < known->size(); ++k) entries[of_file[f][k]] = {(*known)[k], 1};
    }
  }
  world.broadcast(entries.data(), static_cast<int64_t>(entries.size() * sizeof(Entry)), 0,
                  "remembered_digests");

  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (entries[i].known) continue;
    const auto bytes = static_cast<int64_t>(tensors[i].bytes());
    for (int64_t at = 0; at < bytes; at += kChunk)
      chunks.push_back({i, at, std::min(bytes, at + kChunk)});
  }
  // Chunk c belongs to rank c / share: neighbouring ranks read neighbouring parts of the disk.
  const auto ranks = static_cast<int64_t>(world.size()),
             count = static_cast<int64_t>(chunks.size());
  const int64_t share = (count + ranks - 1) / ranks;
  struct Result {
    Digest digest{};
    int64_t bad = -1;
  };
  std::vector<Result> mine(static_cast<size_t>(share)), all(static_cast<size_t>(share * ranks));
  const int64_t first = world.rank() * share;
  run_in_threads(std::clamp<int64_t>(count - first, 0, share), world.size(), [&](int64_t k) {
    const Chunk& c = chunks[static_cast<size_t>(first + k)];
    const BasePiece& p = storage.pieces.at(tensors[c.tensor].name).front();
    const SafetensorsFile& file = storage.files[p.file];
    const uint64_t first = p.info.offset + static_cast<uint64_t>(c.begin);
    const uint64_t last = p.info.offset + static_cast<uint64_t>(c.end);
    file.file().populate(first, last);
    Sha256 hash;
    Result& r = mine[static_cast<size_t>(k)];
    r.bad = hash_and_scan(hash, file.data(p.info) + c.begin, c.end - c.begin, p.info.dtype);
    if (r.bad >= 0) r.bad += c.begin / size_of(p.info.dtype);
    r.digest = hash.finish();
    file.file().release(first, last);
  });
  world.all_gather(mine.data(), all.data(), share * static_cast<int64_t>(sizeof(Result)),
                   "chunk_digests");

  std::vector<Sha256> hashes(tensors.size());
  for (int64_t c = 0; c < count; ++c) {
    const Result& r = all[static_cast<size_t>(c)];
    const size_t tensor = chunks[static_cast<size_t>(c)].tensor;
    if (r.bad >= 0) {
      const BasePiece& p = storage.pieces.at(tensors[tensor].name).front();
      // Every rank has every result.
      fail_on_all_ranks(kExitInput,
                        storage.files[p.file].file().path().string() + ": " + tensors[tensor].name,
                        describe(tensors[tensor], r.bad));
    }
    hashes[tensor].update(r.digest.data(), r.digest.size());
  }
  std::vector<Digest> digests;
  for (size_t i = 0; i < tensors.size(); ++i)
    digests.push_back(entries[i].known ? entries[i].digest : hashes[i].finish());

  if (world.rank() == 0) {
    for (size_t f = 0; f < storage.files.size(); ++f) {
      if (of_file[f].empty() || entries[of_file[f][0]].known) continue;
      std::vector<Digest> of_this;
      for (const size_t i : of_file[f]) of_this.push_back(digests[i]);
      const MappedFile& file = storage.files[f].file();
      remember_digests(file.path(), file.identity(), keys[f], of_this);
    }
  }
  return digests;
}

// Verifies the SHA-256 of every file of a base shard set.
void verify_shard_files(const std::string& path, const BaseStorage& storage, Communicator& world) {
  const auto& listed = storage.manifest->file();
  std::map<std::string, const SafetensorsFile*> mapped;
  for (const SafetensorsFile& f : storage.files) mapped[f.file().path().filename().string()] = &f;
  const std::vector<std::string> key{"file"};
  const auto identity = [&](int i) {
    const auto it = mapped.find(listed[i].name());
    return it == mapped.end() ? identify_file(fs::path(path) / listed[i].name())
                              : it->second->file().identity();
  };
  // Rank 0 alone looks into the cache; a remembered digest that is not the listed one counts as
  // none, so that the file is read again and named.
  std::vector<char> known(static_cast<size_t>(listed.size()), 0);
  if (world.rank() == 0)
    for (int i = 0; i < listed.size(); ++i) {
      const auto digest = recall_digests(fs::path(path) / listed[i].name(), identity(i), key);
      known[static_cast<size_t>(i)] =
          digest && to_hex((*digest)[0].data(), sizeof(Digest)) == listed[i].sha256();
    }
  world.broadcast(known.data(), static_cast<int64_t>(known.size()), 0, "remembered_digests");
  std::vector<int> todo;
  for (int i = 0; i < listed.size(); ++i)
    if (!known[static_cast<size_t>(i)]) todo.push_back(i);

  run_agreed(world, [&] {
    std::vector<int> mine;
    for (size_t k = 0; k < todo.size(); ++k)
      if (static_cast<int>(k) % world.size() == world.rank()) mine.push_back(todo[k]);
    run_in_threads(static_cast<int64_t>(mine.size()), world.size(), [&](int64_t k) {
      const FileDigest& entry = listed[mine[static_cast<size_t>(k)]];
      const fs::path name = fs::path(path) / entry.name();
      const FileIdentity before = identity(mine[static_cast<size_t>(k)]);
      const auto it = mapped.find(entry.name());
      std::optional<MappedFile> small;
      if (it == mapped.end()) small.emplace(name);
      const MappedFile& file = small ? *small : it->second->file();
      Sha256 hash;
      for (uint64_t at = 0; at < file.size(); at += kChunk) {
        const uint64_t end = std::min<uint64_t>(file.size(), at + kChunk);
        file.populate(at, end);
        hash.update(file.data() + at, end - at);
        file.release(at, end);
      }
      const Digest digest = hash.finish();
      if (to_hex(digest.data(), digest.size()) != entry.sha256())
        fail_input(name.string(), "is damaged: its SHA-256 is not the one in " +
                                      std::string(kManifestName) +
                                      "; write the base shard set again");
      remember_digests(name, before, key, {digest});
    });
  });
}

}  // namespace

void run_in_threads(int64_t count, int ranks, const std::function<void(int64_t)>& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto loop = [&] {
    try {
      for (int64_t i; (i = next++) < count;) work(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  const int64_t threads = std::min<int64_t>(threads_for(ranks), count);
  for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(loop);
  loop();
  for (std::thread& t : helpers) t.join();
  if (failure) std::rethrow_exception(failure);
}

int64_t find_non_finite(const void* data, int64_t elements, DType dtype) {
  switch (dtype) {
    case DType::F32:
      return find_exponent<uint32_t>(data, elements, 0x7f800000u);
    case DType::BF16:
      return find_exponent<uint16_t>(data, elements, 0x7f80);
    case DType::F16:
      return find_exponent<uint16_t>(data, elements, 0x7c00);
    default:
      return -1;
  }
}

std::string combine_digests(const std::vector<BaseModel::Tensor>& tensors,
                            const std::vector<Digest>& digests) {
  std::map<std::string, size_t> by_name;
  for (size_t i = 0; i < tensors.size(); ++i) by_name[tensors[i].name] = i;
  Sha256 hash;
  for (const auto& [name, i] : by_name) {
    const BaseModel::Tensor& t = tensors[i];
    std::string shape = std::to_string(t.shape[0]);
    if (t.shape.size() == 2) shape.append("x").append(std::to_string(t.shape[1]));
    hash.update(name + " " + std::string(name_of(t.dtype)) + " " + shape + " " +
                to_hex(digests[i].data(), digests[i].size()) + "\n");
  }
  return hash.finish_hex();
}

std::vector<Digest> own_tensor_digests(const BaseModel& base, Communicator& group) {
  if (!base.is_shard_set()) return hash_tensors(base.storage(), base.tensors(), group);
  // The manifest's digests are those of the bytes once every file is the one that was written.
  verify_shard_files(base.path(), base.storage(), group);
  std::map<std::string, Digest> listed;
  for (const auto& t : base.storage().manifest->tensor()) parse_hex(t.digest(), listed[t.name()]);
  std::vector<Digest> digests;
  for (const BaseModel::Tensor& t : base.tensors()) digests.push_back(listed.at(t.name));
  return digests;
}

}  // namespace lorashard

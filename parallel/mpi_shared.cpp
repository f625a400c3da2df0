#include "parallel/mpi_shared.h"

#include <sys/statvfs.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/parallel_for.h"
#include "parallel/mpi.h"
#include "parallel/mpi_check.h"
#include "parallel/waiting.h"

namespace lorashard {
namespace {

constexpr int64_t kLine = 64;
// The counter has a page for itself, so that the buffers begin on one.
constexpr int64_t kHeader = 4096;

// A chunk that stays in a core's second-level cache until its reader comes, and less where many
// ranks would make the window large: every rank's memory counts all of it (2 buffers * ranks).
constexpr int64_t kChunk = 512 << 10, kSmallestChunk = 64 << 10, kWindow = 8 << 20;
// What a meeting costs, in bytes that could be read meanwhile.
constexpr int64_t kMeetingBytes = 64 << 10;
// Less than this is not worth a thread; one block of sums stays in the first-level cache.
constexpr int64_t kThreadBytes = 64 << 10, kBlock = 4096;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t chunk_for(int ranks) {
  return std::clamp(kWindow / (2 * ranks) / kHeader * kHeader, kSmallestChunk, kChunk);
}

void say_once(const char* why) {
  static bool said = false;
  if (!std::exchange(said, true)) {
    std::fprintf(stderr, "note: ranks of one host sum by messages, which is slower: %s\n", why);
  }
}

bool all_agree(MPI_Comm comm, bool mine) {
  int value = mine;
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT, MPI_LAND, comm), "MPI_Allreduce");
  return value;
}

// out = parts[0] + parts[1] + …, n elements from element `begin` of each. out may be one of them.
template <class T>
void add_parts(T* out, const std::vector<const void*>& parts, int64_t begin, int64_t n) {
  T sum[kBlock];
  for (int64_t b = begin; b < begin + n; b += kBlock) {
    const int64_t m = std::min(kBlock, begin + n - b);
    std::memcpy(sum, static_cast<const T*>(parts[0]) + b, size_t(m) * sizeof(T));
    for (size_t r = 1; r < parts.size(); ++r) {
      const T* part = static_cast<const T*>(parts[r]) + b;
      for (int64_t i = 0; i < m; ++i) sum[i] += part[i];
    }
    std::memcpy(out + b, sum, size_t(m) * sizeof(T));
  }
}

// out of F32 or BF16: accumulated in fp32, rounded once.
void add_parts(Stream& stream, void* out, DType dtype, const std::vector<const void*>& parts,
               int64_t begin, int64_t n) {
  float sum[kBlock];
  for (int64_t b = begin; b < begin + n; b += kBlock) {
    const int64_t m = std::min(kBlock, begin + n - b);
    const auto part = [&](size_t r) {
      return const_matrix(static_cast<const char*>(parts[r]) + b * size_of(dtype), 1, m, dtype);
    };
    const Matrix result = matrix(static_cast<char*>(out) + b * size_of(dtype), 1, m, dtype);
    const Matrix partial = matrix(sum, 1, m, DType::F32);
    const size_t last = parts.size() - 1;
    add(stream, last == 1 ? result : partial, part(0), part(1));
    for (size_t r = 2; r <= last; ++r) add(stream, r == last ? result : partial, partial, part(r));
  }
}

void sum_range(Stream& stream, void* out, DType dtype, const std::vector<const void*>& parts,
               int64_t begin, int64_t n) {
  switch (dtype) {
    case DType::F32:
    case DType::BF16:
      return add_parts(stream, out, dtype, parts, begin, n);
    case DType::F64:
      return add_parts(static_cast<double*>(out), parts, begin, n);
    case DType::I64:
      return add_parts(static_cast<int64_t*>(out), parts, begin, n);
    default:
      throw std::logic_error("all_reduce_sum: unsupported type");
  }
}

void copy(Stream& stream, void* to, const void* from, int64_t bytes) {
  parallel_for(stream, bytes, kThreadBytes, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin,
                size_t(end - begin));
  });
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

bool shared_memory_has_room(int64_t bytes) {
  struct statvfs fs;
  if (statvfs("/dev/shm", &fs) != 0 || fs.f_blocks == 0) return true;  // elsewhere, or unlimited
  return int64_t(fs.f_bavail) * int64_t(fs.f_frsize) >= 2 * bytes;
}

SharedAllReduce::~SharedAllReduce() {
  if (window_ == MPI_WIN_NULL || std::uncaught_exceptions() > 0) return;
  MPI_Win_unlock_all(window_);
  MPI_Win_free(&window_);
}

void SharedAllReduce::open(MPI_Comm comm) {
  state_ = State::Unusable;
  spin_ = cores_suffice();
  wait_for_all(comm);
  int size = 0, host_size = 0;
  check_mpi(MPI_Comm_rank(comm, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  MPI_Comm host;
  check_mpi(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
            "MPI_Comm_split_type");
  check_mpi(MPI_Comm_size(host, &host_size), "MPI_Comm_size");
  MPI_Comm_free(&host);
  if (host_size != size) return;

  const auto refuse = [&](const char* why) {
    if (host_rank().rank == 0) say_once(why);
  };
  chunk_bytes_ = chunk_for(size);
  const int64_t bytes = kHeader + 2 * chunk_bytes_;
  // Other groups of this host may be making theirs at the same moment.
  const int64_t needed = host_rank().size * bytes;
  if (!all_agree(comm, shared_memory_has_room(needed))) {
    return refuse(("/dev/shm has less than " + std::to_string(2 * needed >> 20) +
                   " MiB free; remove what killed jobs left there, or give the container more "
                   "(docker: --shm-size)")
                      .c_str());
  }

  // Each segment on pages of its own, which its rank touches first.
  MPI_Info info;
  check_mpi(MPI_Info_create(&info), "MPI_Info_create");
  check_mpi(MPI_Info_set(info, "alloc_shared_noncontig", "true"), "MPI_Info_set");
  void* mine = nullptr;
  const int made = MPI_Win_allocate_shared(bytes, 1, info, comm, &mine, &window_);
  MPI_Info_free(&info);
  if (made != MPI_SUCCESS) window_ = MPI_WIN_NULL;
  const bool all_made = all_agree(comm, made == MPI_SUCCESS);
  // Plain loads and stores with C++'s ordering reach the peers only in the unified model.
  bool unified = false;
  if (all_made) {
    int *model = nullptr, found = 0;
    check_mpi(MPI_Win_get_attr(window_, MPI_WIN_MODEL, &model, &found), "MPI_Win_get_attr");
    unified = all_agree(comm, found && *model == MPI_WIN_UNIFIED);
  }
  if (!unified) {
    if (window_ != MPI_WIN_NULL && all_made) MPI_Win_free(&window_);
    window_ = MPI_WIN_NULL;
    return refuse(all_made ? "MPI's windows are not of the unified memory model"
                           : "MPI made no shared window");
  }
  check_mpi(MPI_Win_lock_all(MPI_MODE_NOCHECK, window_), "MPI_Win_lock_all");
  std::memset(mine, 0, size_t(bytes));
  for (int r = 0; r < size; ++r) {
    MPI_Aint length = 0;
    int unit = 0;
    std::byte* base = nullptr;
    check_mpi(MPI_Win_shared_query(window_, r, &length, &unit, &base), "MPI_Win_shared_query");
    segments_.push_back(
        {reinterpret_cast<uint64_t*>(base), {base + kHeader, base + kHeader + chunk_bytes_}});
  }
  parts_.resize(size_t(size));
  check_mpi(MPI_Win_sync(window_), "MPI_Win_sync");
  check_mpi(MPI_Barrier(comm), "MPI_Barrier");
  check_mpi(MPI_Win_sync(window_), "MPI_Win_sync");
  state_ = State::Open;
}

// MPI moves on meanwhile: a peer may wait for the rest of an earlier message of ours. A peer that
// died or does not answer is for others to notice (mpirun, parallel/liveness.h): they end us.
void SharedAllReduce::wait_for(MPI_Comm comm, uint64_t* arrived) const {
  const std::atomic_ref<uint64_t> counter(*arrived);
  const auto there = [&] { return counter.load(std::memory_order_acquire) >= meetings_; };
  if (there()) return;
  Backoff backoff;
  while (true) {
    for (int i = 0; spin_ && i < 256; ++i) {
      relax();
      if (there()) return;
    }
    int flag = 0;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm, &flag, MPI_STATUS_IGNORE),
              "MPI_Iprobe");
    backoff.pause();
    if (there()) return;
  }
}

void SharedAllReduce::meet(MPI_Comm comm) {
  std::atomic_ref<uint64_t>(*segments_[size_t(rank_)].arrived)
      .store(++meetings_, std::memory_order_release);
  for (const Segment& segment : segments_) wait_for(comm, segment.arrived);
}

bool SharedAllReduce::is_open_after_asking(MPI_Comm comm) {
  if (state_ == State::New) open(comm);
  return state_ == State::Open;
}

// A chunk holds a piece of every rank's slice, so that all ranks have as much to add in each.
bool SharedAllReduce::reduce_scatter(MPI_Comm comm, Stream& stream, Matrix x) {
  if (!is_open_after_asking(comm)) return false;
  const auto ranks = int64_t(segments_.size());
  const int64_t element = size_of(x.dtype), slice = x.cols / ranks;
  const int64_t most = std::max(kLine / element, chunk_bytes_ / element / ranks);
  const auto place = [&](int64_t rank, int64_t first) { return x.at(0, rank * slice + first); };
  for (int64_t first = 0; first < slice; first += most) {
    const int64_t n = std::min(most, slice - first);
    const int buffer = std::exchange(turn_, 1 - turn_);
    for (int64_t r = 0; r < ranks; ++r) {
      if (r == rank_) continue;
      copy(stream, segments_[size_t(rank_)].data[buffer] + r * n * element, place(r, first),
           n * element);
    }
    meet(comm);
    for (int64_t r = 0; r < ranks; ++r)
      parts_[size_t(r)] = segments_[size_t(r)].data[buffer] + rank_ * n * element;
    parts_[size_t(rank_)] = place(rank_, first);
    parallel_for(stream, n, kThreadBytes / element, [&](int64_t b, int64_t e) {
      sum_range(stream, place(rank_, first), x.dtype, parts_, b, e - b);
    });
  }
  return true;
}

bool SharedAllReduce::all_gather(MPI_Comm comm, Stream& stream, Matrix x) {
  if (!is_open_after_asking(comm)) return false;
  const auto ranks = int64_t(segments_.size());
  const int64_t element = size_of(x.dtype), slice = x.cols / ranks;
  const int64_t most = chunk_bytes_ / element;
  const auto place = [&](int64_t rank, int64_t first) { return x.at(0, rank * slice + first); };
  for (int64_t first = 0; first < slice; first += most) {
    const int64_t n = std::min(most, slice - first);
    const int buffer = std::exchange(turn_, 1 - turn_);
    copy(stream, segments_[size_t(rank_)].data[buffer], place(rank_, first), n * element);
    meet(comm);
    for (int64_t r = 0; r < ranks; ++r) {
      if (r == rank_) continue;
      copy(stream, place(r, first), segments_[size_t(r)].data[buffer], n * element);
    }
  }
  return true;
}

bool SharedAllReduce::all_reduce(MPI_Comm comm, Stream& stream, Matrix x) {
  if (!is_open_after_asking(comm)) return false;
  const int64_t element = size_of(x.dtype), line = kLine / element;
  const int64_t all = x.rows * x.cols;
  const auto ranks = int64_t(segments_.size());
  const int64_t chunks = (all * element + chunk_bytes_ - 1) / chunk_bytes_;
  const int64_t most = round_up((all + chunks - 1) / chunks, line);  // elements of a chunk
  for (int64_t first = 0; first < all; first += most) {
    const int64_t n = std::min(most, all - first);
    char* own = static_cast<char*>(x.data) + first * element;
    const int buffer = std::exchange(turn_, 1 - turn_);
    const auto shared = [&](int64_t r) { return segments_[size_t(r)].data[buffer]; };
    copy(stream, shared(rank_), own, n * element);
    meet(comm);
    // Our own part is nearer in x than in the window.
    for (int64_t r = 0; r < ranks; ++r) parts_[size_t(r)] = shared(r);
    parts_[size_t(rank_)] = own;
    const auto sum = [&](void* out, int64_t begin, int64_t end) {
      parallel_for(stream, end - begin, kThreadBytes / element, [&](int64_t b, int64_t e) {
        sum_range(stream, out, x.dtype, parts_, begin + b, e - b);
      });
    };
    if ((ranks - 2) * n * element <= kMeetingBytes) {
      sum(own, 0, n);
      continue;
    }
    const auto slice = [&](int64_t r) {
      return std::min(n, (n + line - 1) / line * r / ranks * line);
    };
    sum(shared(rank_), slice(rank_), slice(rank_ + 1));
    meet(comm);
    for (int64_t r = 0; r < ranks; ++r) {
      const int64_t begin = slice(r) * element, bytes = (slice(r + 1) - slice(r)) * element;
      copy(stream, own + begin, shared(r) + begin, bytes);
    }
  }
  return true;
}

}  // namespace lorashard

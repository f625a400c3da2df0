// The part of NCCL that lorashard calls.
#include <cuda_bf16.h>
#include <cudasim/arena.h>
#include <cudasim/nccl_faults.h>
#include <cudasim/nccl_segment.h>
#include <cudasim/queue.h>
#include <cudasim/violation.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace {

using namespace cudasim;

std::atomic<int> live = 0;
thread_local ncclResult_t next_fault = ncclSuccess, next_init_fault = ncclSuccess;

size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclFloat32:
      return 4;
    case ncclBfloat16:
      return 2;
    case ncclFloat64:
    case ncclInt64:
      return 8;
    default:
      return 0;
  }
}

// out = the ranks' parts added up in rank order.
template <class T, class Sum>
void add_parts(void* out, NcclSegment& segment, int ranks, size_t count) {
  const auto part = [&](int r) { return reinterpret_cast<const T*>(segment.part(r).bytes); };
  for (size_t i = 0; i < count; ++i) {
    Sum sum = Sum(part(0)[i]);
    for (int r = 1; r < ranks; ++r) sum += Sum(part(r)[i]);
    static_cast<T*>(out)[i] = T(sum);
  }
}

// What a communicator's queued work shares with it.
struct State {
  State(const std::string& name, int rank, int size)
      : segment(name, rank, size), rank(rank), size(size) {}
  NcclSegment segment;
  const int rank, size;
  std::atomic<ncclResult_t> error = ncclSuccess;
  std::atomic<bool> aborted = false;
  uint64_t pieces = 0;               // that this rank has written
  std::atomic<int> waiting = 0;      // collectives enqueued and not done
  std::atomic<cudaStream_t> stream;  // that they were enqueued on
};

enum class Kind { AllReduce, ReduceScatter, AllGather };

// One collective on its way. Called until it returns true.
struct Collective {
  std::shared_ptr<State> state;
  Kind kind;
  const char* send;
  char* receive;
  size_t count;     // elements that each rank sends
  size_t received;  // elements that this rank gets
  ncclDataType_t type;
  ncclResult_t fault;
  size_t done = 0;
  bool written = false;

  const char* name() const {
    return kind == Kind::AllReduce       ? "ncclAllReduce"
           : kind == Kind::ReduceScatter ? "ncclReduceScatter"
                                         : "ncclAllGather";
  }

  bool go_on() {
    State& s = *state;
    const auto end = [&] {
      --s.waiting;
      return true;
    };
    if (s.aborted) {
      const size_t good = kind == Kind::AllReduce ? done : 0;
      std::memset(receive + good * bytes_of(type), 0xff, (received - good) * bytes_of(type));
      return end();
    }
    if (fault != ncclSuccess) s.error = fault;
    if (s.error != ncclSuccess || !s.segment.all_joined()) return false;
    const size_t most = NcclSegment::kPieceBytes / bytes_of(type);
    while (done < count) {
      const size_t n = std::min(most, count - done);
      if (!(written ? add(n) : write(n))) return false;
    }
    return end();
  }

  bool write(size_t n) {
    State& s = *state;
    for (int r = 0; r < s.size; ++r)
      if (s.segment.part(r).read < s.pieces) return false;
    NcclSegment::Part& mine = s.segment.part(s.rank);
    mine.count = count;
    mine.done = done;
    mine.type = type;
    std::memcpy(mine.bytes, send + done * bytes_of(type), n * bytes_of(type));
    mine.written = ++s.pieces;
    written = true;
    return true;
  }

  bool add(size_t n) {
    State& s = *state;
    for (int r = 0; r < s.size; ++r) {
      const NcclSegment::Part& part = s.segment.part(r);
      if (part.written < s.pieces) return false;
      if (part.count != count || part.type != type || part.done != done)
        throw Violation(std::string(name()) + ": rank " + std::to_string(s.rank) + " sums " +
                        std::to_string(count) + " elements of type " + std::to_string(type) +
                        ", rank " + std::to_string(r) + " " + std::to_string(part.count) +
                        " of type " + std::to_string(part.type));
    }
    if (kind == Kind::AllGather) {
      for (int r = 0; r < s.size; ++r)
        std::memcpy(receive + (size_t(r) * count + done) * bytes_of(type), s.segment.part(r).bytes,
                    n * bytes_of(type));
    } else {
      std::vector<char> sum(n * bytes_of(type));
      add_pieces(sum.data(), n);
      // The elements that this rank receives, of [done, done + n).
      const size_t first = kind == Kind::AllReduce ? 0 : size_t(s.rank) * received;
      const size_t begin = std::max(first, done), end = std::min(first + received, done + n);
      if (begin < end)
        std::memcpy(receive + (begin - first) * bytes_of(type),
                    sum.data() + (begin - done) * bytes_of(type), (end - begin) * bytes_of(type));
    }
    s.segment.part(s.rank).read = s.pieces;
    done += n;
    written = false;
    return true;
  }

  void add_pieces(void* out, size_t n) {
    State& s = *state;
    switch (type) {
      case ncclFloat32:
        add_parts<float, float>(out, s.segment, s.size, n);
        break;
      case ncclBfloat16:
        add_parts<__nv_bfloat16, float>(out, s.segment, s.size, n);
        break;
      case ncclFloat64:
        add_parts<double, double>(out, s.segment, s.size, n);
        break;
      default:
        add_parts<int64_t, int64_t>(out, s.segment, s.size, n);
        break;
    }
  }
};

ncclResult_t enqueue(Kind kind, const void* send, void* receive, size_t count, size_t received,
                     ncclDataType_t type, ncclComm_t comm, cudaStream_t stream);

bool peers_are_ahead(const State& s) {
  for (int r = 0; r < s.size; ++r)
    if (s.segment.part(r).written > s.segment.part(s.rank).written) return true;
  return false;
}

}  // namespace

// A device works on its queue while its host does other things, and here too where it matters: if
// peers wait for this rank in a collective that it has enqueued, `helper` runs the stream.
struct ncclComm {
  std::shared_ptr<State> state;
  int device;
  std::atomic<bool> ends = false;
  std::thread helper;

  void help() {
    current_device() = device;
    while (!ends) {
      std::this_thread::sleep_for(std::chrono::microseconds(500));
      if (state->waiting > 0 && (peers_are_ahead(*state) || state->aborted)) poll(state->stream);
    }
  }
  ~ncclComm() {
    ends = true;
    helper.join();
    --live;
  }
};

namespace {

ncclResult_t enqueue(Kind kind, const void* send, void* receive, size_t count, size_t received,
                     ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
  if (bytes_of(type) == 0 || !arena_holds(send, count * bytes_of(type)) ||
      !arena_holds(receive, received * bytes_of(type)) || !stream ||
      device_of(stream) != comm->device)
    return ncclInvalidArgument;
  State& s = *comm->state;
  if (s.error != ncclSuccess) return s.error;
  if (!s.segment.all_joined()) return ncclInvalidUsage;  // before init has ended
  const Collective begun{
      comm->state, kind, static_cast<const char*>(send),        static_cast<char*>(receive), count,
      received,    type, std::exchange(next_fault, ncclSuccess)};
  const cudaError_t status = enqueue_made(stream, [begun](cudaStream_t runs_on) -> Work {
    ++begun.state->waiting;
    begun.state->stream = runs_on;
    return [work = std::make_shared<Collective>(begun)] { return work->go_on(); };
  });
  return status == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

}  // namespace

namespace cudasim {
void fail_next_all_reduce(ncclResult_t error) { next_fault = error; }
void fail_next_init(ncclResult_t error) { next_init_fault = error; }
int live_communicators() { return live; }
}  // namespace cudasim

extern "C" {

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclInProgress:
      return "NCCL operation in progress";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    default:
      return "error of the simulator";
  }
}

const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<unsigned> counter = 0;
  std::snprintf(id->internal, sizeof id->internal, "/cudasim-nccl-%d-%u-%08x", int(getpid()),
                counter++, unsigned(std::random_device{}()));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (size < 1 || rank < 0 || rank >= size || config->blocking != 0) return ncclInvalidArgument;
  auto made = std::make_unique<ncclComm>();
  made->state = std::make_shared<State>(id.internal, rank, size);
  made->device = current_device();
  State& state = *made->state;
  if (!state.segment.fits()) state.error = ncclInvalidArgument;
  if (next_init_fault != ncclSuccess) state.error = std::exchange(next_init_fault, ncclSuccess);
  made->helper = std::thread([comm = made.get()] { comm->help(); });
  ++live;
  *comm = made.release();
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  State& s = *comm->state;
  if (s.error == ncclSuccess && s.segment.peer_lost()) s.error = ncclRemoteError;
  *error = s.error != ncclSuccess   ? s.error.load()
           : s.segment.all_joined() ? ncclSuccess
                                    : ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return enqueue(Kind::AllReduce, send, receive, count, count, type, comm, stream);
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t received,
                               ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                               cudaStream_t stream) {
  if (op != ncclSum) return ncclInvalidArgument;
  return enqueue(Kind::ReduceScatter, send, receive, received * size_t(comm->state->size), received,
                 type, comm, stream);
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return enqueue(Kind::AllGather, send, receive, count, count * size_t(comm->state->size), type,
                 comm, stream);
}

ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const bool ended = comm->state->waiting == 0;
  delete comm;
  return ended ? ncclSuccess : ncclInvalidUsage;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  comm->state->segment.say_aborted();
  comm->state->aborted = true;
  // What it had to do ends now, as the device would end it.
  delete comm;
  return ncclSuccess;
}

}  // extern "C"

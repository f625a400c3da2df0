#include "parallel/nccl.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/pinned_ring.h"
#include "parallel/agree.h"
#include "parallel/liveness.h"

namespace lorashard {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

std::atomic<milliseconds> reduction_patience{std::chrono::minutes(30)};
std::atomic<milliseconds> join_patience{std::chrono::minutes(5)};

ncclDataType_t nccl_type(DType t) {
  switch (t) {
    case DType::F32:
      return ncclFloat32;
    case DType::BF16:
      return ncclBfloat16;
    case DType::F64:
      return ncclFloat64;
    case DType::I64:
      return ncclInt64;
    default:
      throw std::logic_error("all_reduce_sum: unsupported type");
  }
}

// One member of one NCCL communicator.
struct Member {
  ncclComm_t comm = nullptr;
  int rank = 0, size = 1;
  WaitGroup* group = nullptr;
  std::string where() const {
    return "NCCL rank " + std::to_string(rank) + " of " + std::to_string(size);
  }
};

// What the communicators of one compute stream share: the collective stream, the all-reduces under
// way and the NCCL communicators, which fail together.
class Device {
 public:
  explicit Device(Stream& stream) : compute_(selected(stream)) {
    LORASHARD_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    compute_.watch = [this] { watch(); };
    compute_.watched = [this] { waiting_.reset(); };
    compute_.abandon = [this] { abort(); };
  }
  ~Device() {
    compute_.watch = nullptr;
    compute_.watched = nullptr;
    compute_.abandon = nullptr;
    cudaStreamDestroy(stream_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // Joins the ranks that hold `id`. Throws Error.
  Member* join(const ncclUniqueId& id, int rank, int size, WaitGroup& group);
  void leave(Member* member);

  // `call`: NCCL's function, which `enqueue` calls for the stream of collectives.
  ReduceTicket begin(const Member& member, const char* call, const char* label,
                     const std::function<ncclResult_t(cudaStream_t)>& enqueue);
  // What is enqueued on the compute stream from now on comes after the collective.
  void wait(ReduceTicket ticket) { slot(ticket).after.order(compute_.compute); }

  // Ends every communicator where it stands. What waits for them on the device goes on, with
  // meaningless values.
  void abort() noexcept;

 private:
  // Events are made on the device that is selected.
  static CudaStream& selected(Stream& stream) {
    cuda::use_device(stream);
    return *stream.cuda();
  }

  // All-reduces begun last, in a ring. Where a slot was used again, its event marks a later point
  // of the stream: who waits for it waits for the earlier all-reduce too.
  static constexpr int64_t kSlots = 32;
  struct AllReduce {
    cuda::Event before, after;
    const char* call = "";
    std::string label, where;
    WaitGroup* group = nullptr;
    Clock::time_point begun;
  };
  AllReduce& slot(ReduceTicket ticket) { return all_reduces_[size_t(ticket % kSlots)]; }

  void watch();
  // While the host waits for the device, this rank waits for peers where an all-reduce has begun.
  void note_wait(const AllReduce* oldest);
  // Aborts, and throws the Error that names the oldest all-reduce under way.
  [[noreturn]] void fail(const Member& member, const char* call, ncclResult_t result,
                         const std::string& label);
  void settle(const Member& member, const char* call, ncclResult_t result, milliseconds patience,
              const std::string& label);
  // The oldest all-reduce that is not done; null if all are.
  AllReduce* oldest();

  CudaStream& compute_;
  cudaStream_t stream_ = nullptr;
  std::array<AllReduce, kSlots> all_reduces_;
  ReduceTicket last_ = 0;
  ReduceTicket done_ = 0;  // all-reduces up to this one are known to be done
  std::optional<PeerWait> waiting_;
  ReduceTicket waiting_for_ = 0;
  std::vector<std::unique_ptr<Member>> members_;
  bool aborted_ = false;
};

// NCCL says more in ncclGetLastError than the status does; it keeps that of the process.
std::string text(ncclResult_t result) {
  std::string said = ncclGetErrorString(result);
  const char* more = ncclGetLastError(nullptr);
  if (more && *more) said += " (" + std::string(more) + ")";
  return said;
}

void Device::fail(const Member& member, const char* call, ncclResult_t result,
                  const std::string& label) {
  const std::string where = member.where();
  const std::string what = std::string(call) + (label.empty() ? "" : " of " + label) +
                           " failed: " + text(result) + "; see the other ranks' messages";
  abort();
  fail_run(where, what);
}

// Calls on a communicator that does not block answer ncclInProgress and go on by themselves.
void Device::settle(const Member& member, const char* call, ncclResult_t result,
                    milliseconds patience, const std::string& label) {
  const Clock::time_point start = Clock::now();
  while (result == ncclInProgress) {
    if (Clock::now() - start > patience) {
      const std::string where = member.where();
      abort();
      fail_run(where, std::string(call) + (label.empty() ? "" : " of " + label) +
                          " did not end in time: a rank is lost or its device does not answer");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    if (const ncclResult_t asked = ncclCommGetAsyncError(member.comm, &result);
        asked != ncclSuccess)
      result = asked;
  }
  if (result != ncclSuccess) fail(member, call, result, label);
}

Member* Device::join(const ncclUniqueId& id, int rank, int size, WaitGroup& group) {
  LORASHARD_CUDA_CHECK(cudaSetDevice(compute_.device));
  members_.push_back(std::make_unique<Member>(Member{nullptr, rank, size, &group}));
  Member& member = *members_.back();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  settle(member, "ncclCommInitRankConfig",
         ncclCommInitRankConfig(&member.comm, size, id, rank, &config), join_patience, "");
  return &member;
}

void Device::leave(Member* member) {
  if (std::uncaught_exceptions() > 0) {
    abort();
  } else if (!aborted_) {
    cudaSetDevice(compute_.device);
    cudaStreamSynchronize(stream_);
    ncclResult_t result = ncclCommFinalize(member->comm);
    const Clock::time_point start = Clock::now();
    while (result == ncclInProgress && Clock::now() - start < join_patience.load()) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      if (ncclCommGetAsyncError(member->comm, &result) != ncclSuccess) break;
    }
    if (result == ncclSuccess)
      ncclCommDestroy(member->comm);
    else
      ncclCommAbort(member->comm);
  }
  std::erase_if(members_, [&](const auto& m) { return m.get() == member; });
}

void Device::abort() noexcept {
  if (aborted_) return;
  aborted_ = true;
  for (const auto& member : members_)
    if (member->comm) ncclCommAbort(member->comm);
}

ReduceTicket Device::begin(const Member& member, const char* call, const char* label,
                           const std::function<ncclResult_t(cudaStream_t)>& enqueue) {
  if (aborted_)
    fail_run(member.where(),
             std::string(call) + " of " + label + " cannot begin: the communicator was aborted");
  const ReduceTicket ticket = ++last_;
  AllReduce& reduction = slot(ticket);
  reduction.call = call;
  reduction.label = label;
  reduction.where = member.where();
  reduction.group = member.group;
  reduction.begun = Clock::now();
  reduction.before.record(compute_.compute);
  reduction.before.order(stream_);
  settle(member, call, enqueue(stream_), reduction_patience, label);
  reduction.after.record(stream_);
  return ticket;
}

Device::AllReduce* Device::oldest() {
  done_ = std::max(done_, last_ - kSlots);
  while (done_ < last_) {
    if (AllReduce& reduction = slot(done_ + 1); !reduction.after.passed()) return &reduction;
    ++done_;
  }
  return nullptr;
}

void Device::note_wait(const AllReduce* oldest) {
  // An all-reduce behind kernels of this rank's own waits for nobody.
  if (!oldest || !oldest->before.passed()) return waiting_.reset();
  const ReduceTicket ticket = done_ + 1;
  if (waiting_ && waiting_for_ == ticket) return;
  waiting_.reset();
  waiting_for_ = ticket;
  oldest->group->calls = uint64_t(done_);  // the wait counts itself
  waiting_.emplace(*oldest->group, oldest->call, oldest->label.c_str());
}

void Device::watch() {
  if (aborted_) return;
  AllReduce* const reduction = oldest();
  note_wait(reduction);
  for (const auto& member : members_) {
    ncclResult_t result = ncclSuccess;
    if (const ncclResult_t asked = ncclCommGetAsyncError(member->comm, &result);
        asked != ncclSuccess)
      result = asked;
    if (result != ncclSuccess && result != ncclInProgress)
      fail(*member, reduction ? reduction->call : "ncclAllReduce", result,
           reduction ? reduction->label : "");
  }
  if (reduction && Clock::now() - reduction->begun > reduction_patience.load()) {
    const std::string where = reduction->where, label = reduction->label;
    const std::string call = reduction->call;
    abort();
    fail_run(where, call + " of " + label +
                        " did not end in time: a rank is lost or its device does not answer");
  }
}

class NcclCommunicator final : public Communicator {
 public:
  // Collective. `host` is owned if it comes with `owned`.
  NcclCommunicator(Communicator& host, std::unique_ptr<Communicator> owned,
                   std::shared_ptr<Device> device)
      : Communicator(host.rank(), host.size()),
        owned_(std::move(owned)),
        host_(host),
        device_(std::move(device)) {
    if (size() == 1) return;
    ncclUniqueId id{};
    run_agreed(host_, [&] {
      if (rank() > 0) return;
      if (const ncclResult_t result = ncclGetUniqueId(&id); result != ncclSuccess)
        fail_run("NCCL rank 0", "ncclGetUniqueId failed: " + text(result));
    });
    host_.broadcast(&id, sizeof id, 0, "nccl_id");
    std::vector<int> members(static_cast<size_t>(size()));
    const int mine = host_.world_rank();
    host_.all_gather(&mine, members.data(), sizeof mine, "nccl_ranks");
    // The id is random, the same on its members and no other group's.
    const uint64_t group = std::hash<std::string_view>{}({id.internal, sizeof id.internal});
    WaitGroup& waits = make_wait_group(group | 1, std::move(members));
    run_agreed(host_, [&] { member_ = device_->join(id, rank(), size(), waits); });
  }
  ~NcclCommunicator() override {
    if (member_) device_->leave(member_);
  }

  std::unique_ptr<Communicator> split(int color) override {
    std::unique_ptr<Communicator> part = host_.split(color);
    Communicator& host = *part;
    return std::make_unique<NcclCommunicator>(host, std::move(part), device_);
  }

  int world_rank() const override { return host_.world_rank(); }
  int host() const override { return host_.host(); }
  std::string place() const override { return host_.place(); }

  [[noreturn]] void abort(int exit_status) override {
    device_->abort();
    host_.abort(exit_status);
    std::terminate();  // abort() does not return
  }

 private:
  void do_all_reduce_sum(Stream& stream, Matrix x) override {
    do_all_reduce_sum_wait(stream, do_all_reduce_sum_begin(stream, x));
  }
  ReduceTicket do_all_reduce_sum_begin(Stream& stream, Matrix x) override {
    if (stream.backend() == Backend::CPU) {
      host_.all_reduce_sum(stream, x, label());
      return 0;
    }
    return device_->begin(*member_, "ncclAllReduce", label(), [&](cudaStream_t stream) {
      return ncclAllReduce(x.data, x.data, size_t(x.rows * x.cols), nccl_type(x.dtype), ncclSum,
                           member_->comm, stream);
    });
  }
  void do_reduce_scatter_sum(Stream& stream, Matrix x) override {
    if (stream.backend() == Backend::CPU) return host_.reduce_scatter_sum(stream, x, label());
    const Matrix mine = slice(x);
    device_->wait(device_->begin(*member_, "ncclReduceScatter", label(), [&](cudaStream_t stream) {
      return ncclReduceScatter(x.data, mine.data, size_t(mine.cols), nccl_type(x.dtype), ncclSum,
                               member_->comm, stream);
    }));
  }
  void do_all_gather_slices(Stream& stream, Matrix x) override {
    if (stream.backend() == Backend::CPU) return host_.all_gather_slices(stream, x, label());
    const Matrix mine = slice(x);
    device_->wait(device_->begin(*member_, "ncclAllGather", label(), [&](cudaStream_t stream) {
      return ncclAllGather(mine.data, x.data, size_t(mine.cols), nccl_type(x.dtype), member_->comm,
                           stream);
    }));
  }
  void do_all_reduce_sum_wait(Stream&, ReduceTicket ticket) override {
    if (ticket != 0) device_->wait(ticket);
  }
  void do_all_gather(const void* send, void* receive, int64_t bytes) override {
    host_.all_gather(send, receive, bytes, label());
  }
  void do_broadcast(void* data, int64_t bytes, int root) override {
    host_.broadcast(data, bytes, root, label());
  }
  void do_barrier() override { host_.barrier(label()); }

  std::unique_ptr<Communicator> owned_;
  Communicator& host_;
  std::shared_ptr<Device> device_;
  Member* member_ = nullptr;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Stream& stream) {
  return std::make_unique<NcclCommunicator>(host, nullptr, std::make_shared<Device>(stream));
}

void set_nccl_patience(milliseconds reduction, milliseconds join) {
  reduction_patience = reduction;
  join_patience = join;
}

}  // namespace lorashard

#include "parallel/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "configs/error.h"
#include "kernels/float_types.h"
#include "parallel/hosts.h"
#include "parallel/liveness.h"
#include "parallel/mpi_check.h"
#include "parallel/mpi_shared.h"
#include "parallel/waiting.h"

namespace lorashard {
namespace {

// MPI has no bf16: pairs are added in fp32, rounded.
void sum_bf16(void* in, void* inout, int* length, MPI_Datatype*) {
  const auto* a = static_cast<const uint16_t*>(in);
  auto* b = static_cast<uint16_t*>(inout);
  for (int i = 0; i < *length; ++i) {
    b[i] = float_to_bf16(bf16_to_float(a[i]) + bf16_to_float(b[i]));
  }
}

MPI_Op bf16_sum_op() {
  static const MPI_Op op = [] {
    MPI_Op made;
    check_mpi(MPI_Op_create(sum_bf16, /*commute=*/1, &made), "MPI_Op_create");
    return made;
  }();
  return op;
}

// MPI counts are int: larger payloads go in pieces of this many elements.
constexpr int64_t kPiece = int64_t{1} << 28;

class MpiCommunicator final : public Communicator {
 public:
  // Owns `comm` unless it is MPI_COMM_WORLD. Null `shared`: all-reduces go by messages. `id`: see
  // WaitGroup.
  MpiCommunicator(MPI_Comm comm, std::shared_ptr<SharedAllReduce> shared, uint64_t id)
      : Communicator(rank_of(comm), size_of_comm(comm)),
        comm_(comm),
        shared_(std::move(shared)),
        group_(make_wait_group(id, world_ranks(comm))) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  ~MpiCommunicator() override {
    shared_.reset();
    if (comm_ != MPI_COMM_WORLD && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  std::unique_ptr<Communicator> split(int color) override {
    MPI_Comm part;
    const PeerWait wait(group_, "split", "ranks");
    wait_for_all(comm_);
    check_mpi(MPI_Comm_split(comm_, color, rank(), &part), "MPI_Comm_split");
    // Equal ranks in equal order share one window: tensor and world at TP = N.
    std::shared_ptr<SharedAllReduce> shared = shared_;
    if (shared && size_of_comm(part) != size()) shared = std::make_shared<SharedAllReduce>();
    const uint64_t id = (group_.id * 1000 + ++splits_) * 1000003 + uint64_t(color) + 1;
    return std::make_unique<MpiCommunicator>(part, std::move(shared), id);
  }

  int world_rank() const override { return rank_of(MPI_COMM_WORLD); }
  int host() const override { return hosts().first_rank[size_t(world_rank())]; }
  std::string place() const override { return hosts().place(world_rank()); }

  bool reduces_in_shared_memory() const { return shared_ && shared_->is_open(); }

  [[noreturn]] void abort(int exit_status) override {
    MPI_Abort(MPI_COMM_WORLD, exit_status);
    std::_Exit(exit_status);
  }

 private:
  static int rank_of(MPI_Comm comm) {
    int r;
    check_mpi(MPI_Comm_rank(comm, &r), "MPI_Comm_rank");
    return r;
  }
  static int size_of_comm(MPI_Comm comm) {
    int n;
    check_mpi(MPI_Comm_size(comm, &n), "MPI_Comm_size");
    return n;
  }

  static std::vector<int> world_ranks(MPI_Comm comm) {
    std::vector<int> all(size_t(size_of_comm(comm)));
    const int mine = rank_of(MPI_COMM_WORLD);
    check_mpi(MPI_Allgather(&mine, 1, MPI_INT, all.data(), 1, MPI_INT, comm), "MPI_Allgather");
    return all;
  }

  void do_all_reduce_sum(Stream& stream, Matrix x) override {
    stream.synchronize();
    const PeerWait wait(group_, "all_reduce", label());
    if (shared_ && shared_->all_reduce(comm_, stream, x)) return;
    wait_for_all(comm_);
    MPI_Datatype type = MPI_FLOAT;
    MPI_Op op = MPI_SUM;
    switch (x.dtype) {
      case DType::F32:
        break;
      case DType::F64:
        type = MPI_DOUBLE;
        break;
      case DType::I64:
        type = MPI_INT64_T;
        break;
      case DType::BF16:
        type = MPI_UINT16_T;
        op = bf16_sum_op();
        break;
      default:
        throw std::logic_error("all_reduce_sum: unsupported type");
    }
    const int64_t n = x.rows * x.cols;
    for (int64_t i = 0; i < n; i += kPiece) {
      char* data = static_cast<char*>(x.data) + i * size_of(x.dtype);
      check_mpi(MPI_Allreduce(MPI_IN_PLACE, data, int(std::min(kPiece, n - i)), type, op, comm_),
                "MPI_Allreduce");
    }
  }
  void do_reduce_scatter_sum(Stream& stream, Matrix x) override {
    {
      const PeerWait wait(group_, "reduce_scatter", label());
      if (shared_ && shared_->reduce_scatter(comm_, stream, x)) return;
    }
    do_all_reduce_sum(stream, x);
  }
  void do_all_gather_slices(Stream& stream, Matrix x) override {
    {
      const PeerWait wait(group_, "all_gather", label());
      if (shared_ && shared_->all_gather(comm_, stream, x)) return;
    }
    Communicator::do_all_gather_slices(stream, x);
  }
  void do_all_gather(const void* send, void* receive, int64_t bytes) override {
    if (bytes > std::numeric_limits<int>::max()) throw std::logic_error("all_gather: too large");
    const PeerWait wait(group_, "all_gather", label());
    wait_for_all(comm_);
    check_mpi(MPI_Allgather(send, int(bytes), MPI_BYTE, receive, int(bytes), MPI_BYTE, comm_),
              "MPI_Allgather");
  }
  void do_broadcast(void* data, int64_t bytes, int root) override {
    const PeerWait wait(group_, "broadcast", label());
    wait_for_all(comm_);
    for (int64_t i = 0; i < bytes; i += kPiece) {
      check_mpi(MPI_Bcast(static_cast<char*>(data) + i, int(std::min(kPiece, bytes - i)), MPI_BYTE,
                          root, comm_),
                "MPI_Bcast");
    }
  }
  void do_barrier() override {
    const PeerWait wait(group_, "barrier", label());
    wait_for_all(comm_);
  }

  MPI_Comm comm_;
  std::shared_ptr<SharedAllReduce> shared_;
  WaitGroup& group_;
  uint64_t splits_ = 0;
};

// One word that the ranks of this host share: whether one has asked first_of_host_to_ask().
struct HostWord {
  MPI_Comm host = MPI_COMM_NULL;
  MPI_Win window = MPI_WIN_NULL;
  int* word = nullptr;
};
HostWord asked;

// Collective. Leaves `asked.word` null where the memory cannot be had.
void open_host_word() {
  check_mpi(
      MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &asked.host),
      "MPI_Comm_split_type");
  MPI_Comm_set_errhandler(asked.host, MPI_ERRORS_RETURN);
  int rank = 0;
  MPI_Comm_rank(asked.host, &rank);
  constexpr int64_t kRoom = 256 << 10;  // of one word; MPI's own bookkeeping has some pages too
  int room = shared_memory_has_room(kRoom);
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &room, 1, MPI_INT, MPI_MIN, asked.host), "MPI_Allreduce");
  if (!room) return;
  void* mine = nullptr;
  int made = MPI_Win_allocate_shared(rank == 0 ? sizeof(int) : 0, sizeof(int), MPI_INFO_NULL,
                                     asked.host, &mine, &asked.window) == MPI_SUCCESS;
  check_mpi(MPI_Allreduce(MPI_IN_PLACE, &made, 1, MPI_INT, MPI_MIN, asked.host), "MPI_Allreduce");
  if (!made) return;
  MPI_Aint bytes = 0;
  int unit = 0;
  int* word = nullptr;
  check_mpi(MPI_Win_shared_query(asked.window, 0, &bytes, &unit, &word), "MPI_Win_shared_query");
  if (rank == 0) std::atomic_ref<int>(*word).store(0);
  check_mpi(MPI_Barrier(asked.host), "MPI_Barrier");
  asked.word = word;
}

void close_host_word() {
  if (asked.word) MPI_Win_free(&asked.window);
  asked.word = nullptr;
  MPI_Comm_free(&asked.host);
}

}  // namespace

bool first_of_host_to_ask() {
  int* const word = asked.word;
  return !word || std::atomic_ref<int>(*word).exchange(1) == 0;
}

bool started_by_mpi_launcher() {
  // Open MPI; MPICH (hydra) and other PMI launchers; srun with PMIx.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"}) {
    if (std::getenv(name)) return true;
  }
  return false;
}

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int provided = 0;
  check_mpi(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    fail_run("MPI", "this MPI gives no thread support, MPI_THREAD_FUNNELED is needed");
  }
  hosts();  // collective the first time
  open_host_word();
  start_liveness();
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() == 0) {
    std::vector<int> all(hosts().names.size());
    std::iota(all.begin(), all.end(), 0);
    constexpr uint64_t kEnd = ~uint64_t{0};
    const PeerWait wait(make_wait_group(kEnd, std::move(all)), "barrier", "end of the job");
    wait_for_all(MPI_COMM_WORLD);
    close_host_word();
    MPI_Finalize();
  }
  stop_liveness();
}

int mpi_world_size() { return int(hosts().names.size()); }

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  check_mpi(MPI_Get_library_version(text, &length), "MPI_Get_library_version");
  const std::string all(text, size_t(length));
  return all.substr(0, all.find_first_of(",\n"));
}

std::unique_ptr<Communicator> make_world_communicator(AllReducePath path) {
  auto shared = path == AllReducePath::SharedMemory ? std::make_shared<SharedAllReduce>() : nullptr;
  return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, std::move(shared), 1);
}

bool reduces_in_shared_memory(const Communicator& communicator) {
  const auto* mpi = dynamic_cast<const MpiCommunicator*>(&communicator);
  return mpi && mpi->reduces_in_shared_memory();
}

HostRank host_rank() {
  static const HostRank result = [] {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const std::vector<int>& first = hosts().first_rank;
    const auto of_host = [&](int end) {
      return int(std::count(first.begin(), first.begin() + end, first[size_t(rank)]));
    };
    return HostRank{of_host(rank), of_host(int(first.size()))};
  }();
  return result;
}

}  // namespace lorashard

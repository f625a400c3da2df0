#include "parallel/mpi.h"

#include <mpi.h>

#include <cstdlib>
#include <exception>
#include <limits>
#include <string>

#include "configs/error.h"
#include "kernels/float_types.h"

namespace lorashard {
namespace {

// Turns an MPI error code into an Error that names rank and call.
void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0, rank = -1;
  MPI_Error_string(code, text, &length);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  fail_run("rank " + std::to_string(rank), std::string(call) + ": " + std::string(text, length));
}

// MPI has no bf16: sums of pairs in fp32, rounded.
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
    check(MPI_Op_create(sum_bf16, /*commute=*/1, &made), "MPI_Op_create");
    return made;
  }();
  return op;
}

// MPI counts are int: larger payloads go in pieces of this many elements.
constexpr int64_t kPiece = int64_t{1} << 28;

class MpiCommunicator final : public Communicator {
 public:
  // Owns `comm` unless it is MPI_COMM_WORLD.
  explicit MpiCommunicator(MPI_Comm comm) : Communicator(rank_of(comm), size_of_comm(comm)) {
    comm_ = comm;
    check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  ~MpiCommunicator() override {
    if (comm_ != MPI_COMM_WORLD && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  std::unique_ptr<Communicator> split(int color) override {
    MPI_Comm part;
    check(MPI_Comm_split(comm_, color, rank(), &part), "MPI_Comm_split");
    return std::make_unique<MpiCommunicator>(part);
  }

  [[noreturn]] void abort(int exit_status) override {
    MPI_Abort(MPI_COMM_WORLD, exit_status);
    std::_Exit(exit_status);
  }

 private:
  static int rank_of(MPI_Comm comm) {
    int r;
    check(MPI_Comm_rank(comm, &r), "MPI_Comm_rank");
    return r;
  }
  static int size_of_comm(MPI_Comm comm) {
    int n;
    check(MPI_Comm_size(comm, &n), "MPI_Comm_size");
    return n;
  }

  void do_all_reduce_sum(Stream& stream, Matrix x) override {
    stream.synchronize();
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
      check(MPI_Allreduce(MPI_IN_PLACE, data, int(std::min(kPiece, n - i)), type, op, comm_),
            "MPI_Allreduce");
    }
  }
  void do_all_gather(const void* send, void* receive, int64_t bytes) override {
    if (bytes > std::numeric_limits<int>::max()) throw std::logic_error("all_gather: too large");
    check(MPI_Allgather(send, int(bytes), MPI_BYTE, receive, int(bytes), MPI_BYTE, comm_),
          "MPI_Allgather");
  }
  void do_broadcast(void* data, int64_t bytes, int root) override {
    for (int64_t i = 0; i < bytes; i += kPiece) {
      check(MPI_Bcast(static_cast<char*>(data) + i, int(std::min(kPiece, bytes - i)), MPI_BYTE,
                      root, comm_),
            "MPI_Bcast");
    }
  }
  void do_barrier() override { check(MPI_Barrier(comm_), "MPI_Barrier"); }

  MPI_Comm comm_;
};

}  // namespace

bool started_by_mpi_launcher() {
  // Open MPI; MPICH (hydra) and other PMI launchers; srun with PMIx.
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"}) {
    if (std::getenv(name)) return true;
  }
  return false;
}

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int provided = 0;
  check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    fail_run("MPI", "this MPI gives no thread support, MPI_THREAD_FUNNELED is needed");
  }
}

MpiEnvironment::~MpiEnvironment() {
  if (std::uncaught_exceptions() == 0) MPI_Finalize();
}

std::unique_ptr<Communicator> make_world_communicator() {
  return std::make_unique<MpiCommunicator>(MPI_COMM_WORLD);
}

HostRank host_rank() {
  MPI_Comm host;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type");
  HostRank result;
  MPI_Comm_rank(host, &result.rank);
  MPI_Comm_size(host, &result.size);
  MPI_Comm_free(&host);
  return result;
}

}  // namespace lorashard

// The communicator over MPI, and the life of MPI in this process.
#pragma once

#include <memory>

#include "parallel/collectives.h"

namespace lorashard {

// True if a launcher (mpirun of Open MPI or MPICH, srun) started this process as a rank.
bool started_by_mpi_launcher();

// Starts MPI; finalizes it when destroyed, unless an exception is unwinding: then finalizing would
// wait for ranks that will never come, and abort() must be called instead.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;
};

// Of MPI_COMM_WORLD; and the library's name with its version. REQUIRES: an MpiEnvironment.
int mpi_world_size();
std::string mpi_library();

// How all_reduce_sum travels between ranks of one host. Ranks of several hosts always use messages.
enum class AllReducePath { SharedMemory, Messages };

// All ranks of the job. What is split from it takes the same path. REQUIRES: an MpiEnvironment; the
// ranks make their calls in the same order over all communicators, not only within each.
std::unique_ptr<Communicator> make_world_communicator(
    AllReducePath path = AllReducePath::SharedMemory);

// The communicator's last all-reduce went through shared memory.
bool reduces_in_shared_memory(const Communicator& communicator);

// This rank's number among the ranks of its host, and their count.
struct HostRank {
  int rank = 0, size = 1;
};
HostRank host_rank();

// True on the first rank of this host that asks in this job, false on all others, also after the
// first one is gone: of several that meet the same error, one reports it. True where there is no
// MpiEnvironment, or its MPI gave no shared memory. May be called in a signal handler.
bool first_of_host_to_ask();

}  // namespace lorashard

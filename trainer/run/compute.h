// What a job computes with: the backend, this rank's stream, and the communicator of its memory.
#pragma once

#include <memory>
#include <string>

#include "configs/config.h"
#include "parallel/collectives.h"

namespace lorashard {

// The ranks of the job, and this rank's place among those that share its host.
struct Ranks {
  Communicator& world;
  int host_ranks = 1;
  int host_rank = 0;
};

// Threads of each rank: `requested`, or, if that is 0, this host's processors shared out among its
// ranks (a rank that mpirun bound to some takes those).
int choose_threads(int64_t requested, int host_ranks);

// The backend of every rank, and this rank's device.
struct DeviceChoice {
  Backend backend = Backend::CPU;
  int device = 0;       // of CUDA
  std::string no_cuda;  // why CUDA cannot be had; empty where it is chosen, or was not asked for
};

// AUTO: CUDA if every rank has a device of its own, else the CPU. `where` is the setting, for
// errors (status 2): CUDA wanted of a program without it, or without enough devices. Collective.
DeviceChoice choose_device(RunConfig::Compute::Backend::Value wanted, const std::string& where,
                           const Ranks& ranks);

// The choice and its reason for the log: "backend CPU, since no CUDA device answers here".
std::string backend_line(const DeviceChoice& choice, int ranks);

// Stream and communicator. On CUDA all-reduces run over NCCL. Collective.
class Compute {
 public:
  Compute(const Ranks& ranks, const DeviceChoice& choice, int threads);
  Stream& stream() { return stream_; }
  Communicator& world() { return nccl_ ? *nccl_ : host_; }

 private:
  Stream stream_;
  Communicator& host_;
  std::unique_ptr<Communicator> nccl_;
};

// The most memory that this process has had resident, in MiB; 0 where the system does not say.
// Unlike getrusage's figure it begins anew when a program is started by another.
double peak_rss_mib();

// Bytes of activations that activation checkpointing (`recompute: AUTO`) may fill: 60 % of what the
// host has available, shared among its ranks, or 90 % of what the device has.
size_t activation_budget(const Stream& stream, int host_ranks);

}  // namespace lorashard

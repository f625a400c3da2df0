// One job on one or many ranks: MPI's life, and how errors and signals become exit statuses.
#pragma once

#include <functional>

#include "trainer/session.h"

namespace lorashard {

// Runs body on this rank, under MPI when a launcher started the process and `with_mpi` is set, else
// alone, and returns the exit status. An Error is told once: by rank 0 when all ranks throw it,
// else by the rank that meets it, which then ends the whole job.
int run_job(int* argc, char*** argv, bool with_mpi, const std::function<int(const Ranks&)>& body);

// For commands that one rank does: true on the ranks that must stay out of it. Asks the launcher's
// environment, not MPI.
bool is_extra_rank();

// From now on SIGINT and SIGTERM are remembered instead of ending the process; stop_signal() gives
// the last one, or 0. SIGUSR1, which mpirun and Slurm can pass on to every rank, counts as SIGTERM.
// A second one, if it is not that of the same moment, ends the process at once. A reader of our
// output that goes away (SIGPIPE) does not end the run.
void catch_stop_signals();
int stop_signal();

}  // namespace lorashard

// One job on one or many ranks: MPI's life, and how errors and signals become exit statuses.
#pragma once

#include <functional>

#include "trainer/run/compute.h"

namespace lorashard {

// Runs body on this rank, under MPI when a launcher started the process and `with_mpi` is set, else
// alone, and returns the exit status. An Error is reported once: by rank 0 when all ranks throw it,
// else by the rank that meets it, which then ends the whole job.
int run_job(int* argc, char*** argv, bool with_mpi, const std::function<int(const Ranks&)>& body);

// For commands that one rank does: true on the ranks that must stay out of it. Asks the launcher's
// environment, not MPI.
bool is_extra_rank();

// The stop signals of `train`; call before run_job. A reader of our output that goes away (SIGPIPE)
// does not end the run.
//
// stop_at_once(): until a step is done there is nothing to save. A stop signal ends the process on
// the spot, with one line: status 3, or 130 or 143 where has_checkpoint() says that the run is
// resumed and its folder holds the checkpoint that it would have gone on from.
void stop_at_once(const std::function<bool()>& has_checkpoint);
// stop_after_a_checkpoint(): from now on they are remembered (configs/signals.h), for the run to
// end in order. A second one ends the process at once, with status 3: the checkpoint is not
// written.
void stop_after_a_checkpoint();

}  // namespace lorashard

// The end of the launcher on this host, in a job that ends because a host is gone. Open MPI's
// mpirun (4.1) waits for the daemon of that host, which will never answer, for as long as TCP
// retries: a quarter of an hour or more.
#pragma once

namespace lorashard {

// To be called last, when this process is about to exit with a failure. `host_is_gone`: a whole
// host is silent. If this process runs under mpirun itself, mpirun's connections to other hosts'
// daemons (ssh and the like, its children) are ended first: it takes the daemons for failed and
// ends in order. A child process that stays behind ends the launcher some seconds later if it is
// still there.
void end_launcher(bool host_is_gone);

}  // namespace lorashard

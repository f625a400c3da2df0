// An alternate stack for fault handlers in every thread of the process (configs/signals.h says
// why). Threads are made by OpenMP, MPI and NCCL too, so the program has its own pthread_create,
// which gives the new thread its stack and calls the C library's.
#pragma once

namespace lorashard {

// For the first thread; does nothing where the thread has such a stack (sanitizers give one).
void give_this_thread_a_fault_stack();

}  // namespace lorashard

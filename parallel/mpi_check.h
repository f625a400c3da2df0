// Turns MPI's error codes into errors. For the sources of parallel/ that call MPI.
#pragma once

#include <mpi.h>

#include <string>

#include "configs/error.h"

namespace lorashard {

// Throws an Error that names rank and call unless code is MPI_SUCCESS.
inline void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0, rank = -1;
  MPI_Error_string(code, text, &length);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  fail_run("rank " + std::to_string(rank), std::string(call) + ": " + std::string(text, length));
}

}  // namespace lorashard

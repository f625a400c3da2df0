#!/usr/bin/env bash
# Installs the packages, builds, and runs every test; where the CUDA toolkit's headers are, also the
# CUDA backend's on the simulator (build folder BUILD-sim), its kernels under sanitizers too.
#   tests/run.sh [ARGUMENTS OF ctest]          for example: tests/run.sh -R checkpoint
# LORASHARD_WERROR=ON makes warnings errors. BUILD names the build folder (default: build).
set -euo pipefail
cd "$(dirname "$0")/.."

# Ranks run as whoever calls this, and on as few cores as there are.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none  # else it warns in containers

build=${BUILD:-build}
bash launch/install_packages.sh --tests
werror=${LORASHARD_WERROR:-OFF}
cmake --preset cpu -B "$build" -DLORASHARD_TESTS=ON -DLORASHARD_WERROR="$werror"
cmake --build "$build"

toolkit=no
for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /opt/cuda /usr; do
  if [ -n "$root" ] && [ -e "$root/include/cublasLt.h" ]; then toolkit=yes; fi
done
if [ $toolkit = yes ]; then
  cmake --preset sim -B "$build-sim" -DLORASHARD_WERROR="$werror"
  cmake --build "$build-sim" --target cuda_tests
  cmake --preset sim-asan -B "$build-sim-asan" -DLORASHARD_WERROR="$werror"
  cmake --build "$build-sim-asan" --target test_cuda test_cudasim
else
  echo "No CUDA toolkit here: the CUDA backend is neither built nor tested."
fi

# Tests write to memory where there is room: a disk whose fsync stalls lets whole-program tests run out of time.
if [ -z "${TMPDIR:-}" ] && [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] && [ -w /dev/shm ] &&
  [ "$(df --output=avail -m /dev/shm | tail -n 1)" -ge 4096 ]; then
  export TMPDIR=/dev/shm
fi

# All of them before the verdict.
status=0
ctest --test-dir "$build" --output-on-failure -j2 "$@" </dev/null || status=$?
if [ $toolkit = yes ]; then
  echo "The CUDA backend on the simulator:"
  ctest --test-dir "$build-sim" --output-on-failure -j2 -R '^(cuda|cudasim)\.' "$@" </dev/null || status=$?
  echo "The CUDA backend on the simulator, under address and undefined-behaviour sanitizers (one order of threads):"
  ctest --test-dir "$build-sim-asan" --output-on-failure -j2 -R '^(cuda|cudasim)\.' \
    -E '^cuda\.(trainer|launch|selftest|Nccl)|NOT_BUILT|Reverse|Random|CudnnPlans' "$@" </dev/null || status=$?
fi
exit $status

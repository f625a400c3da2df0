#!/usr/bin/env bash
# Installs the packages, builds, and runs every test.
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
cmake --preset cpu -B "$build" -DLORASHARD_TESTS=ON -DLORASHARD_WERROR="${LORASHARD_WERROR:-OFF}"
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure -j2 "$@" </dev/null

#!/usr/bin/env bash
# Installs the Debian packages that lorashard is built from. Works as root, and as a user with sudo;
# says what it installs; does nothing where everything is there already.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/install_packages.sh [--tests] [--bench] [--mpich] [--print]
  --tests  also what the tests and the format check need
  --bench  also what the benchmarks need
  --mpich  MPICH in place of Open MPI
  --print  print the list of packages and install nothing
TEXT
}

packages=(g++ cmake ninja-build pkg-config
  protobuf-compiler libprotobuf-dev libdnnl-dev libcli11-dev nlohmann-json3-dev libfmt-dev
  libpcre2-dev libicu-dev libssl-dev)
mpi=(libopenmpi-dev openmpi-bin)
print=no
for option in "$@"; do
  case $option in
    --tests) packages+=(ccache libgtest-dev libgmock-dev clang-format xz-utils libboost-context-dev) ;;
    --bench) packages+=(libbenchmark-dev) ;;
    --mpich) mpi=(libmpich-dev mpich) ;;
    --print) print=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
packages+=("${mpi[@]}")

if [ "$print" = yes ]; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "All ${#packages[@]} Debian packages are installed already."
  exit 0
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "error: install_packages.sh: these Debian packages are missing and you are neither root nor have sudo: ${missing[*]}" >&2
    exit 2
  fi
  root=(sudo)
fi

apt() {
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

echo "Installing ${#missing[@]} Debian packages with what they depend on: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The package lists are fetched where they lack a package, and where they prove out of date.
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then
  apt update >"$log" 2>&1 || { cat "$log" >&2; exit 3; }
fi
if ! apt install --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
  { apt update && apt install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
    cat "$log" >&2
    echo "error: install_packages.sh: apt-get could not install the packages (its output stands above)" >&2
    exit 3
  }
fi
echo "Installed."

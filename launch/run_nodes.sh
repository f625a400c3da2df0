#!/usr/bin/env bash
# lorashard over several hosts: one rank for each slot of a host file, with a stop that leaves time for
# a checkpoint.
#
#   launch/run_nodes.sh HOSTFILE train CONFIG [--resume] [--set path=value]...
#
# HOSTFILE has a line "NAME slots=COUNT" for each host; "#" begins a comment. Every host reaches the
# program, the model and the data under the same paths; the run folder is needed on the first host
# only. LORASHARD names the program (default: build/launch/lorashard beside this script).
# SIGTERM and SIGINT end the run after a checkpoint, with status 143 and 130.
set -euo pipefail

fail() {
  echo "error: $1: $2" >&2
  exit 2
}

[ $# -ge 2 ] || fail "command line" "usage: launch/run_nodes.sh HOSTFILE train CONFIG [OPTIONS]"
hostfile=$1
shift
[ -f "$hostfile" ] && [ -r "$hostfile" ] || fail "$hostfile" "is no readable file; give a host file"
program=${LORASHARD:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/launch/lorashard}
[ -x "$program" ] || fail "$program" "is no program; build it (cmake --preset cpu && cmake --build build) or set LORASHARD"
command -v mpirun >/dev/null || fail "mpirun" "is not installed; launch/install_packages.sh installs it"

ranks=0
number=0
declare -A seen=()
while IFS= read -r line || [ -n "$line" ]; do
  number=$((number + 1))
  line=${line%%#*}
  [ -n "${line//[[:space:]]/}" ] || continue
  if ! [[ $line =~ ^[[:space:]]*([A-Za-z0-9._:-]+)[[:space:]]+slots=([1-9][0-9]{0,4})[[:space:]]*$ ]]; then
    fail "$hostfile:$number" "is no host, expected a line like \"node1 slots=8\""
  fi
  host=${BASH_REMATCH[1]}
  [ -z "${seen[$host]:-}" ] || fail "$hostfile:$number" "names $host again, expected each host once with all its slots"
  seen[$host]=1
  ranks=$((ranks + BASH_REMATCH[2]))
done <"$hostfile"
[ $ranks -gt 0 ] || fail "$hostfile" "names no host, expected lines like \"node1 slots=8\""

stop=""
# A rank takes SIGUSR1, which mpirun passes on to all hosts, as SIGTERM. (mpirun's own way to end, on
# SIGTERM, leaves its ranks one second, too little for a step and a checkpoint.)
if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
  mpirun --hostfile "$hostfile" -n $ranks "$program" "$@" &
else
  clean=$(mktemp)
  trap 'rm -f "$clean"' EXIT
  sed -E 's/#.*//; s/[[:space:]]+slots=/:/' "$hostfile" | grep -v '^[[:space:]]*$' >"$clean"
  mpirun -f "$clean" -n $ranks "$program" "$@" &
fi
job=$!
trap 'stop=143; kill -USR1 $job 2>/dev/null' TERM
trap 'stop=130; kill -USR1 $job 2>/dev/null' INT
status=0
wait $job || status=$?
while kill -0 $job 2>/dev/null; do wait $job || status=$?; done
# mpirun's own status after a signal says nothing about the run, so ours does.
exit "${stop:-$status}"

#!/usr/bin/env bash
# lorashard under mpirun, with a stop that leaves time for a checkpoint: on this machine, or over
# several hosts with one rank for each slot of a host file.
#
#   launch/run_nodes.sh -n RANKS train CONFIG [--resume] [--set path=value]...
#   launch/run_nodes.sh HOSTFILE train CONFIG [--resume] [--set path=value]...
#
# HOSTFILE has a line "NAME slots=COUNT" for each host; "#" begins a comment. Every host reaches the
# program, the model and the data under the same paths. The run folder is needed on one host only, that
# of rank 0, which writes: this host where it is in HOSTFILE (Open MPI begins there), else HOSTFILE's
# first. LORASHARD names the program (default: build/launch/lorashard beside this script).
# SIGTERM, SIGHUP and SIGINT (Ctrl-C) end the run after a checkpoint, with status 143 and 130; a second
# one, some seconds later, ends it at once. The status is always the job's: 130 and 143 mean that the
# checkpoint is on disk, 0 that the run was finished before it noticed. A host that vanishes ends the
# job with status 3 after parallel.timeout_s.
set -euo pipefail

fail() {
  echo "error: $1: $2" >&2
  exit 2
}

[ $# -ge 2 ] || fail "command line" "usage: launch/run_nodes.sh HOSTFILE|-n RANKS train CONFIG [OPTIONS]"
hostfile="" ranks=0
if [ "$1" = -n ]; then
  [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || fail "command line" "-n $2 is no number of ranks, expected 1 to 99999"
  [ $# -ge 3 ] || fail "command line" "nothing to run, expected launch/run_nodes.sh -n $2 train CONFIG"
  ranks=$2
  shift 2
else
  hostfile=$1
  shift
  [ -f "$hostfile" ] && [ -r "$hostfile" ] || fail "$hostfile" "is no readable file; give a host file"
fi
program=${LORASHARD:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/launch/lorashard}
[ -x "$program" ] || fail "$program" "is no program; build it (cmake --preset cpu && cmake --build build) or set LORASHARD"
command -v mpirun >/dev/null || fail "mpirun" "is not installed; launch/install_packages.sh installs it"

if [ -n "$hostfile" ]; then
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
  [ "$ranks" -gt 0 ] || fail "$hostfile" "names no host, expected lines like \"node1 slots=8\""
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
hosts=()
if [ -n "$hostfile" ]; then
  if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
    hosts=(--hostfile "$hostfile")
  else
    clean=$scratch/hosts
    sed -E 's/#.*//; s/[[:space:]]+slots=/:/' "$hostfile" | grep -v '^[[:space:]]*$' >"$clean"
    hosts=(-f "$clean")
  fi
fi

# A rank takes SIGUSR1, which mpirun passes on to all hosts, as SIGTERM. mpirun's own way to end, on
# SIGTERM and on a terminal's Ctrl-C, leaves its ranks a second or two, too little for a step and a
# checkpoint; in a session of its own the terminal does not reach it.
stop="" again="" job=""
pass_on() {
  stop=$1 again=yes
  [ -z "$job" ] || kill -USR1 "$job" 2>/dev/null || true
}
trap 'pass_on 130' INT
trap 'pass_on 143' TERM HUP
# mpirun may wait for the daemon of a host that is gone, for a quarter of an hour: when a rank has said
# that it waited in vain, the job has some seconds to end by itself.
relay_errors() {
  local line told=""
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\n' "$line" >&2
    if [ -z "$told" ] && [[ $line =~ ^error:\ rank\ [0-9]+\ on\ host\ .*:\ waited\ [0-9]+\ s\ in\  ]]; then
      told=yes
      end_in_vain <&- >/dev/null 2>&1 &
    fi
  done
}
end_in_vain() {
  local mpirun
  mpirun=$(cat "$scratch/pid") || return 0
  for wait_s in 7 0.5 0.5; do
    sleep $wait_s
    kill -TERM "$mpirun" 2>/dev/null || return 0
  done
  sleep 0.5
  kill -KILL "$mpirun" 2>/dev/null || true
}
mkfifo "$scratch/errors"
# Signals are for the job; what it says until its end is to be heard.
(trap '' INT TERM HUP; relay_errors <"$scratch/errors") &
relay=$!
(
  echo "$BASHPID" >"$scratch/pid"
  exec setsid mpirun "${hosts[@]}" -n "$ranks" "$program" "$@"
) 2>"$scratch/errors" &
job=$!
[ -z "$stop" ] || pass_on "$stop"
# A trap ends `wait` before the job has ended: only a wait that no trap came into has its status.
status=0
while true; do
  again=""
  code=0
  wait "$job" || code=$?
  [ "$code" -eq 127 ] || status=$code
  [ -n "$again" ] || break
done
# The job knows of SIGTERM only; whoever pressed Ctrl-C expects SIGINT's status for the same end.
if [ "$stop" = 130 ] && [ "$status" -eq 143 ]; then status=130; fi
# mpirun's own statuses: a rank or mpirun itself was killed, a host could not be reached.
case $status in 0 | 2 | 3 | 130 | 143) ;; *) status=3 ;; esac
# Until its last line is out, unless something still holds the job's stderr.
for _ in {1..20}; do
  kill -0 $relay 2>/dev/null || break
  sleep 0.1
done
exit "$status"

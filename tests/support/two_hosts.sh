#!/usr/bin/env bash
# Two hosts on one machine, as network namespaces joined by a cable, with names and mounts of their own.
# Needs root and iproute2.
#
#   two_hosts.sh up NAME               hosts NAMEa (10.77.0.1) and NAMEb (10.77.0.2)
#   two_hosts.sh down NAME
#   two_hosts.sh cut NAME              pulls the cable
#   two_hosts.sh on NAME a|b COMMAND…  runs it there
#   two_hosts.sh agent NAME ADDRESS COMMAND…   the same, as mpirun calls ssh; on host b, the file
#                                      $STALE_FILE shows what is in $STALE_COPY, if they are set
set -euo pipefail
what=$1 name=$2
shift 2
case $what in
  up)
    ip netns add "${name}a"
    ip netns add "${name}b"
    ip link add va netns "${name}a" type veth peer name vb netns "${name}b"
    for end in a:1 b:2; do
      host=${end%:*}
      ip -n "$name$host" addr add "10.77.0.${end#*:}/24" dev "v$host"
      ip -n "$name$host" link set "v$host" up
      ip -n "$name$host" link set lo up
    done
    ;;
  down)
    for host in a b; do
      pids=$(ip netns pids "$name$host" 2>/dev/null) || continue
      [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
      ip netns del "$name$host"
    done
    ;;
  cut) ip -n "${name}b" link set vb down ;;
  on)
    host=$1
    shift
    exec ip netns exec "$name$host" unshare --uts sh -c 'hostname "node$0"; exec "$@"' "$host" "$@"
    ;;
  agent)
    case $1 in 10.77.0.1) host=a ;; *) host=b ;; esac
    shift
    stale=""
    if [ "$host" = b ] && [ -n "${STALE_FILE:-}" ]; then stale="mount --bind '$STALE_COPY' '$STALE_FILE';"; fi
    exec ip netns exec "$name$host" unshare --uts --mount sh -c "hostname node$host; $stale $*"
    ;;
esac

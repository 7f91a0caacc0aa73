#!/usr/bin/env bash
# Mixed load for a while: bulk both ways, short connections, small requests, UDP flows that come and go. Prints memory and
# descriptors of the proxy every ten seconds; after warm-up neither may grow.
#   RIG=DIR [BIN=target/dist/viaduct] benches/soak.sh [SECONDS]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export BIN=${BIN:-$here/../target/dist/viaduct} RUN=${RUN:-$(mktemp -d)}
seconds=${1:-600}
. "${RIG:?the directory of the namespace rig}/lib.sh"
. "$here/viaduct.peer"
mkdir -p "$RUN"
PROXY_PID=0 SERVER_PID=
cleanup() {
  local pids; pids=$(jobs -p); [ -n "$pids" ] && kill $pids 2>/dev/null
  [ "$PROXY_PID" -gt 0 ] && stop_node
  [ -n "$SERVER_PID" ] && kill "$SERVER_PID" 2>/dev/null
  net_down
}
trap cleanup EXIT
trap 'exit 130' INT TERM
net_up
nsenter --net=/run/netns/lbb "$LBBENCH" serve --target 0.0.0.0:8080 --threads 2 --sources 10.1.2.2,10.1.2.3 & SERVER_PID=$!
sleep 0.3
rules_clear; start
wait_ready "$VIP" || { echo "not ready" >&2; exit 1; }
again() { # one kind of load, again and again
  while :; do in_c timeout 60 "$LBBENCH" "$@" --target "$VIP" --secs 5 --warm 0.1 >>"$RUN/soak.log" 2>&1 || echo "failed: $*"; done
}
again bulk --conns 4 &
again bulk --conns 4 --down &
again connrate --conns 16 --sources "$SOURCES" &
again rr --conns 32 --size 64 &
again udp --flows 200 --outstanding 64 --size 64 &
begun=$SECONDS
while [ $((SECONDS - begun)) -lt "$seconds" ]; do
  sleep 10
  rss=$(awk '/VmRSS/ {print $2}' "/proc/$PROXY_PID/status") || { echo "the proxy is gone" >&2; exit 1; }
  echo "$((SECONDS - begun)) s: $rss KiB resident, $(ls "/proc/$PROXY_PID/fd" | wc -l) descriptors"
done
in_n curl -s 127.0.0.1:10249/metrics | grep -E '^viaduct_(tcp|udp)_(connections|flows|datagrams|bytes|dropped|refused).* '

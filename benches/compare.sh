#!/usr/bin/env bash
# One full run against other data paths: interleaved rounds, ratios, Markdown on standard output.
#   RIG=DIR [BIN=target/dist/viaduct] [ROUNDS=5] [SECS=1.0] benches/compare.sh >tables.md
# RIG is the directory of the namespace rig (compare.sh, lib.sh, lbbench). Needs root, haproxy, nginx with its stream module, a
# quiet machine and about 17 minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rig=${RIG:?the directory of the namespace rig}
export BIN=${BIN:-$here/../target/dist/viaduct} RUN=${RUN:-$(mktemp -d)}
rounds=${ROUNDS:-5} secs=${SECS:-1.0} out=$RUN/results.tsv
mkdir -p "$RUN"
run() { # ROUNDS WORKLOADS PEER...
  "$rig/compare.sh" -k -r "$1" -s "$secs" -w "$2" -o "$out" "${@:3}" "$here/viaduct.peer" >/dev/null
}
: >"$out"
run "$rounds" W2,W6,W3a direct ipt-dnat haproxy-plain nginx
run "$rounds" W1a,W1b,W1d,W1e direct ipt-dnat haproxy-splice
run "$rounds" W4b,W4c direct ipt-dnat nginx
run 3 W5 haproxy-plain nginx
run 3 W4a,W3b,W2a direct ipt-dnat haproxy-plain nginx
"${LB_TARGET:-/tmp/lbbench-target}/release/lbbench" report "$out"

#!/bin/sh
# A private swarm in four commands: a key without which no peer can join, one node that others join through, a node
# that joins, and an HTTP API with a key for users without a node. Here all of it runs on this machine and ends with the
# script. On three machines omit the ports and data directories, replace 127.0.0.1 by 0.0.0.0, and use the first node's
# real address.
#
#     examples/private_swarm.sh            (MODEL=model.gguf: another model than the demo's small one)
set -eu
model=${MODEL:-smollm2}
cd "$(dirname "$0")/.."
mycelia=".venv/bin/mycelia --isolated"  # (your configuration is for your own node)
where=$(mktemp -d)
pids=
leave() {
    trap - EXIT INT TERM
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$where"
}
trap leave EXIT
trap 'exit 130' INT TERM

# Waits until a node serves, and shows its log if it ends instead.
wait_ready() { # NAME PID
    until [ -f "$where/$1/node.json" ]; do
        kill -0 "$2" 2>/dev/null || { cat "$where/$1.log" >&2; exit 1; }
        sleep 0.2
    done
}

# 0. The key of the swarm. Any node with this file can join, so copy it only to your own machines.
umask 077
{ printf '/key/swarm/psk/1.0.0/\n/base16/\n'; od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; echo; } >"$where/swarm.key"

# 1. The first node. It has no bootstrap peers and waits for others.
touch "$where/nobody"
$mycelia node --model "$model" --threads 1 --data-dir "$where/first" --bootstrap "$where/nobody" \
    --swarm-key "$where/swarm.key" --listen /ip4/127.0.0.1/tcp/0 --api-port 0 2>"$where/first.log" &
pids="$!"
wait_ready first "$!"
address=$($mycelia id --data-dir "$where/first" | sed -n 2p)
echo "the first node: $address"

# 2. A second node, which knows only the first node's address, with an HTTP API that needs a key.
od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$where/keys"
$mycelia node --model "$model" --threads 1 --data-dir "$where/second" --bootstrap "$address" \
    --swarm-key "$where/swarm.key" --listen /ip4/127.0.0.1/tcp/0 --api-port 0 --api-key-file "$where/keys" 2>"$where/second.log" &
pids="$pids $!"
wait_ready second "$!"
until $mycelia peers --data-dir "$where/second" | grep -q live; do sleep 0.2; done
$mycelia peers --data-dir "$where/second"

# 3. A user without a node asks through the API, and another as a light client through the first node.
url=$(sed -n 's/.*"api_url": *"\([^"]*\)".*/\1/p' "$where/second/node.json")
echo "without the key: $(curl -s -o /dev/null -w '%{http_code}' "$url/v1/models")"
echo "with the key:"
curl -sf "$url/v1/models" -H "Authorization: Bearer $(cat "$where/keys")"
echo
echo "a light client with the swarm's key:"
$mycelia ask --data-dir "$where/nobody-here" --bootstrap "$address" --swarm-key "$where/swarm.key" --max-tokens 16 \
    "Say hello."
echo "and one without it:"
$mycelia ask --data-dir "$where/nobody-here" --bootstrap "$address" "Say hello." 2>&1 || true

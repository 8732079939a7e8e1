#!/bin/sh
# A private swarm: one node makes it and invites, another joins with one word, a stranger gets nothing. Here all of it
# runs on this machine and ends with the script. On two machines omit the ports, data directories and listen addresses.
#
#     examples/private_swarm.sh            (MODEL=model.gguf: another model than the demo's small one)
set -eu
model=${MODEL:-smollm2}
cd "$(dirname "$0")/.."
mycelia="${MYCELIA:-.venv/bin/mycelia} --isolated"  # (your configuration is for your own node)
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
touch "$where/nobody"  # (no nodes of the open network)
here="--threads 1 --listen /ip4/127.0.0.1/tcp/0 --api-port 0 --bootstrap $where/nobody"

# Waits until a node serves, and shows its log if it ends instead.
wait_ready() { # NAME PID
    until [ -f "$where/$1/node.json" ]; do
        kill -0 "$2" 2>/dev/null || { cat "$where/$1.log" >&2; exit 1; }
        sleep 0.2
    done
}

# 1. The first node makes the swarm and runs in it.
$mycelia swarm create home --model "$model" --data-dir "$where/first"
$mycelia node --swarm home --data-dir "$where/first" $here 2>"$where/first.log" &
pids="$!"
wait_ready first "$!"

# 2. It invites one node. Send this word as you would send a password.
invitation=$($mycelia invite home --data-dir "$where/first")
echo "$invitation"

# 3. On the other machine this is all: it joins, and runs the node.
$mycelia join "$invitation" --name second --data-dir "$where/second" $here 2>"$where/second.log" &
pids="$pids $!"
wait_ready second "$!"
until $mycelia peers --data-dir "$where/second" | grep -q live; do sleep 0.2; done
$mycelia swarm members home --data-dir "$where/first"

# 4. Ask from either.
$mycelia ask --data-dir "$where/second" --max-tokens 16 "Say hello."

# 5. The invitation is used up, and a stranger cannot even speak to the port.
$mycelia join "$invitation" --no-start --data-dir "$where/third" 2>&1 || true
address=$($mycelia id --data-dir "$where/first" | sed -n 2p)
$mycelia ask --data-dir "$where/stranger" --bootstrap "$address" "Say hello." 2>&1 || true

# 6. The second node is removed: it is disconnected, and the swarm has a new key.
$mycelia swarm revoke second --data-dir "$where/first"
while $mycelia peers --data-dir "$where/first" | grep -q live; do sleep 0.2; done
$mycelia swarm members home --data-dir "$where/first"

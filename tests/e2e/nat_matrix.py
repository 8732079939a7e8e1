"""Which homes meet, how soon and by which way: two peers in the open, and one home behind a router of each kind.

    python -m tests.e2e.nat_matrix [KIND ...]      (root, iproute2 and nftables; about two minutes)

Prints for every pair the seconds from the later node's "ready" until both know each other, and whether they are
connected directly (D) or through a relay (R); then asks at every home for what another one has computed.
"""

import json
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import trio

from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm, open_local_swarm
from tests.e2e.internet import PEERS, PORT, Internet, Kind, inside, public_address, public_address_v6
from tests.e2e.miniupnpd import is_installed

BAR_S = 10.0
PATIENCE_S = 60.0
PUNCHABLE = {Kind.RESTRICTED, Kind.DOUBLE}
"""Kinds between which both sides can dial at the same moment."""
OPEN = {"P", "Q", Kind.FORWARDED, Kind.UPNP, Kind.CONE}
"""Nodes that others can dial."""


def addresses(number: int) -> list[str]:
    hosts = [f"/ip4/{public_address(number)}", f"/ip6/{public_address_v6(number)}"]
    return [f"{host}/tcp/{port}" for host in hosts for port in (PORT, 443)]


async def started(swarm: LocalSwarm, internet: Internet, kinds: list[Kind]) -> dict[str, tuple[LocalNode, str]]:
    """The nodes by name, each with its namespace."""
    nodes: dict[str, tuple[LocalNode, str]] = {}
    bootstrap: list[str] = []
    for name, number in zip("PQ", PEERS, strict=True):
        listen = [word for address in addresses(number) for word in ("--listen", address)]
        node = await swarm.start(name, bootstrap, ["--model", "fake", *listen], inside(internet.namespace))
        peer = (await node.wait_ready()).peer
        bootstrap += [f"{address}/p2p/{peer}" for address in addresses(number)] if name == "P" else []
        nodes[name] = node, internet.namespace
    for number, kind in enumerate(kinds):
        home, name = internet.home(kind), f"{kind}{'' if kinds.count(kind) == 1 else f' {number + 1}'}"
        listen = [word for host in ("/ip4/0.0.0.0", "/ip6/::") for word in ("--listen", f"{host}/tcp/{PORT}")]
        node = await swarm.start(name, bootstrap, ["--model", "fake", *listen], inside(home.namespace))
        await node.wait_ready()
        nodes[name] = node, home.namespace
    return nodes


async def peers_at(node: LocalNode, namespace: str) -> dict[str, str]:
    """Peer id -> the address of the connection."""
    command = [*inside(namespace), "peers", "--json", "--data-dir", str(node.data_dir)]
    done = await trio.run_process(command, capture_stdout=True)
    return {row["peer"]: row["address"] for row in json.loads(done.stdout)}


def ready_at(node: LocalNode) -> float:
    return next(at(event) for event in node.events if event.get("event") == "ready")


def at(event: dict[str, object]) -> float:
    return datetime.fromisoformat(str(event["timestamp"])).timestamp()


def joined_at(node: LocalNode, peer: str, since: float) -> float | None:
    found = (at(e) for e in node.events if e.get("event") == "node_joined" and e["peer"] == peer)
    return next((one for one in found if one >= since), None)


def can_be_direct(one: str, other: str) -> bool:
    """Whether there is a way without a relay: one side can be dialled, or both dial at once."""
    one, other = one.partition(" ")[0], other.partition(" ")[0]
    if Kind.IPV6 in (one, other):
        return bool({"P", "Q"} & {one, other}) or one == other
    if Kind.ONLY_443 in (one, other):
        return bool({"P", "Q"} & {one, other})
    return bool(OPEN & {one, other}) or {one, other} <= PUNCHABLE


async def main(words: list[str]) -> int:
    kinds = [Kind(word) for word in words] or [kind for kind in Kind if kind is not Kind.UPNP or is_installed()]
    internet = Internet(f"mx{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory(prefix="mycelia-nat-") as root:
            async with open_local_swarm(Path(root)) as swarm:
                return await measured(await started(swarm, internet, kinds))
    finally:
        internet.remove()


async def measured(nodes: dict[str, tuple[LocalNode, str]]) -> int:
    names = list(nodes)
    peers = {name: (await node.wait_ready()).peer for name, (node, _) in nodes.items()}
    began = {name: ready_at(node) for name, (node, _) in nodes.items()}

    def met_s(one: str, other: str) -> float | None:
        since = max(began[one], began[other])
        times = [joined_at(nodes[a][0], peers[b], 0.0) for a, b in ((one, other), (other, one))]
        return None if None in times else max(max(filter(None, times)) - since, 0.0)

    pairs = [(one, other) for number, one in enumerate(names) for other in names[:number]]
    with trio.move_on_after(PATIENCE_S):
        while any(met_s(*pair) is None for pair in pairs):  # noqa: ASYNC110  the logs of many nodes
            await trio.sleep(0.5)
    await trio.sleep(float(os.environ.get("UPGRADE_S", "5")))  # (what is relayed may become direct)
    views = {name: await peers_at(*nodes[name]) for name in names}
    failed = 0
    print(" " * 13 + "".join(f"{name:>13}" for name in names))
    for one in names:
        cells = []
        for other in names[: names.index(one)]:
            seconds, address = met_s(one, other), views[one].get(peers[other])
            is_relayed = address is None or "/p2p-circuit" in address
            is_good = seconds is not None and seconds <= BAR_S and not (is_relayed and can_be_direct(one, other))
            failed += not is_good
            way = "-" if address is None else "R" if is_relayed else "D"
            cells.append(f"{way} {'never' if seconds is None else f'{seconds:.1f}'}{'' if is_good else ' !'}")
        print(f"{one:>13}" + "".join(f"{cell:>13}" for cell in cells))
    print(f"{failed} of {len(pairs)} pairs fail; {await num_answered(nodes)} of {len(names)} asks are answered")
    return bool(failed)


async def num_answered(nodes: dict[str, tuple[LocalNode, str]]) -> int:
    count = 0
    for number, (name, (node, namespace)) in enumerate(nodes.items()):
        prompt = f"{number} is asked for at home {name}. " * 40
        command = [*inside(namespace), "ask", "--json", "--data-dir", str(node.data_dir), prompt]
        done = await trio.run_process(command, capture_stdout=True, check=False)
        count += done.returncode == 0
    return count


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1:]))

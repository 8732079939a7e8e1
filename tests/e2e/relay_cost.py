"""What a relay costs a prompt: the time to the first token through one, beside a direct connection.

    python -m tests.e2e.relay_cost [PROMPTS]

A client and a node behind symmetric routers, which no hole punching opens, and a node behind a forwarded port, in
network namespaces with the kernel's own NAT. The client asks both nodes in turn, each for a prompt that the node has
cached, so the engine computes next to nothing.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

import structlog
import trio
from libp2p.abc import INetConn

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.local_swarm.processes import open_local_swarm
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.node.network.network import NetworkSettings
from mycelia.node.requests.entry import GENERATE
from mycelia.proto.cache.sharing import EVERYBODY
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Final, Generate, Sampling, Tokens
from tests.e2e.internet import PORT, Internet, Kind, inside, public_address, run_inside

NUM_PROMPTS, NUM_BEFORE = 100, 8
PROMPT = [256, *b"the quick brown fox " * 30]
SETTLE_S = 10.0
RELAYED, DIRECT = "relayed", "direct"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


async def first_token_ms(network: Libp2pNetwork, peer: bytes) -> float:
    request = Generate(
        request_id=os.urandom(16),
        namespace=FakeEngine().info.namespace,
        prompt=pack_tokens(PROMPT),
        sampling=Sampling(max_tokens=2),
        promised_tokens=0,
        scope=EVERYBODY,
    )
    began, first = trio.current_time(), 0.0
    stream = await network.open(peer, GENERATE, waits=False)
    await stream.send(request)
    while not isinstance(frame := await stream.receive(), Final):
        if isinstance(frame, Tokens):
            first = first or trio.current_time() - began
    await stream.aclose()
    return 1000 * first


async def round_trip_ms(connection: INetConn) -> float:
    muxer, answered, took = connection.muxed_conn, trio.Event(), list[float]()
    assert isinstance(muxer, YamuxConnection)

    def note(seconds: float) -> None:
        took.append(1000 * seconds)
        answered.set()

    muxer.send_ping(note)
    await answered.wait()
    return took[0]


async def measure(addresses: dict[str, str], num_prompts: int) -> None:
    async with open_network(NetworkSettings(identity=new_identity(), overlay=False)) as network:
        peers = {kind: await network.connect(address) for kind, address in addresses.items()}
        for peer in peers.values():
            for _ in range(NUM_BEFORE):
                await first_token_ms(network, peer)
        tokens = {kind: list[float]() for kind in peers}
        pings = {kind: list[float]() for kind in peers}
        for _ in range(num_prompts):
            for kind, peer in peers.items():
                tokens[kind].append(await first_token_ms(network, peer))
                pings[kind].append(await round_trip_ms(network.table.connections(peer)[0]))
                path = network.path(peer)
                assert path is not None and path.kind == kind
    for kind in peers:
        p50, p95 = statistics.median(tokens[kind]), statistics.quantiles(tokens[kind], n=20)[-1]
        say(f"{kind:8} TTFT p50 {p50:.2f} p95 {p95:.2f} ms, round trip {statistics.median(pings[kind]):.2f} ms")
    say(f"added    TTFT p50 {statistics.median(tokens[RELAYED]) - statistics.median(tokens[DIRECT]):.2f} ms")


async def main(internet: Internet, root: Path, num_prompts: int) -> None:
    me, hidden, forwarded = (internet.home(kind) for kind in (Kind.SYMMETRIC, Kind.SYMMETRIC, Kind.FORWARDED))
    options = ["--model", "fake", "--no-mdns", "--listen"]
    async with open_local_swarm(root) as swarm:
        where = [*options, f"/ip4/{public_address(1)}/tcp/{PORT}"]
        at = await (await swarm.start("relay", options=where, command=inside(internet.namespace))).address()
        found: dict[str, str] = {}
        for kind, home in ((RELAYED, hidden), (DIRECT, forwarded)):
            where = [*options, f"/ip4/0.0.0.0/tcp/{PORT}"]
            node = await swarm.start(kind, [at], where, command=inside(home.namespace))
            peer = (await node.wait_ready()).peer
            if kind == RELAYED:
                await node.wait_event(lambda event: event.get("event") == "relays_changed")
            head = f"{at}/p2p-circuit" if kind == RELAYED else f"/ip4/{home.public}/tcp/{PORT}"
            found[kind] = f"{head}/p2p/{peer}"
        await trio.sleep(SETTLE_S)
        await trio.to_thread.run_sync(lambda: run_inside(me.namespace, lambda: measure(found, num_prompts)))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    made = Internet(f"rc{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            trio.run(main, made, Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else NUM_PROMPTS)
    finally:
        made.remove()

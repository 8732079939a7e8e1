"""The attacked nodes, and the honest peers and clients on 127.0.0.1 that use them."""

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil
import trio

from mycelia.bench.asking import in_time
from mycelia.bench.attacks.asking import Answer, answer_of, ask_for, random_words
from mycelia.bench.attacks.strangers import Plan
from mycelia.node.app import Node
from mycelia.node.client.local import fetch_state
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import Network, NetworkError, NetworkSettings
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling

START_DEADLINE_S = 120.0
PATIENCE_S = 30.0
"""After this time an honest peer counts as kept out, and gets this as its time."""
LOOK_EVERY_S = 0.005
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MIB = 2**20


class Victims:
    """Node processes; all others found the first one. Made by ``open_victims``."""

    def __init__(self, nodes: list[LocalNode], addresses: list[str], namespaces: list[bytes]) -> None:
        self.nodes = nodes
        self.addresses = addresses
        self.namespaces = namespaces

    async def api_url(self, number: int = 0) -> str:
        return (await self.nodes[number].wait_ready()).api_url

    async def plan(self, kind: str, model: str = "", everyone: bool = False) -> Plan:
        """The plan of an attack against the first node, or against ``everyone``."""
        addresses = self.addresses if everyone else self.addresses[:1]
        port = int((await self.api_url()).rpartition(":")[2])
        return Plan(kind, addresses, self.namespaces[-1], port, model)

    def resident_mib(self) -> float:
        """Memory of the first node, without its engine."""
        return float(psutil.Process(self.nodes[0].process.pid).memory_info().rss) / MIB


@asynccontextmanager
async def open_victims(models: Sequence[str], options: Sequence[str] = (), key: str = "") -> AsyncIterator[Victims]:
    """A node for each model; all of them know each other. key: their API key; empty: none. Raises LocalError when they
    do not start."""
    with TemporaryDirectory(prefix="mycelia-attacks-", ignore_cleanup_errors=True) as root:
        if key:
            await trio.Path(root, "keys").write_text(f"{key}\n")
            options = [*options, "--api-key-file", str(Path(root, "keys"))]
        async with open_local_swarm(Path(root)) as swarm:
            with in_time(START_DEADLINE_S, "the attacked nodes did not come up in time"):
                nodes: list[LocalNode] = []
                for number, model in enumerate(models):
                    bootstrap = [await nodes[0].address()] if nodes else []
                    nodes.append(await swarm.start(f"node-{number + 1}", bootstrap, ["--model", model, *options]))
                states = [await fetch_state(replace(await node.wait_ready(), api_key=key)) for node in nodes]
                for node in nodes:
                    await node.wait_peers(len(nodes) - 1)
            addresses = [await node.address() for node in nodes]
            yield Victims(nodes, addresses, [bytes.fromhex(state.namespace) for state in states])


@asynccontextmanager
async def attacked(plan: Plan | None) -> AsyncIterator[None]:
    """The attack of ``plan`` runs around the block, and is in place at its start. None: no attack."""
    if plan is None:
        yield
        return
    command = [sys.executable, "-P", "-m", "mycelia.bench.attacks.strangers", msgspec.json.encode(plan).decode()]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        with trio.move_on_after(PATIENCE_S):
            if not await process.stdout.receive_some():
                raise LocalError(f"the attackers ({plan.kind}) ended before they had begun")
        yield
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()


async def newcomer_s(victims: Victims) -> float:
    """Seconds until a node that knows only the first victim has joined, has found the second one, and has an answer of
    both; PATIENCE_S if it fails."""
    identity = new_identity()
    settings = NetworkSettings(identity, listen=(LOOPBACK,), bootstrap=(victims.addresses[0],))
    wanted = [(await node.wait_ready()).peer for node in victims.nodes]
    with trio.move_on_after(PATIENCE_S):
        async with open_network(settings) as network, trio.open_nursery() as nursery:
            engine = FakeEngine()
            node = Node(identity, engine, network, epoch=1)
            began = trio.current_time()
            await nursery.start(node.run)
            while not set(wanted) <= {row.peer for row in node.state().peers}:  # noqa: ASYNC110  (no event announces it)
                await trio.sleep(LOOK_EVERY_S)
            for address in victims.addresses:
                while (await _first_answer(network, address)).failure:  # noqa: ASYNC110  (it asks each time)
                    await trio.sleep(LOOK_EVERY_S)
            took_s = trio.current_time() - began
            nursery.cancel_scope.cancel()
            return took_s
    return PATIENCE_S


async def _first_answer(network: Network, address: str) -> Answer:
    try:
        peer = await network.connect(address)
    except NetworkError as exc:
        return Answer(failure=str(exc))
    return await answer_of(network, peer, ask_for("hello", Sampling(max_tokens=1)))


async def client_answer(address: str, num_words: int = 40, max_tokens: int = 24) -> Answer:
    """The answer that a light client with a fresh key gets for a prompt that no node has cached."""
    answer = Answer(failure="kept out")
    with trio.move_on_after(PATIENCE_S), suppress(NetworkError):
        async with open_network(NetworkSettings(identity=new_identity(), overlay=False)) as network:
            peer = await network.connect(address)
            answer = await answer_of(network, peer, ask_for(random_words(num_words), Sampling(max_tokens=max_tokens)))
    answer.ttft_s = PATIENCE_S if answer.ttft_s is None else answer.ttft_s
    return answer


async def keyed_get_s(api_url: str, key: str) -> float:
    """Seconds for a connection and a small answer with ``key``; PATIENCE_S if there was none."""
    began = trio.current_time()
    with trio.move_on_after(PATIENCE_S):
        while True:
            with suppress(httpx.HTTPError):
                async with httpx.AsyncClient(base_url=api_url, trust_env=False, timeout=PATIENCE_S) as http:
                    (await http.get("/api/requests", headers={"authorization": f"Bearer {key}"})).raise_for_status()
                return trio.current_time() - began
            await trio.sleep(0.1)
    return PATIENCE_S


async def longest_pause_s(api_url: str, seconds: float) -> float:
    """The longest time within ``seconds`` in which the node's event loop left a small request unanswered, without the
    pauses of this process itself."""
    longest = own_s = 0.0
    until = trio.current_time() + seconds

    async def watch_own() -> None:
        nonlocal own_s
        while True:
            began = trio.current_time()
            await trio.sleep(LOOK_EVERY_S)
            own_s = max(own_s, trio.current_time() - began - LOOK_EVERY_S)

    async with (
        httpx.AsyncClient(base_url=api_url, trust_env=False, timeout=PATIENCE_S) as http,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(watch_own)
        while trio.current_time() < until:
            began, own_s = trio.current_time(), 0.0
            with suppress(httpx.HTTPError):
                await http.get("/api/requests")
            longest = max(longest, trio.current_time() - began - own_s)
            await trio.sleep(LOOK_EVERY_S)
        nursery.cancel_scope.cancel()
    return longest


async def num_banned(victims: Victims) -> int:
    """How often one of the victims put another one in quarantine."""
    peers = {(await node.wait_ready()).peer for node in victims.nodes}
    return sum(
        event.get("event") == "peer_quarantined" and event.get("peer") in peers
        for node in victims.nodes
        for event in node.events
    )

"""Several nodes in one process: the program that ``hosts.py`` starts in place of ``mycelia node``.

Each node has its own data directory, identity, ports, connections, overlay and HTTP API. Each has the fake engine, in
this process instead of a child process, so that a measurement of the process is one of its nodes. Every log line has
the name of its node.

A line on standard input is a question: its number and peer ids, as JSON. The answer is a line like those of the log,
with a ``Look`` of each node. The nodes leave at the end of standard input.
"""

import logging
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click
import msgspec
import structlog
import trio

from mycelia.node import log as node_log
from mycelia.node.app import Node
from mycelia.node.commands.checks import read_bootstrap
from mycelia.node.commands.options import bootstrap_option, data_dir_option
from mycelia.node.engine.engine import COALESCE_S, Engine
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.fake.worker import DECODE_RATE, PREFILL_RATE
from mycelia.node.engine.models import FAKE_MODEL
from mycelia.node.peer_id import peer_from_text
from mycelia.node.requests.drain import Drain
from mycelia.node.run import host_node
from mycelia.node.settings import NodeSettings
from mycelia.node.storage.rundir import find_running

log = structlog.get_logger()

CELLS, SLOTS = 65_536, 8


@dataclass(frozen=True)
class Place:
    """One node."""

    peer: str
    api_url: str
    ready_at: float
    """Unix time."""


@dataclass(frozen=True)
class Look:
    """What one node knows of the peers in question."""

    connected: int
    """The number of them that it is connected with."""
    live: int
    """The number of them whose digest it uses."""
    kept: int
    """The number of them of which it has any digest."""
    peers: int
    """Its connections in all."""
    digest_bytes_per_s: float
    """Bytes of digests that it received, over the last half minute or so."""


def look(node: Node, peers: Sequence[bytes], now: float) -> Look:
    overlay = node.overlay
    (namespace,) = (served.namespace for served in overlay.members.own())
    live = {owner.peer for owner in overlay.estimates.live(namespace)}
    return Look(
        connected=sum(map(overlay.members.is_node, peers)),
        live=sum(peer in live for peer in peers),
        kept=sum(overlay.estimates.state(peer, namespace) is not None for peer in peers),
        peers=len(overlay.members.nodes()),
        digest_bytes_per_s=round(overlay.traffic.digests_per_s(now), 1),
    )


@asynccontextmanager
async def open_fake_engine() -> AsyncIterator[Engine]:
    """An engine of the speed of ``--model fake``."""
    sizes = FakeSettings(cells=CELLS, slots=SLOTS)
    yield FakeEngine(replace(sizes, prefill_rate=PREFILL_RATE, decode_rate=DECODE_RATE, coalesce_s=COALESCE_S))


async def host(settings: NodeSettings, count: int) -> None:
    """Runs ``count`` nodes until standard input ends. settings: those of all nodes, except for the data directory, in
    which each node has its own, and the bootstrap peers: without any, the others join through the first node."""
    nodes: list[Node] = []
    places: list[Place] = []
    async with trio.open_nursery() as nursery:
        for number in range(1, count + 1):
            own = replace(settings, data_dir=settings.data_dir / str(number))
            structlog.contextvars.bind_contextvars(node=f"{settings.data_dir.name}/{number}")
            node: Node = await nursery.start(partial(host_node, own, open_fake_engine, Drain()))
            nodes.append(node)
            info = find_running(own.data_dir)
            assert info is not None
            places.append(Place(info.peer, info.api_url, time.time()))
            settings = replace(settings, bootstrap=settings.bootstrap or (node.state().addresses[0],))
        structlog.contextvars.clear_contextvars()
        log.info("hosted", places=list(map(asdict, places)))
        await _answer(nodes)
        nursery.cancel_scope.cancel()


async def _answer(nodes: Sequence[Node]) -> None:
    """Answers questions until standard input ends."""
    buffer = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        async for data in stdin:
            *lines, buffer = (buffer + bytes(data)).split(b"\n")
            for line in lines:
                number, texts = msgspec.json.decode(line, type=tuple[int, list[str]])
                peers = list(map(peer_from_text, texts))
                looks = [asdict(look(node, peers, time.time())) for node in nodes]
                # (not through the log, which drops lines of an event that comes too often)
                sys.stderr.buffer.write(
                    msgspec.json.encode({"event": "looked", "number": number, "looks": looks}) + b"\n"
                )
                sys.stderr.buffer.flush()


@click.group()
def program() -> None:
    """Nodes for a measurement."""


@program.command()
@bootstrap_option
@data_dir_option
@click.option("--listen", multiple=True)
@click.option("--api-port", type=int)
@click.option("--nodes", type=int)
@click.option("--exit-with-parent", is_flag=True)
def node(
    bootstrap: tuple[str, ...],
    data_dir: Path,
    listen: tuple[str, ...],
    api_port: int,
    nodes: int,
    exit_with_parent: bool,
) -> None:
    """Takes the options that LocalSwarm gives."""
    assert exit_with_parent
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # (each connection of each node is an open file)
    node_log.configure(logging.INFO)
    settings = NodeSettings(
        data_dir=data_dir,
        model=FAKE_MODEL,
        listen=listen,
        bootstrap=read_bootstrap(bootstrap),
        announce=(),
        swarm_key=b"",
        swarm="",
        mdns=False,
        api_port=api_port,
    )
    trio.run(host, settings, nodes)


if __name__ == "__main__":
    program()

"""How a node would be placed in the network: its ports, its bootstrap peers, and how they see it. A part of
``mycelia doctor``; joins as a light client for some seconds and changes nothing.
"""

import ipaddress
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import psutil
import trio
from msgspec import Struct

from node.client import fetch_state
from node.errors import one_line
from node.network.identity import new_identity
from node.network.network import Network, NetworkError, NetworkSettings
from node.rundir import find_running
from node.settings import DEFAULT_API_PORT, DEFAULT_LISTEN
from node.telemetry.inspection import INSPECT, REACH_DEADLINE_S
from proto.errors import LocalError, RemoteError
from proto.messages import Reach, ReachQuery

CONNECT_DEADLINE_S = 6.0
ANSWER_DEADLINE_S = REACH_DEADLINE_S + 3.0
MAX_SKEW_S = 30.0
MAX_ASKED = 8
PEER_PORT = int(DEFAULT_LISTEN.rpartition("/")[2])


class Line(Struct, frozen=True):
    """One finding."""

    what: str
    ok: bool
    says: str
    fix: str = ""
    """A command, or what to do; empty where nothing is wrong."""


async def look_out(data_dir: Path, bootstrap: Sequence[str]) -> list[Line]:
    """Takes some seconds when bootstrap peers do not answer. Raises nothing."""
    running = find_running(data_dir)
    port, lines = PEER_PORT, []
    if running is not None:
        try:
            addresses = (await fetch_state(running)).addresses
            port = next((int(address.split("/")[4]) for address in addresses), PEER_PORT)
            lines.append(Line("node", True, f"runs here as process {running.pid} and listens on port {port}"))
        except LocalError as exc:
            lines.append(Line("node", False, str(exc), f"kill {running.pid}, and start it again: mycelia node"))
    else:
        lines += [_port("peer port", "0.0.0.0", PEER_PORT, "mycelia node --listen /ip4/0.0.0.0/tcp/7127")]  # noqa: S104
        lines += [_port("API port", "127.0.0.1", DEFAULT_API_PORT, "mycelia node --api-port 0")]
    if not bootstrap:
        return [*lines, Line("bootstrap", True, "no peers are given: others can join through this node")]
    async with _listening(port, running is None):
        seen = await _ask(bootstrap[:MAX_ASKED], port, lines)
    return [*lines, *conclusions(seen, port)]


def _port(what: str, host: str, port: int, fix: str) -> Line:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            return Line(what, False, f"{port} cannot be used: {exc.strerror}", fix)
    return Line(what, True, f"{port} is free")


@asynccontextmanager
async def _listening(port: int, is_free: bool) -> AsyncIterator[None]:
    """Where no node runs, somebody must listen for peers to find the port open."""
    if not is_free:
        yield
        return
    try:
        listeners = await trio.open_tcp_listeners(port)
    except OSError:
        yield  # (told already)
        return
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, listener)
        yield
        nursery.cancel_scope.cancel()


async def _accept(listener: trio.SocketListener) -> None:
    async with listener:
        while True:
            await (await listener.accept()).aclose()


class Seen(Struct):
    """What a bootstrap peer told."""

    reach: Reach
    skew_s: float
    """Its clock less ours, as far as half of the round trip allows to say."""


async def _ask(bootstrap: Sequence[str], port: int, lines: list[Line]) -> list[Seen]:
    """Adds a line for each bootstrap peer."""
    from node.network.libp2p_network import open_network

    seen: list[Seen] = []
    settings = NetworkSettings(identity=new_identity(), overlay=False)
    async with open_network(settings) as network, trio.open_nursery() as nursery:
        for address in bootstrap:
            nursery.start_soon(_ask_one, network, address, port, lines, seen)
    return seen


async def _ask_one(network: Network, address: str, port: int, lines: list[Line], seen: list[Seen]) -> None:
    name = one_line(address)[:120]
    try:
        with trio.fail_after(CONNECT_DEADLINE_S):
            began = trio.current_time()
            peer = await network.connect(address)
        connected_ms = 1000 * (trio.current_time() - began)
    except (NetworkError, trio.TooSlowError) as exc:
        why = one_line(str(exc))[:200] if isinstance(exc, NetworkError) else f"silent for {CONNECT_DEADLINE_S:.0f} s"
        lines.append(Line("bootstrap", False, f"{name}: {why}", "give another one: --bootstrap MULTIADDR"))
        return
    try:
        with trio.fail_after(ANSWER_DEADLINE_S):
            stream = await network.open(peer, INSPECT)
            asked = time.time()
            await stream.send(ReachQuery(port=port))
            answer = await stream.receive()
            await stream.aclose()
        if isinstance(answer, Reach):
            seen.append(Seen(answer, answer.time_ms / 1000 - (asked + time.time()) / 2))
    except (NetworkError, RemoteError, trio.TooSlowError):
        pass  # (an older node: it can be joined through, and tells nothing)
    lines.append(Line("bootstrap", True, f"{name}: connected in {connected_ms:.0f} ms"))


def conclusions(seen: Sequence[Seen], port: int) -> list[Line]:
    """What follows from how peers see this machine, where somebody listens on ``port``."""
    if not seen:
        return [Line("reachable", True, "unknown: no bootstrap peer tells")]
    skew_s = median(one.skew_s for one in seen)
    clock = Line("clock", True, f"within {MAX_SKEW_S:.0f} s of {len(seen)} peers'")
    if abs(skew_s) > MAX_SKEW_S:
        clock = Line("clock", False, f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} peers'", _CLOCK_FIX)
    outside = next((host for host in (_host(one.reach.address) for one in seen) if host), "")
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    nat = "none: this machine has the address" if outside in own else "address translation"
    lines = [clock, Line("NAT", True, f"{nat} {outside or 'unknown'} as peers see it; no relay is in use")]
    outcomes = {one.reach.outcome for one in seen}
    if "open" in outcomes:
        lines.append(Line("reachable", True, f"peers can connect to port {port} of {outside}"))
    elif "closed" in outcomes:
        announce = f"mycelia node --announce /{'ip6' if ':' in outside else 'ip4'}/{outside}/tcp/{port}"
        fix = f"let port {port} through to this machine (firewall, router), then: {announce}"
        lines.append(Line("reachable", False, f"peers cannot connect to port {port} of {outside}", fix))
    else:
        lines.append(Line("reachable", True, "unknown: the peers were asked too often; try again in a minute"))
    return lines


_CLOCK_FIX = "timedatectl set-ntp true"


def _host(address: str) -> str:
    """The IP address of a multiaddr, which is a stranger's word; empty: it has none."""
    _, _, host, *_ = [*address.split("/"), "", "", ""]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""

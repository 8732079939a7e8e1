"""How a node would be placed in the network: its ports, its bootstrap peers, and how they see it. Part of ``mycelia
doctor``. Joins as a light client for some seconds and changes nothing."""

import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import trio
from msgspec import Struct

from mycelia.node.client.local import fetch_state
from mycelia.node.errors import one_line
from mycelia.node.network.addresses import host_of, is_circuit, port_of
from mycelia.node.network.identity import new_identity
from mycelia.node.network.mapping.gateways import default_gateways
from mycelia.node.network.mapping.mapper import KnownRouter, routers_of
from mycelia.node.network.mapping.router import is_useful
from mycelia.node.network.network import DialError, Network, NetworkError, NetworkSettings
from mycelia.node.queries.inspection import INSPECT
from mycelia.node.queries.questions import answer_of
from mycelia.node.queries.reach import ANSWER_DEADLINE_S, View, own_hosts, seen_from_outside
from mycelia.node.settings import DEFAULT_PORT
from mycelia.node.storage.rundir import find_running
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Reach, ReachQuery

CONNECT_DEADLINE_S = 11.0
"""For a name and then its addresses, each of which has 5 s."""
LISTEN_S = 2.5
"""How long the nodes of the local network have to answer."""
ANOTHER = "give another one: --bootstrap MULTIADDR"
MAX_SKEW_S = 30.0
MAX_ASKED = 8


class Line(Struct, frozen=True):
    what: str
    ok: bool
    says: str
    fix: str = ""
    """A command or another remedy; empty if nothing is wrong."""


async def look_out(
    data_dir: Path, bootstrap: Sequence[str], listen: Sequence[str], api_port: int, swarm_key: bytes = b""
) -> list[Line]:
    """Takes some seconds when bootstrap peers do not answer. Raises nothing. listen, api_port: where a node would
    listen, used if none runs."""
    running = find_running(data_dir)
    port, addresses, lines = port_of(listen[0]) or DEFAULT_PORT, list[str](), list[Line]()
    if running is not None:
        try:
            state = await fetch_state(running)
            addresses = state.addresses
            port = next((port_of(address) for address in addresses if not is_circuit(address)), port)
            lines.append(Line("node", True, f"runs here as process {running.pid} and listens on port {port}"))
            lines += [Line("found nobody", True, str(one)) for one in state.attempts]
        except LocalError as exc:
            lines.append(Line("node", False, str(exc), f"kill {running.pid}, and start it again: mycelia node"))
    else:
        other = "mycelia node --listen /ip4/0.0.0.0/tcp/7127"
        lines += [_port("peer port", host_of(address), port_of(address), other) for address in listen]
        lines += [_port("API port", "127.0.0.1", api_port, "mycelia node --api-port 0")]
    routers: list[KnownRouter] = []

    async def look_for_routers() -> None:
        routers.extend(await routers_of(await default_gateways()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_for_routers)
        lines.append(await _local_network(swarm_key))
    lines.append(port_mapping(routers))
    if not bootstrap:
        return [*lines, Line("bootstrap", True, "no peers are given: others can join through this node")]
    async with _listening(port, running is None):
        seen = await _ask(bootstrap[:MAX_ASKED], port, swarm_key, lines)
    can_map = any(is_useful(router.host) for router in routers)
    return [*lines, *conclusions(seen, port, None if running is None else addresses, can_map)]


def port_mapping(routers: Sequence[KnownRouter]) -> Line:
    """Whether the routers here forward ports on request."""
    if not routers:
        return Line("port mapping", True, "no router here forwards ports on request (PCP, NAT-PMP, UPnP)")
    told = []
    for router in routers:
        says = f"{router.gateway} forwards ports on request, by {router.protocol}"
        if router.host:
            second = "" if is_useful(router.host) else ", which is private: a second router is in front of it"
            says += f"; its own address is {one_line(router.host)[:64]}{second}"
        told.append(says)
    return Line("port mapping", True, "; ".join(told))


async def _local_network(swarm_key: bytes) -> Line:
    """Asks which other nodes the private networks of this machine have."""
    from mycelia.node.network.mdns.service import heard_within

    peers, notes = await heard_within(LISTEN_S, swarm_key)
    if peers:
        return Line("local network", True, f"{len(peers)} node{'s' if len(peers) > 1 else ''} of it answer")
    return Line("local network", True, "; ".join(notes) or "no node answers")


def _port(what: str, host: str, port: int, fix: str) -> Line:
    if not port:
        return Line(what, True, "any free one")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            return Line(what, False, f"{port} cannot be used: {exc.strerror}", fix)
    return Line(what, True, f"{port} is free")


@asynccontextmanager
async def _listening(port: int, is_free: bool) -> AsyncIterator[None]:
    """Listens if no node runs: otherwise peers would find the port closed."""
    if not is_free:
        yield
        return
    try:
        listeners = await trio.open_tcp_listeners(port)
    except OSError:
        yield  # (already reported)
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
    """The report of a bootstrap peer."""

    reach: Reach
    skew_s: float
    """Its clock minus ours, uncertain by half of the round trip."""
    host: str = ""
    """The peer's IP address."""


async def _ask(bootstrap: Sequence[str], port: int, swarm_key: bytes, lines: list[Line]) -> list[Seen]:
    """Adds a line for each bootstrap peer. All connections leave from one port, so that the peers' reports show how a
    router translates it."""
    from mycelia.node.network.libp2p.network import open_network

    seen: list[Seen] = []
    with _reusable_port() as dial_port:
        settings = NetworkSettings(identity=new_identity(), overlay=False, dial_port=dial_port, swarm_key=swarm_key)
        async with open_network(settings) as network, trio.open_nursery() as nursery:
            for address in dict.fromkeys(bootstrap):
                nursery.start_soon(_ask_one, network, address, port, lines, seen)
    return seen


@contextmanager
def _reusable_port() -> Iterator[int]:
    """A port that other programs cannot take meanwhile; 0 if the system does not support that."""
    with socket.socket() as reserved:
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("0.0.0.0", 0))  # noqa: S104  no process listens there
            port = int(reserved.getsockname()[1])
        except (AttributeError, OSError):
            port = 0
        yield port


async def _ask_one(network: Network, address: str, port: int, lines: list[Line], seen: list[Seen]) -> None:
    name = one_line(address)[:120]
    try:
        with trio.fail_after(CONNECT_DEADLINE_S):
            began = trio.current_time()
            peer = await network.connect(address)
        connected_ms = 1000 * (trio.current_time() - began)
    except DialError as exc:
        lines += [Line("bootstrap", False, f"{one.what}: {one.says}", one.fix or ANOTHER) for one in exc.failures]
        return
    except (NetworkError, trio.TooSlowError) as exc:
        why = one_line(str(exc))[:200] if isinstance(exc, NetworkError) else f"silent for {CONNECT_DEADLINE_S:.0f} s"
        lines.append(Line("bootstrap", False, f"{name}: {why}", ANOTHER))
        return
    try:
        with trio.fail_after(ANSWER_DEADLINE_S):
            asked = time.time()
            answer = await answer_of(network, INSPECT, ReachQuery(port=port), peer)
        if isinstance(answer, Reach):
            skew_s = answer.time_ms / 1000 - (asked + time.time()) / 2
            seen.append(Seen(answer, skew_s, host_of(network.remote_address(peer))))
    except (NetworkError, RemoteError, trio.TooSlowError):
        pass  # (an older node: others can join through it, but it reports nothing)
    lines.append(Line("bootstrap", True, f"{name}: connected in {connected_ms:.0f} ms"))


def conclusions(
    seen: Sequence[Seen], port: int, told: Sequence[str] | None = None, can_map: bool = False
) -> list[Line]:
    """Conclusions from how peers see this machine, which listens on ``port``. told: the addresses that the node running
    here announces; None: none runs. can_map: whether a node would get a port from the router."""
    if not seen:
        return [Line(what, True, "unknown: no bootstrap peer reports it") for what in ("NAT", "reachable")]
    own = own_hosts()
    views = seen_from_outside((one.reach for one in seen), own)
    relays = [address.split("/p2p/")[1].partition("/")[0] for address in told or () if is_circuit(address)]
    fix = f"let TCP port {port} through to this machine (firewall; on a router: forward it)"
    if can_map and told is None and "ip4" in views and views["ip4"].is_behind_router(own):
        views["ip4"] = replace(views["ip4"], outcome="mapped")  # (a running node has asked already, and in vain)
    is_shut = any(view.outcome == "closed" for view in views.values()) and not relays
    return [
        _clock(seen),
        _translation(seen, own, fix if is_shut else ""),
        _relay(relays, told is not None, is_shut),
        *(_reachable(view, port, fix, bool(relays)) for view in reversed(views.values())),
    ]


def _reachable(view: View, port: int, fix: str, is_relayed: bool) -> Line:
    """Whether peers can connect in one address family. A node finds its open addresses and announces them by itself."""
    match view.outcome:
        case "mapped":
            says = f"peers cannot connect to port {port} of {view.host} yet; a node here asks the router for it"
            return Line("reachable", True, says)
        case "open":
            return Line("reachable", True, f"peers can connect to port {port} of {view.host}")
        case "untried":
            return Line("reachable", True, "unknown: the peers were asked too often; try again in a minute")
        case _ if is_relayed:
            says = f"peers cannot connect to port {port} of {view.host}, but through the relay"
            return Line("reachable", True, f"{says}; for direct connections {fix}")
        case _:
            return Line("reachable", False, f"peers cannot connect to port {port} of {view.host}", fix)


def _clock(seen: Sequence[Seen]) -> Line:
    skew_s = median(one.skew_s for one in seen)
    if abs(skew_s) > MAX_SKEW_S:
        direction = "behind" if skew_s > 0 else "ahead of"
        return Line("clock", False, f"{abs(skew_s):.0f} s {direction} peers'", _CLOCK_FIX)
    return Line("clock", True, f"within {MAX_SKEW_S:.0f} s of {len(seen)} peers'")


def _translation(seen: Sequence[Seen], own: set[str], fix: str) -> Line:
    """How a router between here and the peers translates addresses (NAT). All connections left from one port. A router
    that maps it to the same port for every peer lets others connect there; any other router never does. Peers at one
    address prove nothing, since some routers distinguish only addresses. fix: empty unless no peer can connect."""
    views = {one.host: (host, port_of(one.reach.address)) for one in seen if (host := host_of(one.reach.address))}
    translated = {peer: view for peer, view in views.items() if view[0] not in own}
    if not views:
        return Line("NAT", True, "unknown: no peer reported an address")
    if not translated:
        (address, _), *_ = views.values()
        return Line("NAT", True, f"none: this machine has the address {address}")
    outside = sorted({f"{host} port {port}" for host, port in translated.values()})
    if len(translated) == 1:
        (address, _), *_ = translated.values()
        more = "two bootstrap peers at different addresses would show its kind"
        return Line("NAT", True, f"address translation to {address}; {more}")
    if len(outside) == 1:
        return Line("NAT", True, f"cone: {len(translated)} peers see {outside[0]}, so the router can let others in")
    says = f"symmetric: different peers see {', '.join(outside[:3])}, so only a forwarded port lets others in"
    return Line("NAT", not fix, says, fix)


def _relay(relays: Sequence[str], is_running: bool, is_needed: bool) -> Line:
    """relays: those at which the node here has a place."""
    if relays:
        return Line("relay", True, f"in use: peers reach this node through {' and '.join(relays)}")
    if not is_needed:
        return Line("relay", True, "none is in use")
    why = "a node here would be reached through a peer that relays, if there is one"
    if is_running:
        why = "no connected peer has room for the node, or it runs with --no-relay"
    return Line("relay", True, f"none is in use: {why}")


_CLOCK_FIX = "timedatectl set-ntp true"

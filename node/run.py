"""The start and the end of a node: what is opened, in which order."""

import gc
import os
import random
import secrets
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial

import msgspec
import structlog
import trio
from blake3 import blake3

from mycelia.node.app import Node
from mycelia.node.auto.auto import Auto, Part
from mycelia.node.engine.engine import Engine
from mycelia.node.engine.pool.pool import EnginePool, PoolModel
from mycelia.node.engine.shares import EngineShares
from mycelia.node.engines import OpenEngine, engine_settings_of, engines_of
from mycelia.node.errors import first_error
from mycelia.node.guest.guest import Guest
from mycelia.node.models.catalogue import one_name
from mycelia.node.network.addresses import parse_listen, with_next_port
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.line import Line
from mycelia.node.network.mapping.mapper import PortMapper, port_mappers
from mycelia.node.network.network import NetworkSettings
from mycelia.node.network.supervise import supervised
from mycelia.node.plugins import OWN_POLICY, policies
from mycelia.node.private_swarm.member import PrivateSwarm
from mycelia.node.queries import reach
from mycelia.node.reload.process_signals import follow_signals
from mycelia.node.reload.reloading import LiveParts, Reloader, keys_with_own
from mycelia.node.requests.drain import Drain
from mycelia.node.serve.api_keys import ApiKey
from mycelia.node.serve.gateway import Access, Gateway
from mycelia.node.serve.http.server import bind_api, bind_other_loopback, serve_http, url_of
from mycelia.node.serve.http.tls import load_tls
from mycelia.node.service.notify import keep_watchdog_calm, notify
from mycelia.node.settings import UNNAMED, NodeSettings, WantedModel
from mycelia.node.storage.data_dir import PUBLIC, prepare_data_dir
from mycelia.node.storage.identity_file import load_or_create_identity
from mycelia.node.storage.layout import open_layout
from mycelia.node.storage.private_swarms import read_swarm, state_dir_of
from mycelia.node.storage.rundir import RunInfo, locked, next_epoch, write_run_info
from mycelia.node.storage.saving import load_kept
from mycelia.node.swarms import Swarms
from mycelia.node.telemetry.crashes import reporting
from mycelia.node.telemetry.days import open_days
from mycelia.node.telemetry.journal import open_request_log
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.telemetry.usage import UsageMeter, open_usage
from mycelia.node.views.history import DayRow
from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

_NEW_OBJECTS = 10_000
"""Objects made between two collections: 0.3 ms of work for one."""

TOY_MODEL = "smollm2"
"""The default, which is served when nothing else is asked for."""


async def run_node(settings: NodeSettings, read: Callable[[], NodeSettings] | None = None) -> None:
    """Runs a node until SIGINT or SIGTERM and its clean end. read: see ``Reloader``. Raises LocalError for problems
    that the user can solve."""
    opened = engines_of(settings)
    drain, reloader = Drain(), Reloader(settings, read)
    async with trio.open_nursery() as nursery:
        await nursery.start(follow_signals, drain, reloader, nursery.cancel_scope)
        if settings.exit_with_parent:
            nursery.start_soon(_cancel_with_parent, nursery.cancel_scope)
        nursery.start_soon(keep_watchdog_calm)
        await host_node(settings, opened, drain, reloader)
    log.info("left")


async def host_node(
    settings: NodeSettings,
    opened: OpenEngine,
    drain: Drain,
    reloader: Reloader | None = None,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs a node with the engine or engines that ``opened`` gives, until cancelled. One process may run several nodes.
    reloader: None: the settings never change."""
    data_dir = prepare_data_dir(settings.data_dir)
    swarms = [settings, in_public(settings)] if settings.public else [settings]
    for address in (address for one in swarms for address in one.listen):
        parse_listen(address)
    own_key = secrets.token_hex(24)
    keys = keys_with_own(settings.api_keys, own_key)
    context = load_tls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
    line = Line(settings.bytes_per_s)
    with locked(data_dir), reporting(data_dir) if settings.keeps_log else nullcontext():
        open_layout(data_dir)
        async with (
            open_usage(data_dir, keys) as usage,
            open_days(data_dir) as days,
            _gateway(settings, keys, usage, drain, context) as (gateway, api_url),
            open_request_log(data_dir if settings.journal else None) as requests,
            opened() as engines,
            trio.open_nursery() as nursery,
        ):
            shares = EngineShares(await engines.first() if isinstance(engines, EnginePool) else engines)
            days.sums = lambda: _sums(requests, line)
            join = partial(
                _run_in_swarm, shares=shares, requests=requests, drain=drain, is_first=settings.public, line=line
            )
            parts: list[Part] = [await nursery.start(join, one) for one in swarms]
            nursery.start_soon(shares.run)
            if isinstance(engines, EnginePool):
                nursery.start_soon(_serve_others, engines, parts, nursery)
            nodes = [part.node for part in parts]
            guest = Guest(settings.guest, data_dir, days.month_bytes, partial(_pause, nodes))
            nursery.start_soon(guest.run)
            auto = _auto(settings, engines, parts, nursery)
            if auto is not None:
                nursery.start_soon(supervised, auto.run)
            told = auto.text if auto else str
            swarms_api = Swarms(*nodes, aliases=dict(settings.aliases), usage=usage, days=days, guest=guest, auto=told)
            reloader = reloader or Reloader(settings)
            write_run = partial(_write_run, api_url, nodes[0].state().peer)
            gateway.open(swarms_api, reloader.reload)
            reloader.follow(
                LiveParts(gateway, usage, context, own_key, swarms_api.set_aliases, guest.set_limits, write_run)
            )
            spare_collections()
            _tell_ready(settings, nodes, api_url)
            task_status.started(nodes[0])


async def _serve_others(pool: EnginePool, parts: Sequence[Part], nursery: trio.Nursery) -> None:
    """Serves the pool's other models, each from when it is known what it is."""
    async for engine in pool.later():
        shares = EngineShares(engine)
        try:
            for part in parts:
                await part.node.serve(part.share_of(shares))
        except LocalError as exc:
            log.warning("model_failed", model=engine.info.name, reason=str(exc))
            continue
        nursery.start_soon(shares.run)
        log.info("serving", model=engine.info.name, reuse=engine.info.reuse)


def _auto(
    settings: NodeSettings, engines: Engine | EnginePool, parts: Sequence[Part], nursery: trio.Nursery
) -> Auto | None:
    """The choice of a model by this node; None: it chooses none."""
    if not settings.auto or not isinstance(engines, EnginePool):
        return None

    def pool_model(path: str) -> PoolModel:
        return PoolModel(engine_settings_of(settings, WantedModel(path)))

    limits = read_swarm(settings.data_dir, settings.swarm).roster.models if settings.swarm else ()
    names = {one_name(name) for name in limits}
    return Auto(
        engines,
        parts,
        settings.data_dir,
        nursery,
        pool_model,
        allowed=lambda name: not names or name in names,
        is_first=settings.model == TOY_MODEL,
    )


def in_public(settings: NodeSettings) -> NodeSettings:
    """The settings of the second part of a node that is in a private swarm and in the open network: an identity, ports
    and memories of its own, so that no stranger can connect the two."""
    return replace(
        settings,
        data_dir=prepare_data_dir(settings.data_dir / PUBLIC),
        swarm="",
        swarm_key=b"",
        announce=(),
        listen=tuple(map(with_next_port, settings.listen)),
    )


async def _run_in_swarm(
    settings: NodeSettings,
    shares: EngineShares,
    requests: RequestLog,
    drain: Drain,
    is_first: bool,
    line: Line,
    task_status: trio.TaskStatus[Part] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs a node in one swarm until cancelled. is_first: prompts of a private swarm come before those of others."""
    if settings.public or settings.data_dir.name == PUBLIC:
        structlog.contextvars.bind_contextvars(swarm=settings.swarm or PUBLIC)
    data_dir = settings.data_dir
    identity = load_or_create_identity(data_dir)
    swarm = PrivateSwarm(data_dir, settings.swarm, identity.peer_id) if settings.swarm else None
    state_dir = state_dir_of(data_dir, settings.swarm) if swarm else data_dir
    salt = swarm.roster.salt if swarm else _salt(settings.swarm_key)
    epoch = next_epoch(data_dir, time.time())
    kept = load_kept(state_dir, time.time())
    network_settings = NetworkSettings(
        identity=identity,
        listen=settings.listen,
        bootstrap=swarm.contacts if swarm else settings.bootstrap,
        swarm_key=settings.swarm_key,
        access=swarm,
        remembered=kept.known.full_addresses,
        announce=settings.announce,
        relay=settings.relay,
        mdns=settings.mdns,
        line=line,
        debug=settings.debug,
    )

    def share_of(shares: EngineShares) -> Engine:
        return shares.of(salt, is_first and bool(salt))

    async with open_network(network_settings) as network, trio.open_nursery() as nursery:
        node = Node(
            identity,
            share_of(shares),
            network,
            epoch,
            kept,
            policy=_policy(settings),
            drain=drain,
            requests=requests,
            swarm=_name_of(settings),
        )
        if swarm is not None:
            nursery.start_soon(_follow_roster, swarm, network, node, settings.public, nursery.cancel_scope)
        async with _keep_reachable(node, network, settings) as keep_reachable:
            await nursery.start(node.run)
            if not settings.announce:  # (the user who announces addresses knows how the node is reached)
                nursery.start_soon(keep_reachable, port_mappers() if settings.port_mapping else {})
            nursery.start_soon(supervised, node.state_saver(state_dir).run)
            task_status.started(Part(node, share_of))
            await trio.sleep_forever()


async def _follow_roster(
    swarm: PrivateSwarm, network: Libp2pNetwork, node: Node, has_other: bool, scope: trio.CancelScope
) -> None:
    """Takes part in a private swarm. When this node learns that it was removed, the process ends, or only this part of
    it if the node is in another swarm as well."""
    try:
        await swarm.run(network)
    except* LocalError as group:
        if not has_other:
            raise
        node.ended = str(first_error(group))
        log.warning("left_swarm", reason=node.ended)
        scope.cancel()


def _pause(nodes: Sequence[Node], reason: str) -> None:
    for node in nodes:
        node.pause(bool(reason))
    notify(f"STATUS=takes no prompts of others: {reason}" if reason else "STATUS=takes prompts of others")


def _sums(requests: RequestLog, line: Line) -> DayRow:
    shared = requests.totals.shared
    return msgspec.structs.replace(shared, sent_bytes=line.sent_bytes, received_bytes=line.received_bytes)


def _name_of(settings: NodeSettings) -> str:
    return settings.swarm or (UNNAMED if settings.swarm_key else "")


def _policy(settings: NodeSettings) -> Policy | None:
    if settings.policy == OWN_POLICY:
        return None
    rng = random.Random(os.urandom(16))  # noqa: S311  no secret
    policy: Policy = policies().make_policy(settings.policy, rng)
    return policy


KeepReachable = Callable[[Mapping[str, PortMapper]], Awaitable[None]]


@asynccontextmanager
async def _keep_reachable(node: Node, network: Libp2pNetwork, settings: NodeSettings) -> AsyncIterator[KeepReachable]:
    """The check of the node's reachability. For a private swarm, relays of the open network are asked, too."""
    if not (settings.swarm and settings.relay):
        yield node.keep_reachable
        return
    from mycelia.node.network.libp2p.carrier import open_carrier  # (imports libp2p)

    plain = NetworkSettings(identity=network.identity, bootstrap=settings.bootstrap, overlay=False)
    async with open_carrier(network, plain) as carrier:
        yield partial(reach.keep_reachable, carrier, carrier.peers, carrier.came)


@asynccontextmanager
async def _gateway(
    settings: NodeSettings,
    keys: tuple[ApiKey, ...],
    usage: UsageMeter,
    drain: Drain,
    context: ssl.SSLContext | None,
) -> AsyncIterator[tuple[Gateway, str]]:
    """The node's HTTP, which answers that the model is loading until it is opened, and its URL."""
    listener = bind_api(settings.api_host, settings.api_port)
    listeners = [listener, *filter(None, [bind_other_loopback(listener)])]
    url = url_of(listener, is_encrypted=context is not None)
    gateway = Gateway(Access(keys, settings.cors_origins, settings.allowed_hosts), drain, usage)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_http, gateway, *listeners, context=context))
        yield gateway, url
        nursery.cancel_scope.cancel()


def _write_run(api_url: str, peer: str, settings: NodeSettings, key: str) -> None:
    """Writes the run file. key: that of commands on this machine; empty: they need none."""
    cert = str(settings.tls_cert.absolute()) if settings.tls_cert else ""
    info = RunInfo(os.getpid(), api_url, peer, key, _name_of(settings), settings.public, cert)
    write_run_info(settings.data_dir, info)


def spare_collections() -> None:
    """Leaves what there is now out of every garbage collection: it stays for as long as the node runs, and a collection
    that looks at all of it stops the node for 0.1 to 0.2 s. What comes later is looked at less often than Python does
    by itself, which is several times in each request."""
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)


def _tell_ready(settings: NodeSettings, nodes: Sequence[Node], api_url: str) -> None:
    """Logs the line that programs wait for."""
    states = [node.state() for node in nodes]
    log.info(
        "ready",
        peer=states[0].peer,
        model=states[0].model,
        listen=states[0].addresses,
        api=api_url,
        reuse=states[0].reuse,
        data_dir=str(settings.data_dir),
        **({"public_listen": states[1].addresses} if settings.public else {}),
    )
    notify("READY=1", f"STATUS=serves {states[0].model}")
    if states[0].model == TOY_MODEL:
        log.info("small_model", hint="good for trials, not for answers: 'mycelia setup' proposes models that fit here")
    if not settings.bootstrap and (settings.public or not settings.swarm):
        log.info("no_bootstrap_peers", hint="others can join through this node's listen addresses")


async def _cancel_with_parent(scope: trio.CancelScope) -> None:
    """Cancels when standard input ends, whose other end the program that started this node holds."""
    if sys.stdin is not None:  # (None: it was closed from the start, and descriptor 0 may be any file)
        async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
            while await stdin.receive_some():
                pass
    log.info("leaving", signal="end of standard input")
    scope.cancel()


def _salt(swarm_key: bytes) -> bytes:
    """The salt of a private swarm's namespaces: without the key, its digests reveal nothing."""
    return blake3(swarm_key, derive_key_context="mycelia 2026 swarm salt v1").digest() if swarm_key else b""

"""A whole node: what it starts, in which order, and how it ends.

Order: data directory and lock, API port, engine, network, overlay, entry, gateway. The end is in reverse order, so that
no part announces or accepts work that another part can no longer do. One nursery holds everything; a signal cancels it.
"""

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path

import msgspec
import structlog
import trio

from mycelia.node.driver import OverlayDriver
from mycelia.node.engine.engine import FIRST_EDGE_ID, Engine
from mycelia.node.network.identity import Identity, verify
from mycelia.node.network.mapping.mapper import PortMapper
from mycelia.node.network.network import MessageStream, Network
from mycelia.node.peer_id import peer_text
from mycelia.node.queries.demand import DEMAND, DemandExchange
from mycelia.node.queries.inspection import INSPECT, Inspection
from mycelia.node.queries.models import MODELS, SwarmModels
from mycelia.node.queries.reach import keep_reachable
from mycelia.node.queries.uses import VECTORS
from mycelia.node.requests.answer_frames import one_frame
from mycelia.node.requests.drain import Drain
from mycelia.node.requests.entry import ASK, GENERATE, Entry, serve_ask_stream
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.own_texts import OwnTexts
from mycelia.node.requests.own_trees import OwnTrees
from mycelia.node.requests.relay import FindEntries, Relay, there_or_here
from mycelia.node.requests.salts import Salts
from mycelia.node.requests.serving import serve_generate_stream
from mycelia.node.requests.vectors import Vectors
from mycelia.node.storage.saving import Kept, StateSaver, restored
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.version import AGENT, VERSION, version_in
from mycelia.node.views.state import NodeState, PeerRow, RelayedView, ServedRow, TrafficView
from mycelia.proto.config import OverlayConfig
from mycelia.proto.digests.budget import Plane, Traffic
from mycelia.proto.effects import RequestEffect
from mycelia.proto.events import CacheChanged, Leaving, ModelServed, ModelWithdrawn, Paused, VitalsChanged
from mycelia.proto.overlay import Overlay, PeerView
from mycelia.proto.planes.failure import LEAVING, PAUSED_MESSAGE
from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.messages import Ask, EntryFrame, Failed

log = structlog.get_logger()


class Node:
    """Models, one network and one overlay, connected. ``run`` must be running while the node is used."""

    def __init__(
        self,
        identity: Identity,
        engine: Engine,
        network: Network,
        epoch: int,
        kept: Kept | None = None,
        config: OverlayConfig = OverlayConfig(agent=AGENT),  # noqa: B008  frozen
        policy: Policy | None = None,
        drain: Drain | None = None,
        requests: RequestLog | None = None,
        swarm: str = "",
    ) -> None:
        """engine: the first model's; ``serve`` adds others. kept: the state saved by earlier runs, see ``state_saver``.
        policy: a routing policy instead of the protocol's own. drain: counts the work for peers and clients. requests:
        see ``open_request_log``. swarm: the name of its private swarm."""
        self._own = OwnModels(engine)
        self._network = network
        self._epoch = epoch
        self.swarm = swarm
        self.ended = ""
        """Why it does not run any more, although another part of the process does."""
        self._is_paused = False
        rng = random.Random(os.urandom(16))  # noqa: S311  jitter, no secret
        self.overlay = Overlay(identity.peer_id, config, rng, identity.sign, verify, policy)
        self._kept = kept or Kept()
        for event in restored(self._kept):
            self.overlay.handle(event, time.time())
        self.requests = requests or RequestLog(trio.current_time)
        """The requests this node entered, served or relayed. Read-only."""
        self._inspection = Inspection(network, self.requests, self._connected)
        self._driver = OverlayDriver(self.overlay, network, self._perform_request, self.requests)
        self._salts = Salts(identity.sign)
        self.entry = Entry(
            self._own,
            network,
            self._driver.handle,
            self.overlay.silence_s,
            self.requests,
            self._salts,
            self.overlay.subnet,
        )
        self.swarm_models = SwarmModels(network, self.overlay, self._driver, self._own)
        self.demand = DemandExchange(network, self.overlay, self._driver, lambda: self.own_models)
        self._relay = Relay(network, self.requests, self.swarm_models.known_names)
        self._trees = OwnTrees(network.peer_id, self._own, self._salts)
        self._following: dict[bytes, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._started_at = self._driver.now()
        self._drain = drain or Drain()
        # The part of ``Api`` that a room answers alone.
        texts = OwnTexts(self._own)
        self.tokenize, self.tokenize_text, self.detokenize = texts.tokenize, texts.tokenize_text, texts.detokenize
        self.models, self.vocabulary_texts = self.swarm_models.rows, texts.vocabulary
        self._vectors = Vectors(self._own, network, self.swarm_models, self.overlay, self._driver.handle)
        self.model_for, self.embed, self.rank = self._own.model_for, self._vectors.embed, self._vectors.rank
        self.recent_requests, self.requests_changed = self.requests.rows, self.requests.changed
        self.tree = self._trees.rows
        self.links, self.trace = self._inspection.links, self._inspection.trace
        self.now, self.peer = self._driver.now, identity.peer_id

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled. The node answers requests from ``started()`` on."""
        begin_leaving = partial(self._driver.handle, Leaving())
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self.entry.run)
                await nursery.start(self._driver.run)
                await self._begin(self._own.first)
                serve = partial(
                    serve_generate_stream, self._own, self.overlay, self.requests, self._network.remote_address
                )
                self._network.serve(GENERATE, partial(self._work, serve))
                self._network.serve(INSPECT, self._inspection.serve_stream)
                serve_ask = partial(serve_ask_stream, self._ask_of_peer)
                self._network.serve(ASK, partial(self._work, serve_ask), is_forgiving=True)
                self._network.serve(MODELS, self.swarm_models.serve_stream)
                self._network.serve(VECTORS, partial(self._work, self._vectors.serve_stream))
                self._network.serve(DEMAND, self.demand.serve_stream)
                nursery.start_soon(self.swarm_models.keep_asking)
                self._drain.on_begin.append(begin_leaving)
                task_status.started()
        finally:
            with suppress(ValueError):  # (it had not started)
                self._drain.on_begin.remove(begin_leaving)

    async def serve(self, engine: Engine) -> None:
        """Serves another model, too. The node must be running. Raises LocalError, see ``OwnModels.add``."""
        self._own.add(engine)
        await self._begin(engine)

    def prefer(self, engine: Engine) -> None:
        """Requests that name no model get this one from now on. It is served."""
        self._own.prefer(engine)

    async def withdraw(self, engine: Engine) -> None:
        """Serves a model no more. It is not the only one. What has begun goes on."""
        namespace = engine.info.namespace
        self._own.remove(engine)
        self._following.pop(namespace).cancel()
        self._trees.end(namespace)
        self._driver.handle(ModelWithdrawn(namespace))
        await self._network.leave(namespace)

    async def _begin(self, engine: Engine) -> None:
        assert self._nursery is not None, "serve() before run()"
        info = engine.info
        self._trees.begin(info.namespace)
        await self._network.join(info.namespace)
        self._driver.handle(
            ModelServed(
                info.namespace,
                info.name,
                info.context_tokens,
                engine.vitals(),
                self._epoch,
                engine.vocabulary,
                info.has_states,
            )
        )
        self._nursery.start_soon(self._follow, engine, self._following.setdefault(info.namespace, trio.CancelScope()))

    async def _work(self, serve: Callable[[MessageStream], Awaitable[None]], stream: MessageStream) -> None:
        with self._drain.working():
            await serve(stream)

    @property
    def model(self) -> str:
        return self._own.first.info.name

    @property
    def own_models(self) -> list[str]:
        """See ``Api.own_models``."""
        return [engine.info.name for engine in self._own]

    def health(self) -> str:
        """See ``Api.health``."""
        if self._drain.is_leaving:
            return "leaving"
        return "ok" if self._own.first.vitals().slots else "loading"

    def ask(
        self, ask: Ask, deadline_s: float | None = None, client: bytes = b""
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """See ``Entry.ask``. A prompt for another model enters at a node that serves it, if one can be found; one for
        a model that is not loaded here, at a node where it would begin sooner."""
        ask = self._named_as_served(ask)
        engine = self._own.named(ask.model)
        find = partial(self.swarm_models.find, ask.model, client)
        if engine is not None and not engine.residence.is_loaded and self.swarm_models.sooner(engine):
            ask = msgspec.structs.replace(ask, model=engine.info.name)
            there = self._relayed(partial(self.swarm_models.find_sooner, engine), ask, deadline_s, client, is_own=True)
            return there_or_here(there, partial(self.entry.ask, ask, deadline_s, client))
        return self._ask(find, ask, deadline_s, client, is_own=True)

    def _named_as_served(self, ask: Ask) -> Ask:
        model = self.swarm_models.name_of(ask.model)
        return ask if model == ask.model else msgspec.structs.replace(ask, model=model)

    def _ask_of_peer(self, ask: Ask, peer: bytes) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        """A prompt from another node is passed on only to a connected node that serves its model: the sender has
        already searched further itself, and no prompt may go in circles."""

        async def servers() -> list[bytes]:
            return [server for server in self.swarm_models.servers(ask.model) if server != peer]

        if self._is_paused:
            return one_frame(Failed(code=LEAVING, message=PAUSED_MESSAGE, retryable=True))
        ask = self._named_as_served(ask)
        find = servers if peer in self._connected() else partial(self.swarm_models.find, ask.model, peer=peer)
        return self._ask(find, ask, None, peer, is_own=False)

    def _ask(
        self, find: FindEntries, ask: Ask, deadline_s: float | None, client: bytes, is_own: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        if self._own.named(ask.model) is not None:
            return self.entry.ask(ask, deadline_s, client)
        return self._relayed(find, ask, deadline_s, client, is_own)

    def _relayed(
        self, find: FindEntries, ask: Ask, deadline_s: float | None, client: bytes, is_own: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[EntryFrame]]:
        ask = msgspec.structs.replace(ask, cache_salt=self._salts.passed_on(ask.cache_salt, client))
        return self._relay.relayed(find, ask, deadline_s, client, is_own)

    async def keep_reachable(self, mappers: Mapping[str, PortMapper] | None = None) -> None:
        """Runs until cancelled, see ``node/queries/reach.py``."""
        await keep_reachable(self._network, self._connected, self._driver.joined, mappers)

    def pause(self, is_paused: bool) -> None:
        """Takes no prompts of other nodes from now on, or takes them again. Repeat it every few minutes."""
        self._is_paused = is_paused
        self._driver.handle(Paused(is_paused))

    def _connected(self) -> list[bytes]:
        return [view.peer for view in self.overlay.nodes()]

    def state_saver(self, data_dir: Path) -> StateSaver:
        """Saves the state that survives a restart. Run it while the node runs."""
        saver = StateSaver(data_dir, self.overlay, self._network, self._kept.known, self._driver.now)
        self._driver.on_emit = saver.note
        return saver

    def state(self) -> NodeState:
        info, served = self._own.first.info, [_served_row(engine, self._trees) for engine in self._own]
        return NodeState(
            peer=peer_text(self._network.peer_id),
            swarm=self.swarm,
            version=VERSION,
            addresses=self._network.addresses(),
            model=info.name,
            namespace=info.namespace.hex(),
            cell_bits=cell.bits if (cell := self.overlay.cell(info.namespace)) else 0,
            context_tokens=info.context_tokens,
            reuse=info.reuse,
            active_requests=sum(row.active_requests for row in served),
            waiting_requests=sum(row.waiting_requests for row in served),
            slots=sum(row.slots for row in served),
            exchanges=self._network.num_exchanges(),
            relayed=msgspec.convert(self._network.relayed(), RelayedView, from_attributes=True),
            attempts=self._network.attempts(),
            tasks=trio.lowlevel.current_statistics().tasks_living,
            cached_tokens=sum(row.cached_tokens for row in served),
            cells=sum(row.cells for row in served),
            uptime_s=round(self._driver.now() - self._started_at, 1),
            stats=self.requests.stats(),
            peers=[self._peer_row(view) for view in self.overlay.peers(self._driver.now())],
            traffic=_traffic_view(self.overlay.traffic, self._driver.now()),
            refused={str(refusal): count for refusal, count in sorted(self.overlay.refusals.items())},
            served=served,
        )

    def _peer_row(self, view: PeerView) -> PeerRow:
        common = [served for served in view.served if self._own.of(served.namespace) is not None]
        namespace = common[0].namespace if common else b""
        vitals = common[0].vitals if common else None
        state = view.digest_states.get(namespace)
        round_trip_s, path = self._network.round_trip_s(view.peer), self._network.path(view.peer)
        return PeerRow(
            peer=peer_text(view.peer),
            address=self._network.remote_address(view.peer) or view.address,
            models=[served.model for served in view.served],
            digest=state.name.lower() if state else "none",
            digest_blocks=view.num_blocks.get(namespace, 0),
            active_requests=vitals.active_requests if vitals else 0,
            waiting_requests=vitals.waiting_requests if vitals else 0,
            slots=vitals.slots if vitals else 0,
            prefill_rate=vitals.prefill_rate if vitals else 0,
            round_trip_ms=None if round_trip_s is None else round(round_trip_s * 1000, 1),
            connected_s=round(view.connected_s, 1),
            path=path.kind if path else "",
            relay=peer_text(path.relay) if path and path.relay else "",
            version=version_in(view.agent),
        )

    def _perform_request(self, effect: RequestEffect) -> None:
        self.entry.perform(effect)

    async def _follow(self, engine: Engine, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_cache, engine)
                nursery.start_soon(self._follow_vitals, engine)

    async def _follow_cache(self, engine: Engine) -> None:
        info = engine.info
        while True:
            change = await engine.cache_changes()
            self.requests.totals.evictions += sum(leaf < FIRST_EDGE_ID for leaf in change.evicted)
            self._trees.apply(info.namespace, change, self._driver.now())
            stored = change.stored
            if info.has_states:
                stored = [(leaf, path) for leaf, path in stored if leaf >= FIRST_EDGE_ID]  # Cells alone are of no use.
            self._driver.handle(CacheChanged(info.namespace, stored, change.evicted, change.reset))

    async def _follow_vitals(self, engine: Engine) -> None:
        while True:
            vitals = await engine.vitals_changes()
            self._driver.handle(VitalsChanged(engine.info.namespace, vitals))


def _traffic_view(traffic: Traffic, now: float) -> TrafficView:
    return TrafficView(
        received_bytes={str(plane): traffic.received[plane] for plane in Plane},
        received_bytes_per_s={str(plane): round(traffic.received_per_s(plane, now), 1) for plane in Plane},
        received_kinds=dict(sorted(traffic.received_kinds.items())),
        digests_sent_bytes=traffic.sent_bytes,
        digests_sent_kinds=dict(sorted(traffic.sent_kinds.items())),
        deltas_postponed=traffic.num_postponed,
        repairs_dropped=traffic.num_dropped,
    )


def _served_row(engine: Engine, trees: OwnTrees) -> ServedRow:
    info, vitals, residence = engine.info, engine.vitals(), engine.residence
    return ServedRow(
        model=info.name,
        namespace=info.namespace.hex(),
        context_tokens=info.context_tokens,
        reuse=info.reuse,
        state=residence.state,
        active_requests=vitals.active_requests,
        waiting_requests=vitals.waiting_requests,
        slots=vitals.slots,
        cells=info.num_cells,
        cached_tokens=trees.num_tokens(info.namespace),
        load_s=round(residence.load_s, 1),
        memory_bytes=residence.memory_bytes,
        kept_bytes=residence.kept_bytes,
        kind=info.kind,
    )

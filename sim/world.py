"""The event loop: overlays, their timers, and messages in flight, in virtual time.

Each node is a real ``proto.overlay.Overlay``, driven as in ``node/driver.py``: network, timers and engine become
events, and effects are performed in order. A heap of (time, number, what) is all there is: no thread, no wall clock.
Equal seeds give equal runs, to the byte of ``trace``; nothing depends on the order of a set.

Bytes are counted per node and plane, sent and received, duplicates included. Signatures are keyed hashes, unforgeable
as long as no node in the simulation tries: Ed25519 takes 44 us to sign and 125 us to verify, which matters to no
result.
"""

import heapq
import random
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import assert_never

import numpy as np
from blake3 import blake3

from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.config import OverlayConfig
from mycelia.proto.digests.digest import epoch_after
from mycelia.proto.effects import (
    MAX_SENDS_PER_PEER,
    Abandon,
    Begin,
    CancelTimer,
    Connect,
    Deliver,
    DeliverPromptLogprobs,
    Disconnect,
    Dispatch,
    Effect,
    Emit,
    Fail,
    FindProviders,
    Finish,
    JoinCell,
    LeaveCell,
    Provide,
    Publish,
    RequestEffect,
    Send,
    SetTimer,
)
from mycelia.proto.events import (
    Connected,
    Disconnected,
    Event,
    Gossiped,
    ModelServed,
    Received,
    RoundTripMeasured,
    Timer,
    TimerFired,
)
from mycelia.proto.overlay import Overlay
from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.messages import Reconcile, Repair, Vitals
from mycelia.sim.links import Links
from mycelia.sim.meshes import Meshes
from mycelia.sim.node import SimNode, address_of, peer_id, sign_as, verify
from mycelia.sim.traffic import Traffic, plane_of

NAMESPACE = blake3(b"the simulated model").digest(length=16)
EPOCH_START = 1_800_000_000.0
"""Start of virtual time, in Unix seconds."""
CONTEXT_TOKENS = 131_072
IDLE = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=4)

_TRACED = struct.Struct(">dIIQ")


class World:
    """Nodes on links. Drive it with ``run``; ``call`` schedules what a scenario does."""

    def __init__(
        self,
        links: Links,
        num_nodes: int,
        seed: int,
        config: OverlayConfig = OverlayConfig(),  # noqa: B008  frozen
        perform_request: Callable[[SimNode, RequestEffect], None] | None = None,
        mesh_degree: int | None = None,
        policy_of: Callable[[int], Policy | None] = lambda number: None,
        readers: Collection[int] | None = None,
    ) -> None:
        """perform_request: gets the effects of requests, if there are requests. mesh_degree: each cell has a mesh that
        follows its subscribers; without it there is one mesh, that of ``links``, and no node moves. policy_of: the rule
        by which each node routes; None is the protocol's own.

        readers: only these nodes read digests, and only those of nodes they are connected with, which they ask for what
        they lack. Other gossip is only counted. Other nodes relay no repairs and take no part in reconciliation. None:
        every node reads everything."""
        self.links = links
        self.config = config
        self.now = EPOCH_START
        self.rng = random.Random(seed)
        self._checks = random.Random(f"checks {seed}")
        self.nodes: list[SimNode | None] = [None] * num_nodes
        self.number_of = {peer_id(number): number for number in range(num_nodes)}
        self.is_up = np.zeros(num_nodes, dtype=np.bool_)
        self.emitted: Counter[str] = Counter()
        self.num_events = 0
        self._traffic = Traffic(num_nodes)
        self.sent, self.received = self._traffic.sent, self._traffic.received
        self.on_publish: Callable[[SimNode, Publish], None] = lambda *_: None
        self.on_emit: Callable[[SimNode, Emit], None] = lambda *_: None
        self.on_send: Callable[[SimNode, Send, int], None] = lambda *_: None
        """Also called with the bytes of the message."""
        self.on_cell: Callable[[SimNode, Cell], None] = lambda *_: None
        self.on_ladder: Callable[[SimNode, Connect | Provide | FindProviders], None] = lambda *_: None
        """Without it no node gets records or an answer to a lookup."""
        self._near: list[set[int]] = [set() for _ in range(num_nodes)]
        self.meshes = Meshes(links, self._near, mesh_degree, random.Random(seed)) if mesh_degree else None
        self._perform_request = perform_request
        self._policy_of = policy_of
        self._is_reader = None if readers is None else np.zeros(num_nodes, dtype=np.bool_)
        if self._is_reader is not None and readers is not None:
            self._is_reader[sorted(readers)] = True
        self._heap: list[tuple[float, int, int, Event | Timer | Callable[[], None]]] = []
        self._num_scheduled = 0
        self._arrived_at: dict[tuple[int, int], float] = {}
        self._epochs = [0] * num_nodes
        """Epoch of each node's digest in its last life."""
        self._trace = blake3()

    # --- for scenarios ---------------------------------------------------------------------------------------------

    def call(self, at: float, action: Callable[[], None]) -> None:
        self._schedule(at, -1, action)

    def start(self, number: int, clock_s: float = 0.0, remembers: bool = True) -> SimNode:
        """Start, or restart with an empty memory, one node. Then call ``serve`` and ``connect``. clock_s: how far its
        clock is ahead. remembers: it has the last epoch of its digest, as nodes do on disk."""
        peer = peer_id(number)
        rng = random.Random(self.rng.random())
        overlay = Overlay(peer, self.config, rng, sign_as(peer), verify, self._policy_of(number))
        self._near[number].clear()
        node = self.nodes[number] = SimNode(number, peer, overlay, near=self._near[number], clock_s=clock_s)
        self._epochs[number] = epoch_after(self._epochs[number] if remembers else 0, self.now + clock_s)
        self.is_up[number] = True
        return node

    def serve(self, node: SimNode, vitals: Vitals = IDLE, context_tokens: int = CONTEXT_TOKENS) -> None:
        """The node's engine is ready, for NAMESPACE."""
        if self.meshes is not None:
            self.meshes.join(node.number, ROOT)
        self.handle(node, ModelServed(NAMESPACE, "model", context_tokens, vitals, self._epochs[node.number]))

    def stop(self, number: int, is_noticed: bool = True) -> None:
        """The node is gone without notice; its peers notice at once, or each by ``forget``."""
        node = self.node(number)
        if is_noticed:
            for other in sorted(node.near):
                if self.nodes[other] is not None:
                    self.disconnect(number, other)
        node.near.clear()
        if self.meshes is not None:
            self.meshes.leave_all(number)
        self.nodes[number] = None
        self.is_up[number] = False

    def forget(self, number: int, gone: int) -> bool:
        """Node ``number`` closes its side of a connection with a node that stopped unnoticed, and may be up again.
        False, and nothing happens, if it is down itself or has no such connection."""
        node = self.nodes[number]
        if node is None or gone not in node.near or number in self._near[gone]:
            return False
        node.near.discard(gone)
        self.handle(node, Disconnected(peer_id(gone)))
        return True

    def freeze(self, number: int) -> None:
        """The node does nothing until ``thaw``, and then handles everything that has happened meanwhile."""
        self.node(number).held = []

    def thaw(self, number: int) -> None:
        """Ends ``freeze``; does nothing if the node is not frozen."""
        node = self.node(number)
        held, node.held = node.held or [], None
        for order, what in held:
            if not isinstance(what, Timer):
                self._schedule(self.now, number, what)
            elif node.timers.get(what, (0.0, 0))[1] == order:
                node.timers[what] = (self.now, self._schedule(self.now, number, what))

    def is_frozen(self, number: int) -> bool:
        node = self.nodes[number]
        return node is not None and node.held is not None

    def connect(self, one: int, other: int) -> None:
        """Connect two nodes if they are not connected. Closes first what is left of an earlier one, as the host
        does."""
        mine, theirs = self.node(one), self.node(other)
        if other in mine.near and one in theirs.near:
            return
        self.forget(one, other)
        self.forget(other, one)
        mine.near.add(other)
        theirs.near.add(one)
        if self.meshes is not None:
            self.meshes.on_connections(one, other)
        self.handle(mine, Connected(theirs.peer, address_of(other)))
        self.handle(theirs, Connected(mine.peer, address_of(one)))
        # Real nodes measure it again and again; here it stays the same.
        seconds = self.links.round_trip_s(one, other)
        self._schedule(self.now + seconds, one, RoundTripMeasured(theirs.peer, seconds))
        self._schedule(self.now + seconds, other, RoundTripMeasured(mine.peer, seconds))

    def disconnect(self, one: int, other: int) -> None:
        """Disconnect two nodes if they are connected."""
        mine, theirs = self.node(one), self.node(other)
        if other not in mine.near:
            return
        mine.near.discard(other)
        theirs.near.discard(one)
        if self.meshes is not None:
            self.meshes.on_connections(one, other)
        self.handle(mine, Disconnected(theirs.peer))
        self.handle(theirs, Disconnected(mine.peer))

    def node(self, number: int) -> SimNode:
        node = self.nodes[number]
        assert node is not None, f"node {number} is not up"
        return node

    def up(self) -> list[SimNode]:
        return [node for node in self.nodes if node is not None]

    def run(self, until: float) -> None:
        """Run everything up to and including ``until``."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            at, order, number, what = heapq.heappop(heap)
            self.now = at
            if number < 0:
                assert callable(what)
                what()
                continue
            node = self.nodes[number]
            if node is None:
                pass
            elif node.held is not None:
                assert not callable(what)
                node.held.append((order, what))
            elif isinstance(what, Timer):
                if node.timers.get(what) != (at, order):
                    continue
                del node.timers[what]
                self.handle(node, TimerFired(what))
            else:
                assert not callable(what)
                self.handle(node, what)
        self.now = until

    def handle(self, node: SimNode, event: Event) -> None:
        """Give one event to one node now, or when it thaws, and perform the effects."""
        if node.held is not None:
            node.held.append((0, event))
            return
        self.num_events += 1
        effects = node.overlay.handle(event, self.now + node.clock_s)
        self._trace.update(_TRACED.pack(self.now, node.number, len(effects), self.num_events))
        if not effects:
            return
        for effect in effects if len(effects) <= MAX_SENDS_PER_PEER else _limited(effects, self.emitted):
            self._perform(node, effect)

    def trace(self) -> str:
        """A hash over everything that happened, equal for equal seeds."""
        return blake3(self._trace.digest() + self._traffic.state()).hexdigest()

    def check_invariants(self, most: int | None = None) -> None:
        """Raises AssertionError when an overlay breaks a documented invariant. most: number of nodes checked, others
        each time; None: all. A node that knows 200 others takes a fifth of a second."""
        up = self.up()
        for node in up if most is None else self._checks.sample(up, min(most, len(up))):
            node.overlay.check_invariants()

    # --- effects ---------------------------------------------------------------------------------------------------

    def _perform(self, node: SimNode, effect: Effect) -> None:
        match effect:
            case Emit():
                self.emitted[effect.event] += 1
                self.on_emit(node, effect)
            case Send():
                self._send(node, effect)
            case SetTimer():
                if effect.timer.kind == "reconcile" and not self._reads(node.number):
                    return
                at = max(effect.at - node.clock_s, self.now)
                node.timers[effect.timer] = (at, self._schedule(at, node.number, effect.timer))
            case CancelTimer():
                node.timers.pop(effect.timer, None)
            case Publish():
                self.publish(node, effect)
            case JoinCell() | LeaveCell():
                assert self.meshes is not None, "a swarm that splits, in a world without cells"
                if isinstance(effect, LeaveCell):
                    self.meshes.leave(node.number, effect.cell)
                    return
                self.meshes.join(node.number, effect.cell)
                self.on_cell(node, effect.cell)
            case Connect() | Provide() | FindProviders():
                self.on_ladder(node, effect)
            case Disconnect():
                self.call(self.now, partial(self._close, node.number, self.number_of[effect.peer]))
            case Dispatch() | Begin() | DeliverPromptLogprobs() | Deliver() | Finish() | Fail() | Abandon():
                assert self._perform_request is not None, "a request in a world without them"
                self._perform_request(node, effect)
            case _:
                assert_never(effect)

    def _close(self, one: int, other: int) -> None:
        if self.nodes[one] is not None and self.nodes[other] is not None:
            self.disconnect(one, other)
        else:
            self.forget(one, other)

    def _send(self, node: SimNode, effect: Send) -> None:
        receiver = self.number_of[effect.peer]
        if receiver not in node.near:
            return
        size = self._traffic.count_sent(node.number, effect.message)
        self.on_send(node, effect, size)
        delay = self.links.delay_s(node.number, receiver, self.now)
        if delay is None:
            return
        self.received[plane_of(effect.message)][receiver] += size
        if isinstance(effect.message, Reconcile | Repair) and not self._reads(receiver):
            return
        # One stream per pair: a later message does not arrive earlier.
        pair = (node.number, receiver)
        at = max(self.now + delay, self._arrived_at.get(pair, 0.0))
        self._arrived_at[pair] = at
        self._schedule(at, receiver, Received(node.peer, effect.message))

    def publish(self, node: SimNode, effect: Publish) -> None:
        """Flood a message through the mesh, from ``node`` on; its author is the owner of the digest."""
        self.on_publish(node, effect)
        hears, topic = self.is_up, None
        if self.meshes is not None:
            hears, topic = self.meshes.prepare(effect.cell, self.now) & self.is_up, effect.cell
        heard, first, sent, received = self.links.flood(node.number, self.now, hears, topic)
        reached = np.isfinite(heard)
        num_hearing = int(hears.sum()) if self.meshes is not None else len(hears)
        self._traffic.count_gossip(effect.message, sent, received, reached, hears, num_hearing)
        reached[node.number] = False
        if self._is_reader is not None:
            is_near = np.zeros(len(reached), dtype=np.bool_)
            is_near[sorted(node.near)] = True
            reached &= self._is_reader & is_near
            first[reached] = node.number
        now, peers, message = self.now, self.nodes, effect.message
        for number, delay, forwarder in zip(
            np.flatnonzero(reached).tolist(), heard[reached].tolist(), first[reached].tolist(), strict=True
        ):
            neighbour = peers[forwarder]
            assert neighbour is not None
            event = Gossiped(message.head.owner, neighbour.peer, effect.namespace, message, effect.cell)
            self._schedule(now + delay, number, event)

    def _reads(self, number: int) -> bool:
        return self._is_reader is None or bool(self._is_reader[number])

    def _schedule(self, at: float, number: int, what: Event | Timer | Callable[[], None]) -> int:
        self._num_scheduled += 1
        heapq.heappush(self._heap, (at, self._num_scheduled, number, what))
        return self._num_scheduled


def _limited(effects: Sequence[Effect], emitted: Counter[str]) -> Iterator[Effect]:
    """``effects`` without those that a node drops when one event causes more than MAX_SENDS_PER_PEER."""
    sends: Counter[bytes] = Counter()
    for effect in effects:
        if isinstance(effect, Send):
            sends[effect.peer] += 1
            if sends[effect.peer] > MAX_SENDS_PER_PEER:
                emitted["send_dropped"] += 1
                continue
        yield effect

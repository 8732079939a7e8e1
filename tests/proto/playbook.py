"""A small world for protocol tests: overlays, a bag of messages between them, and the test's own clock."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.config import OverlayConfig
from mycelia.proto.digests.digest import OwnDigest
from mycelia.proto.effects import (
    CancelTimer,
    Effect,
    JoinCell,
    LeaveCell,
    Publish,
    Send,
    SetTimer,
)
from mycelia.proto.events import CacheChanged, Connected, Event, Gossiped, ModelServed, Received, Timer, TimerFired
from mycelia.proto.overlay import Overlay
from mycelia.proto.wire.messages import Vitals

NAMESPACE = b"n" * 16
EPOCH_START = 1_800_000_000.0
IDLE = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=4)


def peer_id(number: int) -> bytes:
    return b"peer" + bytes((number,))


def sign_as(owner: bytes) -> Callable[[bytes], bytes]:
    """A signature that only tests can make; real ones are Ed25519."""
    return lambda payload: blake3(owner + payload).digest(length=64)


def verify(owner: bytes, payload: bytes, signature: bytes) -> bool:
    return sign_as(owner)(payload) == signature


@dataclass
class Node:
    """An overlay with its timers and its effects."""

    overlay: Overlay
    timers: dict[Timer, float] = field(default_factory=dict)
    cells: set[Cell] = field(default_factory=lambda: {ROOT})
    """Cells whose gossip it receives."""
    checked: list[bytes] = field(default_factory=list)
    """The owners whose signatures it checked, in order."""
    effects: list[Effect] = field(default_factory=list)
    """All effects since the last ``take``, in order."""

    @property
    def own_digest(self) -> OwnDigest:
        """The digest that it announces in NAMESPACE."""
        own = self.overlay.own_digest(NAMESPACE)
        assert own is not None
        return own

    def take(self, kind: type) -> list[Effect]:
        """Remove and return the effects of one kind."""
        taken = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return taken


class World:
    """Overlays that are all connected with each other. Only the test delivers messages."""

    check_every = 1
    """Number of events after which the invariants are checked."""
    _num_events = 0

    def __init__(self, num_nodes: int, seed: int = 0, config: OverlayConfig = OverlayConfig()) -> None:
        self.rng = random.Random(seed)
        self.now = EPOCH_START
        self.config = config
        self.nodes: dict[bytes, Node] = {}
        self.in_flight: list[tuple[bytes, Event]] = []
        """(receiver, event) in the order of sending."""
        for number in range(num_nodes):
            self.start(peer_id(number))

    def start(self, me: bytes) -> Node:
        """Start (or restart, with an empty memory) a node; it serves NAMESPACE and is connected to all others."""
        rng = random.Random(self.rng.random())
        checked = list[bytes]()

        def counted(owner: bytes, payload: bytes, signature: bytes) -> bool:
            checked.append(owner)
            return verify(owner, payload, signature)

        node = Node(Overlay(me, self.config, rng, sign_as(me), counted), checked=checked)
        self.nodes[me] = node
        served = ModelServed(NAMESPACE, "model", 2048, IDLE, int(self.now * 1000))
        self.handle(me, served)
        for other in sorted(self.nodes):
            if other != me:
                self.handle(me, Connected(other, "/memory"))
                self.handle(other, Connected(me, "/memory"))
        return node

    def handle(self, me: bytes, event: Event) -> list[Effect]:
        """Give one event to one node; its messages join ``in_flight``, other effects are kept at the node."""
        node = self.nodes[me]
        effects = node.overlay.handle(event, self.now)
        for effect in effects:
            match effect:
                case Send():
                    self.in_flight.append((effect.peer, Received(me, effect.message)))
                case Publish():
                    for other in sorted(self.nodes):
                        if other != me and effect.cell in self.nodes[other].cells:
                            gossip = Gossiped(me, me, effect.namespace, effect.message, effect.cell)
                            self.in_flight.append((other, gossip))
                case JoinCell():
                    node.cells.add(effect.cell)
                case LeaveCell():
                    node.cells.remove(effect.cell)
                case SetTimer():
                    node.timers[effect.timer] = effect.at
                case CancelTimer():
                    node.timers.pop(effect.timer, None)
                case _:
                    node.effects.append(effect)
        self._num_events += 1
        if self._num_events % self.check_every == 0:
            node.overlay.check_invariants()
        return effects

    def store(self, me: bytes, leaf: int, tokens: Sequence[int]) -> None:
        self.handle(me, CacheChanged(NAMESPACE, [(leaf, tokens)], []))

    def evict(self, me: bytes, leaf: int) -> None:
        self.handle(me, CacheChanged(NAMESPACE, [], [leaf]))

    def deliver(self, index: int = 0) -> None:
        """Deliver one message in flight."""
        receiver, event = self.in_flight.pop(index)
        if receiver in self.nodes:
            self.handle(receiver, event)

    def deliver_all(self) -> None:
        """Deliver until nothing is in flight; bounded, because an exchange that never ends is a bug."""
        for _ in range(10_000):
            if not self.in_flight:
                return
            self.deliver()
        raise AssertionError("messages without end")

    def advance(self, seconds: float, deliver: bool = True) -> None:
        """Let time pass; timers fire in order, and messages arrive after each if ``deliver``."""
        until = self.now + seconds
        while True:
            due = [(at, me, t.kind, t) for me, n in self.nodes.items() for t, at in n.timers.items() if at <= until]
            if not due:
                break
            at, me, _, timer = min(due, key=lambda item: (item[0], item[1], item[2], item[3].subject))
            self.now = max(self.now, at)
            del self.nodes[me].timers[timer]
            self.handle(me, TimerFired(timer))
            if deliver:
                self.deliver_all()
        self.now = until
        if deliver:
            self.deliver_all()

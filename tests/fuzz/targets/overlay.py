"""Valid messages from arbitrary peers in arbitrary order: ``Overlay.handle`` raises nothing, keeps its invariants,
blames only the sender or signer of a wrong message, and asks no peer for more than its pace allows."""

import random
from collections import Counter

from mycelia.proto.cells.cells import Cell
from mycelia.proto.config import CellConfig, DigestConfig, OverlayConfig
from mycelia.proto.digests.digest import root_of
from mycelia.proto.digests.entry_set import EntrySet, keys_of, pack_keys
from mycelia.proto.effects import Effect, Emit, Publish, Send, SetTimer
from mycelia.proto.events import (
    CacheChanged,
    Connected,
    Disconnected,
    Event,
    Gossiped,
    ModelServed,
    Received,
    Timer,
    TimerFired,
)
from mycelia.proto.overlay import Overlay
from mycelia.proto.planes.membership import QUESTIONS_BURST, QUESTIONS_PER_S
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.messages import (
    MAX_SMALL,
    Announce,
    Delta,
    Head,
    Hello,
    Message,
    Reconcile,
    Repair,
    RepairRequest,
    Served,
    Subscribe,
    Version,
    Vitals,
    VitalsUpdate,
)
from tests.proto.playbook import EPOCH_START, IDLE, NAMESPACE, sign_as, verify
from tests.proto.wire.test_hostile import signed

ME = b"fuzzed node"
PEERS = [b"peer%d" % number for number in range(6)]
OWNERS = [*PEERS, *(b"owner%d" % number for number in range(6)), ME]
SPACES = (NAMESPACE, NAMESPACE, NAMESPACE, b"other namespace!")
ADDRESSES = ("/ip4/127.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip6/2600::1/tcp/1", "/memory", "")
BLOCKS = (0, 1, 2, 3, 5, 8, 2**63, 2**64 - 1)
EPOCH = int(EPOCH_START * 1000)
CONFIG = OverlayConfig(
    digest=DigestConfig(max_owners=4, max_entries=48, max_floors=3, send_burst_bytes=4_000.0, send_bytes_per_s=400.0),
    cells=CellConfig(max_cell_nodes=4, min_cell_nodes=2, min_cell_peers=1, split_hold_s=1.0, newcomer_s=1.0),
    max_peers=4,
)
"""Limits so small that everything is soon full."""

Step = tuple[str, int, int, bytes, float]
"""What happens, to or by which peer, a number, a message, and the seconds before it."""


class OverlaySteps:
    """A node's inputs that peers can cause."""

    name = "overlay"
    weight = 0.1
    """A check takes 3 ms."""

    def make(self, rng: random.Random) -> list[Step]:
        return [_step(rng) for _ in range(rng.choice((4, 16, 48)))]

    def check(self, item: list[Step]) -> bool:
        rng = random.Random(1)
        overlay = Overlay(ME, CONFIG, rng, sign_as(ME), verify)
        now, timers, asked = EPOCH_START, dict[Timer, float](), Counter[bytes]()
        overlay.handle(ModelServed(NAMESPACE, "model", 2_048, IDLE, EPOCH), now)
        for kind, number, other, data, seconds in item:
            now += seconds
            for timer, at in sorted(timers.items(), key=lambda pair: (pair[1], pair[0].kind)):
                if at <= now and timers.get(timer) == at:
                    del timers[timer]
                    _perform(overlay.handle(TimerFired(timer), now), timers, asked)
            event = _event(kind, PEERS[number], PEERS[other], data)
            effects = overlay.handle(event, now)
            _perform(effects, timers, asked)
            _check_blame(event, effects)
        overlay.check_invariants()
        most = QUESTIONS_BURST + QUESTIONS_PER_S * (now - EPOCH_START) + len(item)
        assert max(asked.values(), default=0) <= most, "a peer is asked for too much"
        return not overlay.refusals


def _perform(effects: list[Effect], timers: dict[Timer, float], asked: Counter[bytes]) -> None:
    for effect in effects:
        if isinstance(effect, Send | Publish):
            assert decode(encode(effect.message)) == effect.message
        if isinstance(effect, Send) and isinstance(effect.message, Hello | Subscribe | RepairRequest | Reconcile):
            asked[effect.peer] += 1
        if isinstance(effect, SetTimer):
            timers[effect.timer] = effect.at


def _check_blame(event: Event, effects: list[Effect]) -> None:
    blamed = [e.fields["peer"] for e in effects if isinstance(e, Emit) and e.event == "peer_offence"]
    if not blamed:
        return
    assert isinstance(event, Received | Gossiped)
    sender = event.peer if isinstance(event, Received) else event.author
    head = getattr(event.message, "head", None)
    assert blamed == [sender] or (head is not None and blamed == [head.owner]), "somebody else pays"


def _event(kind: str, peer: bytes, other: bytes, data: bytes) -> Event:
    match kind:
        case "connected":
            return Connected(peer, data.decode())
        case "disconnected":
            return Disconnected(peer)
        case "stored":
            return CacheChanged(NAMESPACE, [(len(data), list(data) * 64)], [len(data) ^ 1])
    message = decode(data)
    if kind == "gossiped":
        assert isinstance(message, Delta | Announce)
        cell = Cell() if len(data) % 4 else Cell(1, len(data) % 2)
        return Gossiped(message.head.owner if len(data) % 5 else peer, other, message.head.namespace, message, cell)
    return Received(peer, message)  # type: ignore[arg-type]


# --- making them ---------------------------------------------------------------------------------------------------


def _step(rng: random.Random) -> Step:
    numbers = rng.randrange(len(PEERS)), rng.randrange(len(PEERS))
    seconds = rng.choice((0.0, 0.0, 0.0, 0.1, 3.0, 31.0, 95.0))
    way = rng.random()
    if way < 0.1:
        return "connected", *numbers, rng.choice(ADDRESSES).encode(), seconds
    if way < 0.14:
        return "disconnected", *numbers, b"", seconds
    if way < 0.18:
        return "stored", *numbers, rng.randbytes(rng.randrange(1, 4)), seconds
    if way < 0.4:
        head, entries = _head(rng)
        gossip: Message = Announce(head=head)
        if rng.random() < 0.6:
            upserts, removes = _changes(rng, entries)
            gossip = Delta(head=head, from_seq=rng.randrange(3), upserts=upserts, removes=removes)
        return "gossiped", *numbers, encode(gossip), seconds
    return "received", *numbers, encode(_control(rng, PEERS[numbers[0]])), seconds


def _control(rng: random.Random, sender: bytes) -> Message:
    match rng.randrange(8):
        case 0:
            served = (_served(rng), _served(rng), _served(rng))[: rng.randrange(4)]
            return Hello(wire_version=rng.choice((1, 1, 1, 2, 3)), agent="", served=served)
        case 1:
            return VitalsUpdate(namespace=rng.choice(SPACES), vitals=_vitals(rng))
        case 2:
            return Subscribe(namespace=rng.choice(SPACES), seconds=rng.choice((0, 1, 20, MAX_SMALL)))
        case 3:
            return Reconcile(versions=tuple(_version(rng) for _ in range(rng.choice((0, 1, 4, 20)))))
        case 4:
            version = _version(rng)
            count, root = rng.choice(((0, bytes(16)), (1, root_of({1: 0})), (9, bytes(16))))
            return RepairRequest(
                owner=version.owner,
                namespace=version.namespace,
                epoch=version.epoch,
                seq=version.seq,
                count=count,
                root=root,
            )
    head, entries = _head(rng, sender)
    upserts, removes = _changes(rng, entries)
    return Repair(
        head=head, mode=rng.choice((0, 1, 1, 2, 2)), from_seq=rng.randrange(3), upserts=upserts, removes=removes
    )


def _head(rng: random.Random, sender: bytes = b"") -> tuple[Head, dict[int, int]]:
    owner = sender if sender and rng.random() < 0.2 else rng.choice(OWNERS)
    entries = dict.fromkeys(rng.sample(BLOCKS, rng.randrange(len(BLOCKS))), rng.choice((0, 0, 1)))
    entries |= dict.fromkeys(range(100, 100 + rng.choice((0, 0, 0, 3, 13, 60))), 0)
    issued_at = EPOCH + rng.choice((0, 1, 1_000, 60_000, 200_000, 10**10))
    head = signed(owner, entries, EPOCH + rng.choice((0, 0, 1)), rng.randrange(1, 7), issued_at)
    return head, entries


def _changes(rng: random.Random, entries: dict[int, int]) -> tuple[bytes, bytes]:
    """Usually the whole set, sometimes less or something else."""
    upserts = EntrySet.of(entries).pack()
    way = rng.random()
    if way < 0.1:
        return rng.randbytes(rng.randrange(30)), b""
    if way < 0.3:
        return upserts[: 9 * rng.randrange(len(entries) + 1)], b""
    return upserts, pack_keys(keys_of(rng.sample(BLOCKS, rng.choice((0, 0, 1, 3)))))


def _version(rng: random.Random) -> Version:
    return Version(
        owner=rng.choice(OWNERS),
        namespace=rng.choice(SPACES),
        epoch=rng.choice((0, EPOCH, EPOCH, 2**63 - 1)),
        seq=rng.choice((0, 1, 3, 9)),
    )


def _served(rng: random.Random) -> Served:
    context = rng.choice((0, 1, 2_048, MAX_SMALL))
    return Served(namespace=rng.choice(SPACES), model="model", context_tokens=context, vitals=_vitals(rng))


def _vitals(rng: random.Random) -> Vitals:
    numbers = [rng.choice((0, 1, 4, MAX_SMALL)) for _ in range(7)]
    return Vitals(
        queued_tokens=numbers[0],
        active_requests=numbers[1],
        waiting_requests=numbers[2],
        slots=numbers[3],
        prefill_rate=numbers[4],
        decode_rate=numbers[5],
        hold_ms=numbers[6],
    )

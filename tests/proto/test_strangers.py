"""Peers with free keys that invent owners, ask, flood and fill: the cost to a node; no honest node is cut off."""

from collections import Counter
from dataclasses import replace

import pytest

from mycelia.proto.admission.limits import TokenBucket
from mycelia.proto.config import DigestConfig, OverlayConfig
from mycelia.proto.digests.digest import LOG, SAME, OwnDigest, pack_entries, snapshot
from mycelia.proto.digests.estimates import State
from mycelia.proto.effects import Disconnect, Effect, Emit, Send
from mycelia.proto.events import Connected, Disconnected, Event, Gossiped, Received
from mycelia.proto.planes.membership import QUESTIONS_BURST, QUESTIONS_PER_S
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import (
    MAX_NAMESPACES,
    MAX_VECTOR,
    Announce,
    Head,
    Hello,
    Reconcile,
    Repair,
    RepairRequest,
    Served,
    Subscribe,
    Version,
)
from mycelia.proto.wire.refusals import Refusal
from tests.proto.playbook import EPOCH_START, IDLE, NAMESPACE, World, peer_id, sign_as
from tests.proto.wire.test_hostile import signed

HONEST = ME, PEER, RELAY, OTHER = [peer_id(number) for number in range(4)]
STRANGERS = [b"stranger%d" % number for number in range(5)]
CONFIG = DigestConfig()
HELLO = Hello(
    wire_version=1,
    agent="",
    served=(Served(namespace=NAMESPACE, model="model", context_tokens=2048, vitals=IDLE),),
)
CONTROL_RATE, CONTROL_BURST = 50.0, 200.0
"""As in node/network/libp2p/streams.py."""


class Listening(World):
    """Counts messages between nodes above the rate that the network accepts, and the offences that they count."""

    check_every = 20

    def __init__(self, num_nodes: int, config: OverlayConfig = OverlayConfig()) -> None:
        self._buckets: dict[tuple[bytes, bytes], TokenBucket] = {}
        self.sent: Counter[tuple[bytes, bytes]] = Counter()
        self.over: Counter[tuple[bytes, bytes]] = Counter()
        self.offences: Counter[object] = Counter()
        super().__init__(num_nodes, config=config)
        self.deliver_all()

    def handle(self, me: bytes, event: Event) -> list[Effect]:
        effects = super().handle(me, event)
        for effect in effects:
            if isinstance(effect, Send):
                pair = (me, effect.peer)
                bucket = self._buckets.setdefault(pair, TokenBucket(CONTROL_RATE, CONTROL_BURST, self.now))
                self.sent[pair] += 1
                self.over[pair] += not bucket.take(self.now)
            elif isinstance(effect, Emit) and effect.event == "peer_offence":
                self.offences[effect.fields["peer"]] += 1
        return effects

    def meet(self, stranger: bytes, says_hello: bool, address: str = "/ip4/127.0.0.1/tcp/9") -> None:
        for honest in sorted(self.nodes):
            self.handle(honest, Connected(stranger, address))
            if says_hello:
                self.handle(honest, Received(stranger, HELLO))


def invented(number: int, seq: int = 1, count: int = 1, now: float = EPOCH_START) -> Head:
    """A head of an owner that no node ever met."""
    entries = {number * 100_000 + place: 0 for place in range(count)}
    return signed(b"invented%d" % number, entries, seq=seq, issued_at=int(now * 1000))


def same(head: Head) -> Repair:
    return Repair(head=head, mode=SAME, from_seq=0, upserts=b"", removes=b"")


# --- owners that nobody ever met -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["repairs", "repairs after a hello", "gossip that honest nodes pass on"])
def test_owners_that_strangers_invent_make_no_honest_node_flood_another(way: str) -> None:
    world = Listening(4)
    for stranger in STRANGERS:
        world.meet(stranger, says_hello="hello" in way)
    before = Counter(world.sent)
    number = 0
    for second in range(20):
        for place, stranger in enumerate(STRANGERS):
            for _ in range(120 if second == 0 else 6):
                number += 1
                head = invented(number, now=world.now)
                if way.startswith("gossip"):
                    forwarder = HONEST[1 + place % 3]
                    world.handle(ME, Gossiped(head.owner, forwarder, NAMESPACE, Announce(head=head)))
                else:
                    world.handle(ME, Received(stranger, same(head)))
        world.advance(1.0)
    assert not world.offences & Counter(HONEST) and not world.over & Counter(
        {(one, other): 10**6 for one in HONEST for other in HONEST}
    )
    world.advance(40.0)
    sent = world.sent - before
    if way.startswith("gossip"):
        assert all(sent[ME, other] <= QUESTIONS_BURST + (QUESTIONS_PER_S + 2) * 60 for other in HONEST[1:])
    else:
        assert all(sent[ME, other] < 60 for other in HONEST[1:]), "nobody is asked for what only strangers told of"
    assert all(world.nodes[ME].overlay.estimates.state(other, NAMESPACE) is State.LIVE for other in HONEST[1:])


def test_gaps_that_one_peer_tells_of_take_no_place_of_others() -> None:
    world = Listening(2)
    for stranger in STRANGERS:
        world.meet(stranger, says_hello=True, address="/ip4/8.8.8.8/tcp/1")
    for number in range(500):
        world.handle(ME, Received(STRANGERS[number % 5], same(invented(number))))
    assert 0 < world.nodes[ME].overlay.digests.repairs.num_pending <= 64, "one subnet"
    world.store(PEER, 1, [1] * STRIDE * 40)
    world.advance(20.0)
    assert len(world.nodes[ME].overlay.estimates.entries(PEER, NAMESPACE)) == 40


# --- what is kept on whose word ------------------------------------------------------------------------------------


SMALL_ROOM = OverlayConfig(digest=replace(CONFIG, max_entries=3_200, max_owners=400))


def fill(world: Listening, stranger: bytes, first: int, num_owners: int = 16, count: int = 100) -> None:
    for number in range(first, first + num_owners):
        head = invented(number, count=count, now=world.now)
        entries = {number * 100_000 + place: 0 for place in range(count)}
        world.handle(ME, Received(stranger, snapshot(head, entries)))


@pytest.mark.parametrize(("says_hello", "share"), [(False, 1 / 16), (True, 3 / 16)])
def test_a_stranger_fills_a_small_share_of_the_index_and_honest_owners_have_room(
    says_hello: bool, share: float
) -> None:
    world = Listening(3, SMALL_ROOM)
    estimates = world.nodes[ME].overlay.estimates
    world.meet(STRANGERS[0], says_hello)
    fill(world, STRANGERS[0], 0, 170, 20)
    assert share * 3_200 - 20 < estimates.num_entries <= share * 3_200
    assert world.nodes[ME].overlay.refusals[Refusal.NO_ROOM] > 0
    far = OwnDigest(b"far", NAMESPACE, int(EPOCH_START * 1000), sign_as(b"far"), CONFIG)
    far.store(1, list(range(9, 409)))
    head = far.advance(world.now).head
    world.handle(ME, Received(RELAY, snapshot(head, far.entries)))
    assert len(estimates.entries(b"far", NAMESPACE)) == 400, "of an owner that is not connected"
    world.store(PEER, 1, [1] * STRIDE * 300)
    world.advance(20.0)
    assert len(estimates.entries(PEER, NAMESPACE)) == 300
    world.handle(ME, Disconnected(STRANGERS[0]))
    if not says_hello:
        assert estimates.num_entries == 700, "what it made the node keep went with it"
    world.advance(CONFIG.evict_s + 10)
    assert estimates.num_entries == 300, "as did the owner that was not heard again"


def test_keys_of_one_network_share_its_room_and_fill_only_their_own() -> None:
    world = Listening(3, SMALL_ROOM)
    estimates = world.nodes[ME].overlay.estimates
    for place, stranger in enumerate(STRANGERS):
        world.meet(stranger, says_hello=True, address=f"/ip4/8.8.8.{place}/tcp/1")
        fill(world, stranger, place * 100)
    assert estimates.num_entries <= 600
    for place, stranger in enumerate(STRANGERS):  # (now from five networks: they fill all there is)
        world.handle(ME, Disconnected(stranger))
        world.meet(stranger, says_hello=True, address=f"/ip4/8.8.{place + 9}.1/tcp/1")
        fill(world, stranger, 1_000 + place * 100)
    assert estimates.num_entries >= 3_000
    world.store(PEER, 1, [1] * STRIDE * 300)
    world.advance(20.0)
    assert len(estimates.entries(PEER, NAMESPACE)) == 300
    head = signed(b"far", dict.fromkeys(range(1, 301), 0), issued_at=int(world.now * 1000))
    world.handle(ME, Received(RELAY, snapshot(head, dict.fromkeys(range(1, 301), 0))))
    assert len(estimates.entries(b"far", NAMESPACE)) == 300, "at the cost of who holds the most"


# --- no offence for what others cause ------------------------------------------------------------------------------


def test_a_relay_that_an_owner_deceived_pays_nothing_and_the_set_comes_whole() -> None:
    """The owner signs two sets under one version and sends ME one, RELAY the other; RELAY's log is honest."""
    world = Listening(3)
    world.meet(STRANGERS[0], says_hello=True)
    for number in range(12):
        owner = b"owner%d" % number
        shown, other, then = {5: 0, 6: 0, 7: 0}, {8: 0}, {5: 0, 6: 0, 7: 0, 9: 0}
        issued_at = int(world.now * 1000)
        world.handle(ME, Received(STRANGERS[0], snapshot(signed(owner, other, issued_at=issued_at), other)))
        world.handle(RELAY, Received(STRANGERS[0], snapshot(signed(owner, shown, issued_at=issued_at), shown)))
        newer = signed(owner, then, seq=2, issued_at=issued_at)
        log = Repair(head=newer, mode=LOG, from_seq=1, upserts=pack_entries({9: 0}), removes=b"")
        world.handle(RELAY, Received(STRANGERS[0], log))
        world.handle(ME, Gossiped(owner, RELAY, NAMESPACE, Announce(head=newer)))
        world.advance(8.0)
        assert world.nodes[ME].overlay.estimates.entries(owner, NAMESPACE) == then
    assert not world.offences
    assert 0 < world.nodes[ME].overlay.refusals[Refusal.WRONG_DELTA] <= 6, "then its logs are not looked at for a while"


def test_answers_to_a_node_in_its_last_life_do_not_flood_its_next() -> None:
    world = Listening(2)
    owners = [b"owner%d" % number for number in range(60)]
    for owner in owners:  # (PEER fetches them itself, and ME's questions wait there)
        head = signed(owner, {5: 0}, issued_at=int(world.now * 1000))
        world.handle(PEER, Gossiped(owner, ME, NAMESPACE, Announce(head=head)))
        nothing = RepairRequest(owner=owner, namespace=NAMESPACE, epoch=0, seq=0, count=0, root=bytes(16))
        world.handle(PEER, Received(ME, nothing))
    world.handle(PEER, Disconnected(ME))
    world.handle(PEER, Connected(ME, "/memory"))
    before = world.sent[PEER, ME]
    for owner in owners:
        head = signed(owner, {5: 0}, issued_at=int(world.now * 1000))
        world.handle(PEER, Received(RELAY, snapshot(head, {5: 0})))
    assert world.sent[PEER, ME] == before


def test_an_owner_of_as_many_models_as_there_can_be_may_change_them_all() -> None:
    spaces = [bytes([number]) * 16 for number in range(MAX_NAMESPACES)]
    world = Listening(2)
    owners = [OwnDigest(PEER, space, int(EPOCH_START * 1000), sign_as(PEER), CONFIG) for space in spaces]
    estimates = world.nodes[ME].overlay.estimates
    for space in spaces:
        estimates.follow(space)
    for _ in range(20):  # (two seconds apart, as fast as an owner may; delayed on the way, they come at once)
        for own in owners:
            head = own.advance(world.now).head
            world.handle(ME, Gossiped(PEER, PEER, head.namespace, Announce(head=head)))
    assert not world.offences


# --- bytes and time ------------------------------------------------------------------------------------------------


def ask(owner: bytes, number: int = 0) -> RepairRequest:
    return RepairRequest(owner=owner, namespace=NAMESPACE, epoch=0, seq=number, count=0, root=bytes(16))


@pytest.mark.parametrize("address", ["/ip4/127.0.0.1/tcp/9", "/ip4/8.8.8.8/tcp/9"])
@pytest.mark.parametrize("says_hello", [False, True])
def test_who_asks_for_much_delays_no_head_and_no_answer_to_others(address: str, says_hello: bool) -> None:
    small = replace(CONFIG, send_burst_bytes=400_000.0, send_bytes_per_s=20_000.0)
    world = Listening(2, OverlayConfig(digest=small))
    strangers = [b"stranger%d" % number for number in range(18)]
    for stranger in strangers:
        world.meet(stranger, says_hello, address)
    for number in range(60):
        world.store(ME, number, [number] * STRIDE * 20)
    world.advance(20.0)
    traffic, own = world.nodes[ME].overlay.traffic, world.nodes[ME].overlay.own_digest(NAMESPACE)
    for number in range(5):
        for _ in range(12):
            for stranger in strangers:
                world.handle(ME, Received(stranger, ask(ME)))
        assert own is not None and own.head is not None
        seq = own.head.seq
        world.store(ME, 100 + number, [100 + number] * STRIDE)
        answers = [e for e in world.handle(ME, Received(PEER, ask(ME))) if isinstance(e, Send)]
        assert [e.peer for e in answers] == [PEER], "an honest reader is answered all the time"
        postponed = traffic.num_postponed
        world.advance(30.0)
        assert own.head.seq > seq and traffic.num_postponed == postponed, "and heads go out at once"
    assert traffic.num_dropped > 100


def vector(size: int) -> Reconcile:
    versions = (Version(owner=b"owner%d" % n, namespace=NAMESPACE, epoch=int(EPOCH_START), seq=n) for n in range(size))
    return Reconcile(versions=tuple(versions))


def test_reconciling_without_pause_is_an_offence_and_coming_late_is_none() -> None:
    world = Listening(3)
    full = vector(MAX_VECTOR)
    world.handle(ME, Received(PEER, full))
    for _ in range(4):  # (no delay on the way brings more than this at once)
        world.handle(ME, Received(PEER, full))
    assert not world.offences
    cut = None
    for number in range(50):
        if any(isinstance(effect, Disconnect) for effect in world.handle(ME, Received(RELAY, full))):
            cut = cut or number
    assert cut is not None and cut < 20 and not world.offences[PEER]
    asked = [e for to, e in world.in_flight if to == PEER and isinstance(e, Received)]
    assert 0 < sum(isinstance(e.message, RepairRequest) for e in asked) <= CONFIG.requests_per_reconcile


def test_hellos_without_end_are_looked_at_now_and_then() -> None:
    world = Listening(2)
    before = world.sent[ME, PEER]
    for _ in range(2_000):
        world.handle(ME, Received(PEER, HELLO))
        world.now += 0.02
    assert world.nodes[ME].overlay.refusals[Refusal.TOO_SOON] > 1_800
    assert world.sent[ME, PEER] - before < QUESTIONS_BURST + 50 and not world.offences


# --- places --------------------------------------------------------------------------------------------------------


def crowded(address: str, says_hello: bool) -> tuple[Listening, list[bytes], list[Effect]]:
    """A node whose members are all from ``address``, and its effects when a peer of another network comes."""
    world = Listening(1, OverlayConfig(max_peers=8))
    crowd = [b"crowd%d" % number for number in range(8)]
    for one in crowd:
        world.meet(one, says_hello, address)
    return world, crowd, world.handle(ME, Connected(PEER, "/ip4/9.9.9.9/tcp/1"))


def test_keys_of_one_network_keep_nobody_of_another_out() -> None:
    for says_hello in (False, True):
        world, crowd, effects = crowded("/ip4/8.8.8.8/tcp/1", says_hello)
        (gone,) = [effect.peer for effect in effects if isinstance(effect, Disconnect)]
        assert gone in crowd and world.nodes[ME].overlay.members.is_connected(PEER)
        world.handle(ME, Disconnected(gone))
        again = world.handle(ME, Connected(crowd[0] + b"again", "/ip4/8.8.8.9/tcp/1"))
        refused = [effect.peer for effect in again if isinstance(effect, Disconnect)]
        assert refused == ([crowd[0] + b"again"] if says_hello else refused)


def test_silent_clients_make_way_for_anybody() -> None:
    _, crowd, effects = crowded("/ip4/127.0.0.1/tcp/1", says_hello=False)
    assert [effect.peer for effect in effects if isinstance(effect, Disconnect)] == [crowd[0]]


def test_nodes_of_many_networks_make_way_for_nobody() -> None:
    world = Listening(1, OverlayConfig(max_peers=8))
    for number in range(8):
        world.meet(b"node%d" % number, says_hello=True, address=f"/ip4/8.8.{number}.8/tcp/1")
    effects = world.handle(ME, Connected(PEER, "/ip4/9.9.9.9/tcp/1"))
    assert [effect.peer for effect in effects if isinstance(effect, Disconnect)] == [PEER]


def test_subscribers_of_one_network_take_the_leases_of_no_other() -> None:
    world = Listening(3)
    lease = Subscribe(namespace=NAMESPACE, seconds=20)
    for honest in (PEER, RELAY):
        world.handle(ME, Received(honest, lease))
    for number in range(80):
        stranger = b"subscriber%d" % number
        world.meet(stranger, says_hello=True, address=f"/ip4/8.8.8.{number}/tcp/1")
        world.handle(ME, Received(stranger, lease))
    subscribers = world.nodes[ME].overlay.reports.subscribers(NAMESPACE, world.now)
    assert {PEER, RELAY} <= set(subscribers) and len(subscribers) == 64

"""Which peers get reports of this node's load, and whose load it asks for."""

import random

import msgspec
import numpy as np

from mycelia.proto import WIRE_VERSION
from mycelia.proto.config import OverlayConfig, RoutingConfig, VitalsConfig
from mycelia.proto.effects import Effect, Send, SetTimer
from mycelia.proto.events import Connected, ModelServed
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.vitals import VitalsPlane
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import Rating, choose
from mycelia.proto.wire.messages import Hello, Served, Subscribe, Vitals, VitalsUpdate

ME, *PEERS = (bytes([n] * 32) for n in range(41))
PEER, LATE = PEERS[:2]
NAMESPACE = b"n" * 16
CONFIG = VitalsConfig()


def load(active: int) -> Vitals:
    return Vitals(queued_tokens=0, active_requests=active, waiting_requests=0, slots=8)


class Node:
    """Both sides of a node's subscriptions, and the reports it got."""

    def __init__(self, config: VitalsConfig = CONFIG) -> None:
        overlay = OverlayConfig(vitals=config)
        self.members = Membership(ME, overlay)
        self.plane = VitalsPlane(ME, config, random.Random(1), self.members)
        self.members.on_served(ModelServed(NAMESPACE, "m", 100, load(0), 1), 0.0)

    def join(self, *peers: bytes) -> None:
        served = Served(namespace=NAMESPACE, model="m", context_tokens=100, vitals=load(0))
        for peer in peers:
            self.members.on_connected(Connected(peer, ""), 0.0)
            self.members.on_hello(peer, Hello(wire_version=WIRE_VERSION, agent="", served=(served,)), 0.0)

    def told(self, active: int, now: float) -> dict[bytes, int]:
        """Peer -> the load reported to it after a change to ``active``."""
        self.plane.on_own(NAMESPACE, load(active), now)
        return updates(self.plane.on_due(NAMESPACE, now))

    def decide(self, *peers: bytes, now: float) -> set[bytes]:
        """A decision between these peers, the first one chosen; returns the peers that the node then subscribes to."""
        candidates = Candidates.of([Candidate(peer, 0, 0, is_local=peer == ME) for peer in peers])
        decision = choose(candidates, 1, RoutingConfig(), rating=Rating(np.arange(float(len(peers))), "test"))
        return asked(self.plane.on_decision(NAMESPACE, decision, now))

    def age(self, peer: bytes, now: float) -> float:
        """Age of the peer's load as routing sees it."""
        table = self.members.loads(NAMESPACE).candidates(1, {}, {}, {}, set(), now)
        return float(table.load_age_s[list(table.peers).index(peer)])


def updates(effects: list[Effect]) -> dict[bytes, int]:
    sent = [(effect.peer, effect.message) for effect in effects if isinstance(effect, Send)]
    return {peer: message.vitals.active_requests for peer, message in sent if isinstance(message, VitalsUpdate)}


def asked(effects: list[Effect]) -> set[bytes]:
    return {effect.peer for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Subscribe)}


def test_a_load_that_is_again_what_peers_believe_is_not_told() -> None:
    node = Node()
    node.join(PEER)
    assert node.told(1, 1.0) == {PEER: 1}
    node.plane.on_own(NAMESPACE, load(2), 2.0)
    assert node.told(1, 2.5) == {}
    assert node.told(2, 3.0) == {PEER: 2}


def test_with_more_peers_than_are_told_at_once_every_change_is_told() -> None:
    node = Node(VitalsConfig(vitals_fanout=1))
    node.join(PEER, LATE)
    assert len(node.told(1, 1.0)) == 1
    node.plane.on_own(NAMESPACE, load(2), 2.0)
    assert len(node.told(1, 2.5)) == 1


def test_whoever_subscribed_is_told_at_once_and_of_every_change_until_the_lease_ends() -> None:
    node = Node(VitalsConfig(vitals_fanout=1))
    node.join(*PEERS[:20])
    subscribe = Subscribe(namespace=NAMESPACE, seconds=10)
    assert updates(node.plane.on_subscribe(PEER, subscribe, 1.0)) == {PEER: 0}
    assert node.told(1, 2.0) == {PEER: 1}
    assert node.told(2, 3.0) == {PEER: 2}
    told = [node.told(3 + number, 12.0 + 2 * number) for number in range(8)]
    assert all(len(peers) == 1 for peers in told) and any(PEER not in peers for peers in told)


def test_however_many_subscribe_the_others_are_told_now_and_then() -> None:
    node = Node(VitalsConfig(vitals_fanout=4))
    node.join(*PEERS)
    for peer in PEERS[:20]:
        node.plane.on_subscribe(peer, Subscribe(namespace=NAMESPACE, seconds=1_000), 0.0)
    told = [set(node.told(1 + number, 1.0 + number)) for number in range(15)]
    assert all(len(peers) == 21 for peers in told) and len(set().union(*told)) > 25


def test_a_subscriber_that_was_told_of_a_load_that_went_by_is_told_that_it_did() -> None:
    node = Node()
    node.join(PEER, LATE)
    assert node.told(1, 1.0) == {PEER: 1, LATE: 1}
    node.plane.on_own(NAMESPACE, load(2), 1.5)
    node.plane.on_subscribe(LATE, Subscribe(namespace=NAMESPACE, seconds=20), 1.6)
    assert node.told(1, 2.0) == {PEER: 1, LATE: 1}


def test_leases_are_bounded_in_number_and_time_and_given_only_to_nodes() -> None:
    node = Node(VitalsConfig(max_subscribers=2))
    node.join(*PEERS[:3])
    forever = Subscribe(namespace=NAMESPACE, seconds=2**31 - 1)
    assert node.plane.on_subscribe(b"stranger", forever, 0.0) == []
    assert node.plane.on_subscribe(PEER, msgspec.structs.replace(forever, namespace=b"o" * 16), 0.0) == []
    assert all(node.plane.on_subscribe(peer, forever, 0.0) for peer in PEERS[:3]), "the third in the place of another"
    node.plane.check_invariants()
    node.plane.on_subscribe(PEERS[2], forever, CONFIG.lease_s + 1)
    assert node.plane.subscribers(NAMESPACE, CONFIG.lease_s + 1) == [PEERS[2]], "the others' leases are over"
    node.members.on_disconnected(PEERS[2], 30.0)
    node.plane.on_peer_lost(PEERS[2])
    node.plane.check_invariants()


def test_a_node_subscribes_to_the_few_that_its_decisions_are_between() -> None:
    node = Node()
    node.join(*PEERS)
    assert node.decide(ME, *PEERS, now=0.0) == set(PEERS[: CONFIG.rivals - 1])
    assert node.decide(ME, *PEERS, now=1.0) == set(), "it did already"
    for number in range(10):  # (many other peers in a short time)
        node.decide(*PEERS[3 * number : 3 * number + 3], now=1.5)
        node.plane.check_invariants()
    assert len(asked(node.plane.on_renewal_due(NAMESPACE, 10.0))) == CONFIG.subscriptions
    assert node.decide(PEERS[39], now=10.0) == {PEERS[39]}, "in the place of the one that was not looked at for longest"
    effects = node.plane.on_renewal_due(NAMESPACE, 25.0)
    assert asked(effects) == {PEERS[39]} and any(isinstance(effect, SetTimer) for effect in effects)
    assert node.plane.on_renewal_due(NAMESPACE, 60.0) == []


def test_silence_of_a_subscribed_node_is_no_old_news() -> None:
    node = Node()
    node.join(PEER, LATE)
    node.decide(PEER, now=0.0)
    for peer in (PEER, LATE):
        node.plane.on_update(peer, VitalsUpdate(namespace=NAMESPACE, vitals=load(3)), 5.0)
    assert node.age(PEER, 20.0) == 0.0 and node.age(LATE, 20.0) == 15.0
    assert node.age(PEER, 6.0 + CONFIG.lease_s) == 1.0, "unless it is not asked again"
    node.decide(LATE, now=30.0)
    node.plane.on_update(LATE, VitalsUpdate(namespace=NAMESPACE, vitals=load(3)), 31.0, is_reply=True)
    assert node.age(LATE, 41.0) == 10.0, "a reply is no subscription"

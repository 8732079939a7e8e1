"""Who is told of this node's load, and when not."""

import random

from proto import WIRE_VERSION
from proto.config import OverlayConfig
from proto.effects import Send
from proto.events import Connected, ModelServed
from proto.membership import Membership
from proto.messages import Hello, Served, Vitals, VitalsUpdate

ME, PEER, LATE = (bytes([n] * 32) for n in range(3))
NAMESPACE = b"n" * 16


def load(active: int) -> Vitals:
    return Vitals(queued_tokens=0, active_requests=active, waiting_requests=0, slots=8)


def join(members: Membership, peer: bytes) -> None:
    served = Served(namespace=NAMESPACE, model="m", context_tokens=100, vitals=load(0))
    members.on_connected(Connected(peer, ""), 0.0)
    members.on_hello(peer, Hello(wire_version=WIRE_VERSION, agent="", served=(served,)), 0.0)


def told(members: Membership, active: int, now: float) -> list[int]:
    """The loads that peers are told of after a change to ``active``."""
    members.on_vitals(NAMESPACE, load(active), now)
    sent = [effect.message for effect in members.on_vitals_due(NAMESPACE, now) if isinstance(effect, Send)]
    return [message.vitals.active_requests for message in sent if isinstance(message, VitalsUpdate)]


def test_a_load_that_is_again_what_peers_believe_is_not_told() -> None:
    members = Membership(ME, OverlayConfig(), random.Random(1))
    members.on_served(ModelServed(NAMESPACE, "m", 100, load(0), 1), 0.0)
    join(members, PEER)
    assert told(members, 1, 1.0) == [1]
    members.on_vitals(NAMESPACE, load(2), 2.0)
    assert told(members, 1, 2.5) == []
    assert told(members, 2, 3.0) == [2]
    # Whoever comes in between learns another load by its Hello, so the old one is news to it.
    members.on_vitals(NAMESPACE, load(3), 4.0)
    join(members, LATE)
    assert told(members, 2, 4.5) == [2, 2]


def test_with_more_peers_than_are_told_at_once_every_change_is_told() -> None:
    members = Membership(ME, OverlayConfig(vitals_fanout=1), random.Random(1))
    members.on_served(ModelServed(NAMESPACE, "m", 100, load(0), 1), 0.0)
    join(members, PEER)
    join(members, LATE)
    assert told(members, 1, 1.0) == [1]
    members.on_vitals(NAMESPACE, load(2), 2.0)
    assert told(members, 1, 2.5) == [1]

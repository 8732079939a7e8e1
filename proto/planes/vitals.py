"""Load reports: to which peers this node reports its load, and whose load it asks for.

A node reports its load after a change, at most each ``vitals_interval_s``, to all subscribers and to some random other
nodes, at most ``vitals_fanout`` of them together unless there are more subscribers. A node that routes subscribes to
the nodes that were among the cheapest in its recent decisions. A subscription is a lease, renewed while it is used; the
load that comes at once confirms it. Replies of all kinds bring the load too.

Silence of a node with a valid subscription means that its load is unchanged, so it does not age
(``Member.holds_until``).

Invariants: at most ``max_subscribers`` leases are given per namespace and ``subscriptions`` are held; both end by
themselves. Leases are given only for namespaces that this node serves, to nodes that are connected.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence

from mycelia.proto.config import VitalsConfig
from mycelia.proto.effects import Effect, Send, SetTimer
from mycelia.proto.events import Timer
from mycelia.proto.planes.membership import Membership
from mycelia.proto.routing.choose import Decision
from mycelia.proto.wire.messages import Subscribe, Vitals, VitalsUpdate


class VitalsPlane:
    """Both sides of the subscriptions."""

    def __init__(self, me: bytes, config: VitalsConfig, rng: random.Random, members: Membership) -> None:
        self._me = me
        self._config = config
        self._rng = rng
        self._members = members
        self._sent_at: dict[bytes, float] = {}
        self._pending: set[bytes] = set()
        self._told: dict[bytes, Vitals] = {}
        """Namespace -> the load that every subscriber knows."""
        self._leases: dict[bytes, dict[bytes, float]] = {}
        """Namespace -> subscriber -> until when."""
        self._wanted: dict[bytes, OrderedDict[bytes, float]] = {}
        """Namespace -> node subscribed to -> when a decision last had it among the cheapest, the latest last."""

    # --- this node's own load --------------------------------------------------------------------------------------

    def on_own(self, namespace: bytes, vitals: Vitals, now: float) -> list[Effect]:
        if not self._members.on_own_vitals(namespace, vitals, now) or namespace in self._pending:
            return []
        self._pending.add(namespace)
        due = max(now, self._sent_at.get(namespace, 0.0) + self._config.vitals_interval_s)
        return [SetTimer(Timer("vitals", namespace=namespace), due)]

    def on_withdrawn(self, namespace: bytes) -> None:
        """This node serves the model no more: nobody gets its load."""
        self._leases.pop(namespace, None)
        self._told.pop(namespace, None)

    def tell_all(self, now: float) -> list[Effect]:
        """Report to all peers at once: this node takes no new requests, or takes them again."""
        effects: list[Effect] = []
        for served in self._members.own():
            self._members.on_own_vitals(served.namespace, served.vitals, now)
            peers = [member.peer for member in self._members.nodes(served.namespace)]
            effects += self._tell(served.namespace, peers, now)
        return effects

    def on_due(self, namespace: bytes, now: float) -> list[Effect]:
        """Report the load, unless it is again what all peers know."""
        self._pending.discard(namespace)
        vitals = self._members.told_vitals(namespace)
        if vitals is None or vitals == self._told.get(namespace):
            return []
        subscribers = self.subscribers(namespace, now)
        others = [member.peer for member in self._members.nodes(namespace) if member.peer not in subscribers]
        # Nodes without a subscription must not believe the busiest moment's report for ever.
        fanout = self._config.vitals_fanout
        room = max(fanout - len(subscribers), fanout // 4)
        is_part = len(others) > room
        if is_part:
            others = self._rng.sample(others, room)
        effects = self._tell(namespace, sorted([*subscribers, *others]), now)
        if is_part and not subscribers:
            # Some nodes know another load; they may get the next report though nothing changes until then.
            del self._told[namespace]
        return effects

    def on_subscribe(self, peer: bytes, message: Subscribe, now: float) -> list[Effect]:
        """``peer`` asks for reports. If there are too many, a random one of the largest subnet loses its lease."""
        vitals = self._members.told_vitals(message.namespace)
        if vitals is None or not self._members.is_node(peer):
            return []
        leases = self._leases.setdefault(message.namespace, {})
        for other in [other for other, until in leases.items() if until <= now]:
            del leases[other]
        if peer not in leases and len(leases) >= self._config.max_subscribers:
            del leases[self._rng.choice(self._crowd(leases, peer))]
        if vitals != self._told.get(message.namespace):
            self._told.pop(message.namespace, None)  # (this peer now knows another load than the others)
        leases[peer] = now + min(message.seconds, self._config.lease_s)
        return [Send(peer, VitalsUpdate(namespace=message.namespace, vitals=vitals))]

    # --- that of others --------------------------------------------------------------------------------------------

    def on_decision(self, namespace: bytes, decision: Decision, now: float) -> list[Effect]:
        """Subscribe to the nodes that were among the cheapest in this decision."""
        if not self._config.subscriptions:
            return []
        wanted = self._wanted.setdefault(namespace, OrderedDict())
        is_first = not wanted
        effects: list[Effect] = []
        for place in reversed(decision.order(self._config.rivals)):
            peer = decision.candidates.peers[place]
            if peer == self._me:
                continue
            if peer not in wanted:
                if len(wanted) >= self._config.subscriptions:
                    oldest, used_at = next(iter(wanted.items()))
                    if now - used_at < self._config.settled_s:
                        continue
                    del wanted[oldest]
                effects += self._ask(peer, namespace, now)
            wanted[peer] = now
            wanted.move_to_end(peer)
        if is_first and wanted:
            effects.append(SetTimer(self._timer(namespace), now + self._config.lease_s / 2))
        return effects

    def on_renewal_due(self, namespace: bytes, now: float) -> list[Effect]:
        """Renew the leases that are used; drop the others."""
        wanted = self._wanted.get(namespace)
        if wanted is None:
            return []
        for peer in [peer for peer, used_at in wanted.items() if now - used_at > self._config.lease_s]:
            del wanted[peer]
        if not wanted:
            del self._wanted[namespace]
            return []
        effects = [effect for peer in sorted(wanted) for effect in self._ask(peer, namespace, now)]
        return [*effects, SetTimer(self._timer(namespace), now + self._config.lease_s / 2)]

    def on_update(self, peer: bytes, update: VitalsUpdate, now: float, is_reply: bool = False) -> None:
        """The load of ``peer``, by itself or with a reply, which says nothing about a subscription."""
        until = now
        if peer in self._wanted.get(update.namespace, ()) and not is_reply:
            until = now + self._config.lease_s
        self._members.on_vitals_update(peer, update, now, until)

    def on_peer_lost(self, peer: bytes) -> None:
        for of_namespace in (*self._leases.values(), *self._wanted.values()):
            of_namespace.pop(peer, None)

    def subscribers(self, namespace: bytes, now: float) -> list[bytes]:
        """The peers that asked for a report of each change."""
        return [peer for peer, until in self._leases.get(namespace, {}).items() if until > now]

    def check_invariants(self) -> None:
        for leases in self._leases.values():
            assert len(leases) <= self._config.max_subscribers
            assert all(self._members.is_node(peer) for peer in leases)
        for wanted in self._wanted.values():
            assert len(wanted) <= self._config.subscriptions
            assert list(wanted.values()) == sorted(wanted.values())

    def _tell(self, namespace: bytes, peers: Sequence[bytes], now: float) -> list[Effect]:
        vitals = self._members.told_vitals(namespace)
        assert vitals is not None
        self._sent_at[namespace], self._told[namespace] = now, vitals
        return [Send(peer, VitalsUpdate(namespace=namespace, vitals=vitals)) for peer in peers]

    def _crowd(self, leases: Collection[bytes], newcomer: bytes) -> list[bytes]:
        """Those of ``leases`` whose subnet has the most, with the newcomer counted in."""
        name_of = {peer: self._members.source(peer).name for peer in (*leases, newcomer)}
        num_of = Counter(name_of.values())
        most = max(num_of[name_of[peer]] for peer in leases)
        return [peer for peer in leases if num_of[name_of[peer]] == most]

    def _ask(self, peer: bytes, namespace: bytes, now: float) -> list[Effect]:
        if not self._members.questions.take(peer, now):
            return []
        return [Send(peer, Subscribe(namespace=namespace, seconds=round(self._config.lease_s)))]

    def _timer(self, namespace: bytes) -> Timer:
        return Timer("subscriptions", namespace=namespace)

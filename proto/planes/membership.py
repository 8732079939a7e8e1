"""Which peers are connected, what they serve, and their load.

A connection becomes a *node* by its Hello. Others (light clients, relays, other software) are never routed to.

With ``max_peers`` connections, silent ones are closed for newcomers while they are more than half, the longest
connected first; otherwise the newest one of a subnet that has at least two more than the newcomer's. So many keys do
not keep all others out.

Invariant: one member per connected peer. Members are only added by Connected or Hello, and only removed by Disconnected
or when no Connected followed a Hello in time: then the connection of that Hello was already gone.
"""

import math
from collections import Counter

import msgspec

from mycelia.proto.admission.limits import Limits
from mycelia.proto.admission.subnets import is_local, subnet_of
from mycelia.proto.config import OverlayConfig
from mycelia.proto.digests.estimate import Source
from mycelia.proto.effects import CancelTimer, Disconnect, Effect, Emit, Send, SetTimer
from mycelia.proto.events import Connected, ModelServed, Timer
from mycelia.proto.planes.load_tables import LoadTables, Member
from mycelia.proto.routing.load_table import LoadTable
from mycelia.proto.wire.messages import MAX_SMALL, Hello, Served, Vitals, VitalsUpdate

QUESTIONS_PER_S, QUESTIONS_BURST = 10.0, 64.0
"""Questions to one peer, of all kinds together: hellos, subscriptions, repair requests, reconciliations. With as many
answers to the peer's own questions, and this node's load each second, this stays below the 50 messages a second, and
200 at once, that a peer accepts (``node/network/libp2p/streams.py``)."""


class Membership:
    """The connected peers and what this node sends them of itself."""

    def __init__(self, me: bytes, config: OverlayConfig) -> None:
        self._me = me
        self._config = config
        self._members: dict[bytes, Member] = {}
        self._own: dict[bytes, Served] = {}
        self._own_told_at: dict[bytes, float] = {}
        self.is_leaving = False
        self.is_paused = False
        """Whether this node takes no new requests."""
        self.questions: Limits[bytes] = Limits(QUESTIONS_PER_S, QUESTIONS_BURST)
        """Limits on the questions to each peer. Take from it for every question."""
        self._tables = LoadTables(me, config.routing, self._counted_as, self.connected_at)
        self.observed = self._tables.observed

    def nodes(self, namespace: bytes | None = None) -> list[Member]:
        """Connected nodes (that serve ``namespace``), sorted by peer id so that effects have a fixed order."""
        return sorted(
            (m for m in self._members.values() if m.is_node and (namespace is None or namespace in m.served)),
            key=lambda m: m.peer,
        )

    def understands(self, wire_version: int) -> bool:
        """Whether a node of that version and this one can talk: each also speaks the version before its own."""
        return abs(wire_version - self._config.wire_version) <= 1

    def subnet(self, client: bytes) -> str:
        """The subnet in which a client is counted, see ``Source.name``. Not empty: this node's own clients are one."""
        return self.source(client).name or "own"

    def wire_version(self, peer: bytes) -> int:
        """The version that ``peer`` and this node speak with each other; this node's own before the peer's hello."""
        member = self._members.get(peer)
        own = self._config.wire_version
        return min(own, member.wire_version) if member and member.is_node else own

    def is_connected(self, peer: bytes) -> bool:
        return peer in self._members

    def is_node(self, peer: bytes) -> bool:
        """Whether ``peer`` is connected and sent a hello."""
        member = self._members.get(peer)
        return member is not None and member.is_node

    def connected_at(self, peer: bytes) -> float:
        """The time at which ``peer`` connected; infinity if it is not connected."""
        member = self._members.get(peer)
        return member.connected_at if member else math.inf

    def source(self, peer: bytes) -> Source:
        """How ``peer`` is counted when it makes this node keep or send something; an unknown one by its id alone."""
        member = self._members.get(peer)
        return Source(peer, member.subnet if member else peer.hex(), member is not None and member.is_node)

    def is_unconfirmed(self, peer: bytes) -> bool:
        """Whether ``peer`` sent a hello on a connection that Connected has not reported."""
        member = self._members.get(peer)
        return member is not None and not member.is_confirmed

    def served_by(self, peer: bytes) -> list[bytes]:
        """The namespaces that ``peer`` serves, sorted."""
        member = self._members.get(peer)
        return sorted(member.served) if member else []

    def own(self) -> tuple[Served, ...]:
        """The models that this node serves, with its current vitals."""
        return tuple(self._own.values())

    def own_vitals(self, namespace: bytes) -> Vitals | None:
        served = self._own.get(namespace)
        return served.vitals if served else None

    def told_vitals(self, namespace: bytes) -> Vitals | None:
        """See ``as_told``."""
        vitals = self.own_vitals(namespace)
        return self.as_told(vitals) if vitals else None

    def round_trip_s(self, peer: bytes) -> float:
        """The measured round trip to ``peer``; the usual one before it is measured."""
        member = self._members.get(peer)
        measured = member.round_trip_s if member else None
        return self._config.routing.default_round_trip_s if measured is None else measured

    def is_idle(self, peer: bytes, namespace: bytes) -> bool:
        """Whether by the last report of ``peer`` nothing waits there and a slot is free."""
        member = self._members.get(peer)
        served = member.served.get(namespace) if member else None
        return served is not None and not served.vitals.waiting_requests and _has_slot(served.vitals)

    def context_tokens(self, peer: bytes, namespace: bytes) -> int:
        """The context that ``peer`` reported; 0 if it does not serve ``namespace``."""
        member = self._members.get(peer)
        served = member.served.get(namespace) if member else None
        return served.context_tokens if served else 0

    def fitting(self, namespace: bytes, num_tokens: int) -> list[bytes]:
        """This node, and the nodes whose context holds a prompt of this many tokens."""
        fit = [member.peer for member in self.nodes(namespace) if member.served[namespace].context_tokens > num_tokens]
        return [self._me, *fit]

    # --- events ----------------------------------------------------------------------------------------------------

    def on_connected(self, event: Connected, now: float) -> list[Effect]:
        if event.peer == self._me:
            return [Disconnect(event.peer, "this node itself", now)]
        effects: list[Effect] = []
        if event.peer not in self._members and self._is_full():
            other = self._makes_way_for(Source(event.peer, _subnet(event), False).name)
            if other is None:
                return [Disconnect(event.peer, "too many peers", now)]
            other.makes_way = True
            effects = [Disconnect(other.peer, "room for a peer of another network", now)]
        member = self._members.setdefault(event.peer, Member(event.peer, event.address, now))
        member.address, member.subnet = event.address, _subnet(event)
        member.is_confirmed = True
        timer = Timer("hello", event.peer)
        waiting = CancelTimer(timer) if member.is_node else SetTimer(timer, now + self._config.hello_timeout_s)
        return [*effects, self._say_hello(member, now), waiting]

    def on_disconnected(self, peer: bytes, now: float) -> list[Effect]:
        member = self._members.pop(peer, None)
        if member is None:
            return []
        for namespace in member.served:
            self._tables.remove(peer, namespace)
        effects: list[Effect] = []
        if not (member.is_node and member.is_confirmed):
            effects.append(CancelTimer(Timer("hello", peer)))
        if member.is_node:
            effects.append(Emit("node_left", {"peer": peer, "after_s": round(now - member.connected_at, 1)}))
        return effects

    def on_hello(self, peer: bytes, hello: Hello, now: float) -> list[Effect]:
        timer = Timer("hello", peer)
        if peer == self._me:
            return [Disconnect(peer, "this node itself", now)]
        if not self.understands(hello.wire_version):
            reason = self._no_common_version(hello.wire_version)
            return [
                CancelTimer(timer),
                Emit("wire_version_refused", {"peer": peer, "reason": reason}),
                Disconnect(peer, reason, now),
            ]
        member = self._members.get(peer)
        if member is None:  # a peer's first stream can come before Connected
            if self._is_full():
                return [Disconnect(peer, "too many peers", now)]
            member = self._members[peer] = Member(peer, "", now, peer.hex())
        is_new = not member.is_node
        member.is_node = True
        member.agent, member.wire_version = hello.agent, hello.wire_version
        for namespace in member.served:
            self._tables.remove(peer, namespace)
        member.served = {served.namespace: served for served in hello.served}
        member.told_at = dict.fromkeys(member.served, now)
        member.holds_until.clear()
        for namespace in member.served:
            self._tables.put(member, namespace)
        timeout = now + self._config.hello_timeout_s
        effects: list[Effect] = [CancelTimer(timer) if member.is_confirmed else SetTimer(timer, timeout)]
        if not is_new and now - member.hello_sent_at >= self._config.hello_timeout_s / 2:
            effects.append(self._say_hello(member, now))  # (a repeated hello: perhaps it never got this node's)
        if is_new:
            models = sorted(served.model for served in hello.served)
            effects.append(Emit("node_joined", {"peer": peer, "models": models, "address": member.address}))
        return effects

    def on_hello_timeout(self, peer: bytes, now: float) -> list[Effect]:
        """Send the hello again, in case one was lost. After some repeats the peer counts as a client."""
        member = self._members.get(peer)
        if member is None or member.num_repeats >= self._config.hello_repeats:
            return [Emit("no_hello", {"peer": peer})]
        member.num_repeats += 1
        again = SetTimer(Timer("hello", peer), now + self._config.hello_timeout_s)
        return [self._say_hello(member, now), again]

    def on_served(self, event: ModelServed, now: float) -> list[Effect]:
        self._own[event.namespace] = Served(
            namespace=event.namespace,
            model=event.model,
            context_tokens=event.context_tokens,
            vitals=event.vitals,
        )
        self._own_told_at[event.namespace] = now
        self._put_own(event.namespace)
        return [self._say_hello(member, now) for _, member in sorted(self._members.items())]

    def on_withdrawn(self, namespace: bytes, now: float) -> list[Effect]:
        """This node serves the model no more: every peer gets a hello without it."""
        if self._own.pop(namespace, None) is None:
            return []
        del self._own_told_at[namespace]
        self._tables.remove(self._me, namespace)
        return [self._say_hello(member, now) for _, member in sorted(self._members.items())]

    def as_told(self, vitals: Vitals) -> Vitals:
        """The engine's load as other nodes shall see it: a leaving or paused node reports itself full."""
        return _full(vitals) if self.is_leaving or self.is_paused else vitals

    def on_own_vitals(self, namespace: bytes, vitals: Vitals, now: float) -> bool:
        """The engine reported its load. Returns whether that changed what is known."""
        vitals = _full(vitals) if self.is_leaving else vitals
        served = self._own.get(namespace)
        if served is None:
            return False
        self._own[namespace] = _with_vitals(served, vitals)
        self._own_told_at[namespace] = now
        self._put_own(namespace)
        return served.vitals != vitals

    def on_round_trip(self, peer: bytes, seconds: float) -> None:
        member = self._members.get(peer)
        if member is not None:
            member.round_trip_s = seconds
            for namespace in member.served:
                self._tables.put(member, namespace)

    def on_vitals_update(self, peer: bytes, update: VitalsUpdate, now: float, until: float) -> None:
        """The load of ``peer``. until: without another report it stays the same until then. Ignored for a namespace
        that the peer never said it serves."""
        member = self._members.get(peer)
        served = member.served.get(update.namespace) if member else None
        if member is not None and served is not None:
            member.served[update.namespace] = _with_vitals(served, update.vitals)
            member.told_at[update.namespace] = now
            member.holds_until[update.namespace] = max(until, member.holds_until.get(update.namespace, 0.0))
            self._tables.put(member, update.namespace)

    def loads(self, namespace: bytes) -> LoadTable:
        """The load of every node of ``namespace``, this one included; kept up to date from the first call on."""
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables.begin(namespace)
            for member in self.nodes(namespace):
                self._tables.put(member, namespace)
            self._put_own(namespace)
        return table

    def check_invariants(self) -> None:
        for namespace, table in self._tables.items():
            table.check_invariants()
            nodes = {member.peer for member in self.nodes(namespace)}
            assert set(table.peers) == (nodes | {self._me} if namespace in self._own else nodes)

    def _is_full(self) -> bool:
        return sum(not member.makes_way for member in self._members.values()) >= self._config.max_peers

    def _makes_way_for(self, newcomer: str) -> Member | None:
        """The member that a peer of the subnet ``newcomer`` displaces; None: no member."""
        staying = [member for member in self._members.values() if not member.makes_way]
        silent = [member for member in staying if not member.is_node]
        if len(silent) > self._config.max_peers / 2:
            return min(silent, key=lambda member: member.connected_at)
        num_of = Counter(self.source(member.peer).name for member in staying)
        largest, num = num_of.most_common(1)[0]
        if num < num_of[newcomer] + 2:
            return None
        theirs = [member for member in staying if self.source(member.peer).name == largest]
        return max(theirs, key=lambda member: (not member.is_node, member.connected_at))

    def _put_own(self, namespace: bytes) -> None:
        served = self._own.get(namespace)
        if served is not None:
            self._tables.put_own(served, self._own_told_at[namespace])

    def _counted_as(self, peer: bytes) -> bytes:
        """The group in which ``peer`` is counted: its subnet, or itself in a private network."""
        member = self._members.get(peer)
        if member is None or is_local(member.subnet) or member.subnet == peer.hex():
            return peer
        return member.subnet.encode()

    def _say_hello(self, member: Member, now: float) -> Effect:
        member.hello_sent_at = now
        self.questions.take(member.peer, now)
        served = tuple(_with_vitals(one, self.as_told(one.vitals)) for one in self.own())
        return Send(member.peer, Hello(wire_version=self._config.wire_version, agent=self._config.agent, served=served))

    def _no_common_version(self, theirs: int) -> str:
        ours = self._config.wire_version
        who = "it" if theirs < ours else "this node"
        return f"speaks wire version {theirs}, this node speaks {ours}: {who} is too old for the other, update it"


def _subnet(event: Connected) -> str:
    return subnet_of(event.address) or event.peer.hex()


def _has_slot(vitals: Vitals) -> bool:
    return vitals.active_requests < vitals.slots


def _full(vitals: Vitals) -> Vitals:
    return msgspec.structs.replace(vitals, waiting_requests=MAX_SMALL)


def _with_vitals(served: Served, vitals: Vitals) -> Served:
    return Served(namespace=served.namespace, model=served.model, context_tokens=served.context_tokens, vitals=vitals)

"""Digests out, digests in, repair and reconciliation: when to send what to which peer.

The rules of the sets themselves are in ``digest.py`` (the owner's side) and ``estimates.py`` (the reader's). Here are
only time, peers and limits. Everything lost is found again in one of three ways: the next heartbeat shows the gap, a
repair fetches it, and pairwise reconciliation finds what neither saw.

Gossip brings each node every message several times. So only heads and small changes are gossiped. Of a larger change
the head is announced, and each node fetches the change once, from the neighbour that sent the announcement. If that
neighbour is fetching it too, it answers as soon as it has it: the change flows down the tree of first announcements.

Gossip and reconciliation stay within this node's cell (``cells.py``). Connected nodes of other cells are asked for
their own digests from time to time, because requests go to them too.
"""

import random
from collections import Counter
from collections.abc import Sequence

from mycelia.proto.admission.limits import Limits
from mycelia.proto.cells.cells import CellPosition, address_of, cell_of
from mycelia.proto.config import CellConfig, DigestConfig
from mycelia.proto.digests.budget import Traffic
from mycelia.proto.digests.digest import OwnDigest, Sign, Verify
from mycelia.proto.digests.estimates import Estimates, Key, Outcome
from mycelia.proto.effects import Effect, Emit, JoinCell, LeaveCell, SetTimer
from mycelia.proto.events import CacheChanged, Gossiped, ModelServed, Timer
from mycelia.proto.planes.announcer import Announcer, jittered
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.repairs import Repairs
from mycelia.proto.planes.sender import Sender
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_VECTOR, Announce, Reconcile, Repair, RepairRequest, Version
from mycelia.proto.wire.refusals import Refusal

_SWEEP_S = 5.0
_MANY = 3
"""Subnets that would have to announce invented owners before a cell splits for them."""
_HASTY_PER_S, _HASTY_BURST = 1 / 20, 4.0
"""Reconciliations of one peer that come too soon after its last one. A node starts one each 24 s or later, with a
random peer, and no delay on the way brings five of them within a minute."""
_MAX_OUTSIDERS = 16
"""Connected nodes of other cells whose digests are followed, besides those that a lookup led to."""


class DigestPlane:
    """This node's digests and its estimates of all others."""

    def __init__(
        self,
        me: bytes,
        config: DigestConfig,
        cell_config: CellConfig,
        rng: random.Random,
        sign: Sign,
        verify: Verify,
        members: Membership,
        refusals: Counter[Refusal],
        traffic: Traffic,
    ) -> None:
        self._me = me
        self._refusals = refusals
        self._sender = Sender(config, members, traffic)
        self._config = config
        self._cell_config = cell_config
        self._rng = rng
        self._sign = sign
        self._members = members
        self._own: dict[bytes, OwnDigest] = {}
        self._withdrawn: dict[bytes, OwnDigest] = {}
        """Those of models that this node serves no more: a version must never be used twice."""
        self._positions: dict[bytes, CellPosition] = {}
        """Namespaces that are or were served."""
        self._announcer = Announcer(config, rng, self._own, self._positions, self._sender, traffic)
        self._reconciled: Limits[bytes] = Limits(1 / config.min_reconcile_gap_s, 1.0)
        self._hasty: Limits[bytes] = Limits(_HASTY_PER_S, _HASTY_BURST)
        self._gossiped: Limits[tuple[bytes, Key]] = Limits(config.heads_per_s, config.heads_burst)
        """Per (forwarder, (owner, namespace)): no peer can use up an owner's limit by repeating its heads."""
        self._sought: set[bytes] = set()
        """Nodes of other cells that a lookup led to."""
        self.estimates = Estimates(me, verify, config, refusals, members.source)
        self.repairs = Repairs(
            me, config, rng, self._own, self.estimates, members, self._sender, refusals, self._is_near
        )

    def held_blocks(self, namespace: bytes, chain: Sequence[int], tag: bytes) -> int:
        """Leading blocks of ``chain`` in this node's own cache that the owner ``tag`` may reuse."""
        return self._own[namespace].holds(chain, tag)

    def own(self, namespace: bytes) -> OwnDigest | None:
        return self._own.get(namespace)

    def position(self, namespace: bytes) -> CellPosition | None:
        """The cells of this node; None in a namespace it does not serve."""
        return self._positions.get(namespace)

    def follow(self, peer: bytes) -> None:
        """Follow ``peer``'s digest once it is connected, whatever its cell."""
        self._sought.add(peer)

    def unfollow(self, peer: bytes) -> None:
        self._sought.discard(peer)

    # --- this node's cache -----------------------------------------------------------------------------------------

    def on_served(self, event: ModelServed, now: float) -> list[Effect]:
        if event.namespace in self._own:
            return []
        is_first = not self._positions
        own = self._withdrawn.pop(event.namespace) if event.namespace in self._withdrawn else None
        self._own[event.namespace] = own or OwnDigest(
            self._me, event.namespace, event.epoch, self._sign, self._config, event.has_states
        )
        position = CellPosition(event.namespace, self._me, self._cell_config, self._rng, now)
        self._positions[event.namespace] = position
        self.estimates.follow(event.namespace, position.covers, event.has_states)
        effects = self._announcer.on_served(event.namespace, now)
        if is_first:
            effects.append(
                SetTimer(Timer("reconcile"), now + jittered(self._config.reconcile_s, self._config, self._rng))
            )
            effects.append(SetTimer(Timer("sweep"), now + _SWEEP_S))
        return effects

    def on_withdrawn(self, namespace: bytes) -> list[Effect]:
        """This node serves the model no more. Others forget its digest as that of a node that left."""
        own = self._own.pop(namespace, None)
        if own is None:
            return []
        own.reset()
        self._withdrawn[namespace] = own
        return self._announcer.on_withdrawn(namespace)

    def on_cache_changed(self, event: CacheChanged, now: float) -> list[Effect]:
        return self._announcer.on_cache_changed(event, now) if event.namespace in self._own else []

    # --- time ------------------------------------------------------------------------------------------------------

    def on_timer(self, timer: Timer, now: float) -> list[Effect]:
        match timer.kind:
            case "digest":
                return self._announcer.publish(timer.namespace, now)
            case "repair":
                return self.repairs.on_due((timer.subject, timer.namespace), now)
            case "reconcile":
                again = SetTimer(timer, now + jittered(self._config.reconcile_s, self._config, self._rng))
                return [*self._reconcile(now), *self._ask_outsiders(now), again]
            case "sweep":
                gone = self.estimates.sweep(now)
                effects: list[Effect] = [Emit("estimate_forgotten", {"peer": owner}) for owner, _ in gone]
                for namespace in self._own:
                    effects += self._move(namespace, now)
                return [*effects, SetTimer(timer, now + _SWEEP_S)]
            case _:
                raise AssertionError(f"unknown timer {timer.kind}")

    def _move(self, namespace: bytes, now: float) -> list[Effect]:
        position = self._positions[namespace]
        move = position.tick(self.estimates.live(namespace, self._cell_config.max_cell_nodes // _MANY), now)
        effects: list[Effect] = [JoinCell(namespace, cell) for cell in move.joined]
        effects += [LeaveCell(namespace, cell) for cell in move.left]
        if move.left:
            self.estimates.forget_unwanted(namespace, now)
        if not move.joined:
            return effects
        # Nodes of the new cell shall learn of this node soon, and the others shall see that it leaves.
        effects += self._announcer.hasten(namespace, now)
        return [*effects, Emit("cell_changed", {"namespace": namespace, "bits": position.bits})]

    def _is_near(self, peer: bytes, namespace: bytes) -> bool:
        """Whether ``peer`` is in this node's cell."""
        position = self._positions.get(namespace)
        return position is not None and position.holds(peer)

    def _reconcile(self, now: float) -> list[Effect]:
        """Send one random peer of the same cell every version held of that cell."""
        partners = sorted(
            {m.peer for space in self._own for m in self._members.nodes(space) if self._is_near(m.peer, space)}
        )
        if not partners:
            return []
        versions = self._versions()
        if len(versions) > MAX_VECTOR:
            versions = self._rng.sample(versions, MAX_VECTOR)
        return self._sender.ask(self._rng.choice(partners), Reconcile(versions=tuple(versions)), now)

    def _outsiders(self, namespace: bytes) -> list[bytes]:
        """Connected nodes of other cells to follow: those that a lookup led to, and the few connected first."""
        position = self._positions[namespace]
        others = [member for member in self._members.nodes(namespace) if not position.covers(member.peer)]
        others.sort(key=lambda member: member.connected_at)
        chosen = [member.peer for member in others if member.peer in self._sought]
        return chosen + [member.peer for member in others if member.peer not in self._sought][:_MAX_OUTSIDERS]

    def _ask_outsiders(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for namespace in self._own:
            for peer in self._outsiders(namespace):
                effects += self.repairs.ask(peer, (peer, namespace), now)
        return effects

    def _versions(self) -> list[Version]:
        own = [
            Version(owner=self._me, namespace=namespace, epoch=digest.head.epoch, seq=digest.head.seq)
            for namespace, digest in sorted(self._own.items())
            if digest.head is not None
        ]
        return own + [v for v in self.estimates.versions() if self._is_near(v.owner, v.namespace)]

    # --- peers -----------------------------------------------------------------------------------------------------

    def on_peer_ready(self, peer: bytes, now: float) -> list[Effect]:
        """The peer sent its hello: ask for its digests that this node lacks."""
        self.estimates.reinstate(peer, now)
        spaces = [
            space
            for space in self._members.served_by(peer)
            if self.estimates.follows(space) and (self._positions[space].covers(peer) or peer in self._outsiders(space))
        ]
        return [effect for space in spaces for effect in self.repairs.ask(peer, (peer, space), now)]

    def on_peer_lost(self, peer: bytes) -> list[Effect]:
        self.estimates.suspect(peer)
        self.repairs.on_peer_lost(peer)
        return []

    def on_gossip(self, event: Gossiped, now: float) -> list[Effect]:
        head = event.message.head
        if head.owner != event.author:
            raise RemoteError("gossip about somebody else's digest", Refusal.WRONG_OWNER)
        if head.namespace != event.namespace:
            raise RemoteError("gossip about another namespace's digest", Refusal.WRONG_NAMESPACE)
        if not event.cell.holds(address_of(head.namespace, head.owner)):
            raise RemoteError("gossip in a cell of others", Refusal.WRONG_CELL)
        key = (head.owner, head.namespace)
        is_of_use = self.estimates.unused(head, now) is None
        if is_of_use and not self._gossiped.take((event.forwarder, key), now):
            if event.forwarder == event.author:
                raise RemoteError("too many heads", Refusal.TOO_MANY)
            self._refusals[Refusal.TOO_MANY] += 1
            return []
        outcome = self.estimates.on_gossip(event.message, now, event.forwarder)
        return self.repairs.note(outcome, *key, now, at_once=isinstance(event.message, Announce))

    def on_repair(self, peer: bytes, message: Repair, now: float) -> list[Effect]:
        head = message.head
        self.repairs.on_brought(peer, now)
        outcome = self.estimates.on_repair(message, now, peer)
        if outcome is Outcome.DOUBT:
            return self.repairs.ask(peer, (head.owner, head.namespace), now)
        return self.repairs.note(outcome, head.owner, head.namespace, now)

    def on_repair_request(self, peer: bytes, request: RepairRequest, now: float) -> list[Effect]:
        return self.repairs.on_request(peer, request, now)

    def on_reconcile(self, peer: bytes, message: Reconcile, now: float) -> list[Effect]:
        """Send what is newer here, ask for what is newer there."""
        if not self._reconciled.take(peer, now):
            if not self._hasty.take(peer, now):
                raise RemoteError("too many reconciliations", Refusal.TOO_MANY)
            self._refusals[Refusal.TOO_SOON] += 1
            return [Emit("reconcile_refused", {"peer": peer})]
        theirs = {(v.owner, v.namespace): (v.epoch, v.seq) for v in message.versions}
        ours = {(v.owner, v.namespace): (v.epoch, v.seq) for v in self._versions()}
        is_whole = len(message.versions) < MAX_VECTOR
        newer_here = [
            key
            for key, version in ours.items()
            if (key in theirs or (is_whole and self._would_keep(peer, key))) and version > theirs.get(key, (0, 0))
        ]
        newer_there = [
            key
            for key, version in theirs.items()
            if key[0] != self._me and self.estimates.wants(*key) and version > ours.get(key, (0, 0))
        ]
        self._rng.shuffle(newer_here)
        self._rng.shuffle(newer_there)
        effects: list[Effect] = []
        for key in newer_here[: self._config.repairs_per_reconcile]:
            epoch, seq = theirs.get(key, (0, 0))
            request = RepairRequest(owner=key[0], namespace=key[1], epoch=epoch, seq=seq, count=0, root=bytes(16))
            effects += self.repairs.on_request(peer, request, now)
        for key in newer_there[: self._config.requests_per_reconcile]:
            effects += self.repairs.ask(peer, key, now)
        return effects

    def _would_keep(self, reader: bytes, key: Key) -> bool:
        """Whether ``reader`` is probably in the owner's cell, by the depth in the reader's own head."""
        depth = self.estimates.depth(reader, key[1])
        bits = depth if depth is not None else self._positions[key[1]].bits
        return cell_of(key[1], reader, bits).holds(address_of(key[1], key[0]))

    def check_invariants(self) -> None:
        self.estimates.check_invariants()
        for own in self._own.values():
            own.check_invariants()
        for position in self._positions.values():
            position.check_invariants()
        self.repairs.check_invariants()

"""Digests out, digests in, repair and reconciliation: when to say what to whom.

The rules of the sets themselves are in ``digest.py`` (the owner's side) and ``estimates.py`` (the reader's). Here are
only time, peers and limits. Everything lost is found again by one of three: the next heartbeat shows the gap, a repair
fetches it, and pairwise reconciliation finds what neither saw.

Gossip brings each node every message several times. So only heads and small changes travel there; a larger change is
announced, and each node fetches it once, from the neighbour that the announcement came from. That neighbour may be
fetching it too: then it answers as soon as it has it, and the change flows down the tree of first announcements.

Gossip and reconciliation stay within this node's cell (``cells.py``). Connected nodes of other cells are asked for
their own digests now and then: requests go to them too.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from proto.blocks import block_hashes
from proto.budget import SendBudget, Traffic, size_of
from proto.cells import CellPosition, address_of, cell_of
from proto.config import CellConfig, DigestConfig
from proto.digest import SAME, OwnDigest, Sign, Verify
from proto.effects import CancelTimer, Effect, Emit, JoinCell, LeaveCell, Publish, Send, SetTimer
from proto.errors import RemoteError
from proto.estimates import Estimates, Key, Outcome
from proto.events import CacheChanged, Gossiped, ModelServed, Timer
from proto.limits import Limits
from proto.membership import Membership
from proto.messages import MAX_VECTOR, Announce, Control, Gossip, Reconcile, Repair, RepairRequest, Version
from proto.refusals import Refusal

_SWEEP_S = 5.0
_MAX_PENDING_REPAIRS = 1_024
_MAX_RATE_ENTRIES = 16_384
_MAX_WAITING_PER_REPAIR = 16
"""Above gossipsub's largest mesh."""
_MAX_OUTSIDERS = 16
"""Connected nodes of other cells whose digests are kept up with, besides those that were sought out."""


@dataclass
class _Pending:
    """A repair under way."""

    hint: bytes
    """Who is likely to have the missing bytes."""
    attempts: int = 0
    waiting: dict[bytes, RepairRequest] = field(default_factory=dict)
    """Who asked this node for the same bytes meanwhile."""


class DigestPlane:
    """This node's digests and its estimates of everybody else's."""

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
        self._traffic = traffic
        self._budget = SendBudget(config.send_bytes_per_s, config.send_burst_bytes, 0.0)
        self._stretch = 1.0
        """Of the interval between deltas, for what is received."""
        self._config = config
        self._cell_config = cell_config
        self._rng = rng
        self._sign = sign
        self._members = members
        self._own: dict[bytes, OwnDigest] = {}
        self._positions: dict[bytes, CellPosition] = {}
        self._delta_at: dict[bytes, float] = {}
        self._paced_until: dict[bytes, float] = {}
        """When the deltas sent so far are paid for, at one per interval."""
        self._due: dict[bytes, float] = {}
        self._pending: dict[Key, _Pending] = {}
        self._repaired_at: OrderedDict[Key, list[float]] = OrderedDict()
        """(reader, owner) -> when it was sent a repair with bytes, within the last minute."""
        self._reconciled_at: OrderedDict[bytes, float] = OrderedDict()
        self._gossiped: Limits[tuple[bytes, bytes]] = Limits(config.heads_per_s, config.heads_burst)
        """Of (forwarder, owner): nobody can use up what an owner may say by repeating it."""
        self._repaired_by: Limits[bytes] = Limits(config.repairs_per_s, config.repairs_burst)
        """Of peers that bring repairs nobody asked them for."""
        self._asked: Counter[bytes] = Counter()
        """Connected peer -> repairs it was asked for and has not brought: after a partition that can be very many."""
        self._sought: set[bytes] = set()
        """Nodes of other cells that a lookup led to."""
        self.estimates = Estimates(me, verify, config, refusals)

    def held_blocks(self, namespace: bytes, chain: Sequence[int]) -> int:
        """Leading blocks of ``chain`` in this node's own cache."""
        return self._own[namespace].holds(chain)

    def own(self, namespace: bytes) -> OwnDigest | None:
        return self._own.get(namespace)

    def position(self, namespace: bytes) -> CellPosition | None:
        """Which cells this node is in; None in a namespace it does not serve."""
        return self._positions.get(namespace)

    def follow(self, peer: bytes) -> None:
        """Keep up with ``peer``'s digest once it is connected, whatever its cell."""
        self._sought.add(peer)

    def unfollow(self, peer: bytes) -> None:
        self._sought.discard(peer)

    # --- this node's cache -----------------------------------------------------------------------------------------

    def on_served(self, event: ModelServed, now: float) -> list[Effect]:
        if event.namespace in self._own:
            return []
        is_first = not self._own
        self._own[event.namespace] = OwnDigest(self._me, event.namespace, event.epoch, self._sign, self._config)
        position = CellPosition(event.namespace, self._me, self._cell_config, self._rng, now)
        self._positions[event.namespace] = position
        self.estimates.follow(event.namespace, position.covers)
        # Not at once: the engine is about to say what it kept over a restart, and the first head shall show it.
        effects = self._set_due(event.namespace, now + self._config.delta_delay_s)
        if is_first:
            effects.append(SetTimer(Timer("reconcile"), now + self._jittered(self._config.reconcile_s)))
            effects.append(SetTimer(Timer("sweep"), now + _SWEEP_S))
        return effects

    def on_cache_changed(self, event: CacheChanged, now: float) -> list[Effect]:
        own = self._own[event.namespace]
        if event.reset:
            own.reset()
        for leaf in event.evicted:
            own.evict(leaf)
        for leaf, tokens in event.stored:
            own.store(leaf, block_hashes(event.namespace, tokens))
        at = self._next_delta(event.namespace, now)
        if at >= self._due[event.namespace] or not own.is_behind():
            return []
        return self._set_due(event.namespace, at)

    def _next_delta(self, namespace: bytes, now: float) -> float:
        """When the next delta may go out: on average one per interval, a few of them early (GCRA)."""
        if self._own[namespace].head is None:
            return self._due[namespace]
        ahead = (self._config.delta_burst - 1) * self._config.delta_interval_s
        budget = self._paced_until.get(namespace, 0.0) - ahead
        spaced = self._delta_at.get(namespace, 0.0) + self._config.delta_min_gap_s
        return max(now + self._config.delta_delay_s, budget, spaced)

    def _publish(self, namespace: bytes, now: float) -> list[Effect]:
        ready_at = self._budget.ready_at(now)
        if ready_at > now:
            self._traffic.num_postponed += 1
            return self._set_due(namespace, ready_at)
        if self._own[namespace].is_behind():
            paced_from = max(self._paced_until.get(namespace, 0.0), now)
            self._paced_until[namespace] = paced_from + self._jittered(self._stretched_interval(now))
            self._delta_at[namespace] = now
        position = self._positions[namespace]
        message = self._own[namespace].advance(now, position.bits)
        publishes = [Publish(namespace, message, cell) for cell in position.cells()]
        self._spend(message, now, len(publishes))
        heartbeat = now + self._jittered(self._config.heartbeat_s)
        return [*publishes, *self._set_due(namespace, heartbeat)]

    def _stretched_interval(self, now: float) -> float:
        """The interval between deltas: longer by the square root of the excess each time, until what is received fits,
        and back. (By the whole excess it would swing: all nodes see the same and answer alike.)"""
        excess = self._traffic.digests_per_s(now) / self._config.receive_bytes_per_s
        self._stretch = min(max(self._stretch * excess**0.5, 1.0), self._config.max_stretch)
        return self._config.delta_interval_s * self._stretch

    def _send(self, peer: bytes, message: Control, now: float) -> list[Effect]:
        """Sends ``message`` if the budget allows; what is dropped is asked for again, or comes with the next round."""
        if self._budget.ready_at(now) > now:
            self._traffic.num_dropped += 1
            return []
        self._spend(message, now)
        if isinstance(message, RepairRequest) and self._members.is_connected(peer):
            self._asked[peer] += 1
        return [Send(peer, message)]

    def _spend(self, message: Control | Gossip, now: float, times: int = 1) -> None:
        num_bytes = times * size_of(message)
        self._budget.spend(num_bytes, now)
        self._traffic.sent_kinds[type(message).__name__] += num_bytes

    def _set_due(self, namespace: bytes, at: float) -> list[Effect]:
        if self._due.get(namespace) == at:
            return []
        self._due[namespace] = at
        return [SetTimer(Timer("digest", namespace=namespace), at)]

    # --- time ------------------------------------------------------------------------------------------------------

    def on_timer(self, timer: Timer, now: float) -> list[Effect]:
        match timer.kind:
            case "digest":
                return self._publish(timer.namespace, now)
            case "repair":
                return self._ask_for_repair((timer.subject, timer.namespace), now)
            case "reconcile":
                again = SetTimer(timer, now + self._jittered(self._config.reconcile_s))
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
        """Go to another cell, if the count of the own one says so."""
        position = self._positions[namespace]
        move = position.tick(self.estimates.live(namespace), now)
        effects: list[Effect] = [JoinCell(namespace, cell) for cell in move.joined]
        effects += [LeaveCell(namespace, cell) for cell in move.left]
        if move.left:
            self.estimates.forget_unwanted(namespace, now)
        if not move.joined:
            return effects
        # Its nodes shall hear of this one soon, and the others see that it goes.
        effects += self._set_due(namespace, min(self._due[namespace], self._next_delta(namespace, now)))
        return [*effects, Emit("cell_changed", {"namespace": namespace, "bits": position.bits})]

    def _is_near(self, peer: bytes, namespace: bytes) -> bool:
        """Whether ``peer`` is of this node's cell."""
        position = self._positions.get(namespace)
        return position is not None and position.holds(peer)

    def _reconcile(self, now: float) -> list[Effect]:
        """Tell one random peer of the same cell every version held of that cell."""
        partners = sorted(
            {m.peer for space in self._own for m in self._members.nodes(space) if self._is_near(m.peer, space)}
        )
        if not partners:
            return []
        versions = self._versions()
        if len(versions) > MAX_VECTOR:
            versions = self._rng.sample(versions, MAX_VECTOR)
        return self._send(self._rng.choice(partners), Reconcile(versions=tuple(versions)), now)

    def _outsiders(self, namespace: bytes) -> list[bytes]:
        """Connected nodes of other cells, of whose digests no gossip tells here: those that were sought out, and a few
        that have been there the longest."""
        position = self._positions[namespace]
        others = [member for member in self._members.nodes(namespace) if not position.covers(member.peer)]
        others.sort(key=lambda member: member.connected_at)
        chosen = [member.peer for member in others if member.peer in self._sought]
        return chosen + [member.peer for member in others if member.peer not in self._sought][:_MAX_OUTSIDERS]

    def _ask_outsiders(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for namespace in self._own:
            for peer in self._outsiders(namespace):
                effects += self._send(peer, self.estimates.request(peer, namespace), now)
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
        """The peer said what it serves: ask for what this node does not have of it."""
        self.estimates.reinstate(peer, now)
        spaces = [
            space
            for space in self._members.served_by(peer)
            if self.estimates.follows(space) and (self._positions[space].covers(peer) or peer in self._outsiders(space))
        ]
        return [effect for space in spaces for effect in self._send(peer, self.estimates.request(peer, space), now)]

    def on_peer_lost(self, peer: bytes) -> list[Effect]:
        self.estimates.suspect(peer)
        del self._asked[peer]
        return []

    def on_gossip(self, event: Gossiped, now: float) -> list[Effect]:
        head = event.message.head
        if head.owner != event.author:
            raise RemoteError("gossip about somebody else's digest", Refusal.WRONG_OWNER)
        if head.namespace != event.namespace:
            raise RemoteError("gossip about another namespace's digest", Refusal.WRONG_NAMESPACE)
        if not event.cell.holds(address_of(head.namespace, head.owner)):
            raise RemoteError("gossip in a cell of others", Refusal.WRONG_CELL)
        unused = self.estimates.unused(head, now)
        if unused is Refusal.FUTURE:  # (whoever passed it on only did as it should: the owner's own clock is wrong)
            raise RemoteError("a digest from the future", unused)
        if unused is None and not self._gossiped.take((event.forwarder, event.author), now):
            if event.forwarder == event.author:
                raise RemoteError("too many heads", Refusal.TOO_MANY)
            self._refusals[Refusal.TOO_MANY] += 1
            return []
        key = (head.owner, head.namespace)
        outcome = self.estimates.on_gossip(event.message, now)
        is_new_gap = outcome is Outcome.GAP and key not in self._pending
        effects = self._after(outcome, *key, event.forwarder, now)
        if is_new_gap and isinstance(event.message, Announce):
            # Nothing that is under way can make this repair smaller: ask at once.
            effects += self._ask_for_repair(key, now)
        return effects

    def on_repair(self, peer: bytes, message: Repair, now: float) -> list[Effect]:
        head = message.head
        if self._asked[peer] > 0:
            self._asked[peer] -= 1
        elif not self._repaired_by.take(peer, now):
            raise RemoteError("too many repairs", Refusal.TOO_MANY)
        return self._after(self.estimates.on_repair(message, now), head.owner, head.namespace, peer, now)

    def on_repair_request(self, peer: bytes, request: RepairRequest, now: float) -> list[Effect]:
        key = (peer, request.owner)
        recent = [at for at in self._repaired_at.get(key, []) if at > now - 60.0]
        if len(recent) >= self._config.repairs_per_minute:
            self._refusals[Refusal.TOO_SOON] += 1
            return [Emit("repair_refused", {"peer": peer})]
        pending = self._pending.get((request.owner, request.namespace))
        if pending is not None and peer not in pending.waiting and len(pending.waiting) < _MAX_WAITING_PER_REPAIR:
            pending.waiting[peer] = request
            return []
        repair = self._repair_for(request)
        if repair is None:
            return []
        effects = self._send(peer, repair, now)
        if repair.mode != SAME and effects:
            self._repaired_at[key] = [*recent, now]
            self._repaired_at.move_to_end(key)
            if len(self._repaired_at) > _MAX_RATE_ENTRIES:
                self._repaired_at.popitem(last=False)
        return effects

    def on_reconcile(self, peer: bytes, message: Reconcile, now: float) -> list[Effect]:
        """Push what is newer here, ask for what is newer there."""
        last = self._reconciled_at.get(peer)
        if last is not None and now - last < self._config.min_reconcile_gap_s:
            self._refusals[Refusal.TOO_SOON] += 1
            return [Emit("reconcile_refused", {"peer": peer})]
        self._reconciled_at[peer] = now
        self._reconciled_at.move_to_end(peer)
        if len(self._reconciled_at) > _MAX_RATE_ENTRIES:
            self._reconciled_at.popitem(last=False)
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
            effects += self.on_repair_request(peer, request, now)
        for key in newer_there[: self._config.requests_per_reconcile]:
            effects += self._send(peer, self.estimates.request(*key), now)
        return effects

    def _would_keep(self, reader: bytes, key: Key) -> bool:
        """Whether ``reader`` is likely to be of the same cell as the owner, as its own head says."""
        depth = self.estimates.depth(reader, key[1])
        bits = depth if depth is not None else self._positions[key[1]].bits
        return cell_of(key[1], reader, bits).holds(address_of(key[1], key[0]))

    def _repair_for(self, request: RepairRequest) -> Repair | None:
        if request.owner == self._me:
            own = self._own.get(request.namespace)
            return own.repair(request) if own else None
        return self.estimates.relay(request)

    # --- repair ----------------------------------------------------------------------------------------------------

    def _after(self, outcome: Outcome, owner: bytes, namespace: bytes, hint: bytes, now: float) -> list[Effect]:
        key = (owner, namespace)
        timer = Timer("repair", owner, namespace)
        if outcome is Outcome.APPLIED:
            applied = Emit("digest_applied", {"peer": owner, "blocks": len(self.estimates.entries(*key))})
            if key not in self._pending or self.estimates.needs_repair(*key):
                return [applied]
            return [applied, CancelTimer(timer), *self._end_repair(key, now)]
        if outcome is not Outcome.GAP or key in self._pending or len(self._pending) >= _MAX_PENDING_REPAIRS:
            return []
        self._pending[key] = _Pending(hint)
        return [SetTimer(timer, now + self._rng.uniform(*self._config.repair_delay_s))]

    def _ask_for_repair(self, key: Key, now: float) -> list[Effect]:
        """A recent forwarder first (it just had the bytes), then the owner, then anybody."""
        pending = self._pending.get(key)
        if pending is None:
            return []
        if not self.estimates.needs_repair(*key) or pending.attempts >= self._config.repair_attempts:
            return self._end_repair(key, now)
        choices = [pending.hint, key[0]][pending.attempts :]
        target = next((peer for peer in choices if self._members.is_connected(peer)), None)
        if target is None:
            others = [m.peer for m in self._members.nodes(key[1]) if self._is_near(m.peer, key[1])]
            target = self._rng.choice(others) if others else None
        pending.attempts += 1
        again = SetTimer(Timer("repair", *key), now + 2.0**pending.attempts)
        if target is None:
            return [again]
        return [*self._send(target, self.estimates.request(*key), now), again]

    def _end_repair(self, key: Key, now: float) -> list[Effect]:
        """Serve those who wait for the same bytes, with what there is now."""
        waiting = self._pending.pop(key).waiting
        return [effect for peer, request in waiting.items() for effect in self.on_repair_request(peer, request, now)]

    def _jittered(self, interval_s: float) -> float:
        return interval_s * self._rng.uniform(1 - self._config.jitter, 1 + self._config.jitter)

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant of the parts is broken."""
        self.estimates.check_invariants()
        for own in self._own.values():
            own.check_invariants()
        for position in self._positions.values():
            position.check_invariants()
        assert len(self._pending) <= _MAX_PENDING_REPAIRS

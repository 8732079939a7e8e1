"""Repair: which peer to ask for the bytes of a newer head, and how to answer such questions.

First the peer that announced the head is asked, then the owner if it is connected, then other peers that announced it.
After them comes any node of the cell, which probably has it after a partition: not often, and only for an owner whose
digest this node has held. So an invented owner costs only the peer that announced it.

A neighbour that asks for what this node is fetching itself waits, and is answered as soon as it has come.

Bounds: MAX_PENDING gaps in total and MAX_PENDING_OF for one announcing subnet; the oldest is dropped for a new one. The
next head shows a dropped gap again.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mycelia.proto.admission.limits import Limits, TokenBucket
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import SAME, OwnDigest
from mycelia.proto.digests.estimate import Key
from mycelia.proto.digests.estimates import Estimates, Outcome
from mycelia.proto.effects import CancelTimer, Effect, Emit, SetTimer
from mycelia.proto.events import Timer
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.sender import Sender
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Repair, RepairRequest
from mycelia.proto.wire.refusals import Refusal

MAX_PENDING = 1_024
MAX_PENDING_OF = 64
_MAX_WAITING_PER_REPAIR = 16
"""Above gossipsub's largest mesh."""
_GUESSES_PER_S, _GUESSES_BURST = 2.0, 32.0
"""Questions to nodes that announced nothing of the owner, for all nodes together."""
_MAX_OWED = 256
"""Repairs that one peer may bring at once because this node asked for them."""


@dataclass
class _Pending:
    teller: str
    """The subnet in whose places it counts."""
    attempts: int = 0
    waiting: dict[bytes, RepairRequest] = field(default_factory=dict)
    """Peers that asked this node for the same bytes meanwhile."""


class Repairs:
    """Both sides of repair, for one node."""

    def __init__(
        self,
        me: bytes,
        config: DigestConfig,
        rng: random.Random,
        own: Mapping[bytes, OwnDigest],
        estimates: Estimates,
        members: Membership,
        sender: Sender,
        refusals: Counter[Refusal],
        is_near: Callable[[bytes, bytes], bool],
    ) -> None:
        """own: by namespace; read-only. is_near: whether a peer is in this node's cell of a namespace."""
        self._me = me
        self._config = config
        self._rng = rng
        self._own = own
        self._estimates = estimates
        self._members = members
        self._sender = sender
        self._refusals = refusals
        self._is_near = is_near
        self._guesses = TokenBucket(_GUESSES_PER_S, _GUESSES_BURST, 0.0)
        self._pending: dict[Key, _Pending] = {}
        """The oldest first."""
        self._num_of: Counter[str] = Counter()
        """Subnet -> places taken."""
        self._repaired: Limits[Key] = Limits(config.repairs_per_minute / 60, config.repairs_per_minute, 16_384)
        """Per (reader, owner): repairs with bytes."""
        self._unasked: Limits[bytes] = Limits(config.repairs_per_s, config.repairs_burst)
        """Per peer: repairs that this node did not ask for."""
        self._owed: Counter[bytes] = Counter()
        """Connected peer -> repairs it was asked for and has not brought: after a partition there can be many."""

    # --- asking ----------------------------------------------------------------------------------------------------

    def note(self, outcome: Outcome, owner: bytes, namespace: bytes, now: float, at_once: bool = False) -> list[Effect]:
        """A digest message had this outcome. at_once: waiting cannot make the repair of a gap smaller."""
        key = (owner, namespace)
        timer = Timer("repair", owner, namespace)
        if outcome is Outcome.APPLIED:
            applied = Emit("digest_applied", {"peer": owner, "blocks": len(self._estimates.entries(*key))})
            if key not in self._pending or self._estimates.needs_repair(*key):
                return [applied]
            return [applied, CancelTimer(timer), *self._end(key, now)]
        if outcome is not Outcome.GAP or key in self._pending or not self._estimates.needs_repair(*key):
            return []
        effects = self._open(key, now)
        if at_once:
            return effects + self.on_due(key, now)
        return [*effects, SetTimer(timer, now + self._rng.uniform(*self._config.repair_delay_s))]

    def on_due(self, key: Key, now: float) -> list[Effect]:
        """Ask the next peer that should have the bytes."""
        pending = self._pending.get(key)
        if pending is None:
            return []
        if not self._estimates.needs_repair(*key) or pending.attempts >= self._config.repair_attempts:
            return self._end(key, now)
        first, *others = self._estimates.tellers(*key) or (key[0],)
        choices = [peer for peer in dict.fromkeys((first, key[0], *others)) if self._members.is_connected(peer)]
        target = choices[pending.attempts % len(choices)] if choices else None
        if pending.attempts >= len(choices) and self._estimates.is_known(*key) and self._guesses.take(now):
            others = [m.peer for m in self._members.nodes(key[1]) if self._is_near(m.peer, key[1])]
            target = self._rng.choice(others) if others else target
        effects = self.ask(target, key, now) if target is not None else []
        pending.attempts += 1
        return [*effects, SetTimer(Timer("repair", *key), now + 2.0**pending.attempts)]

    def ask(self, peer: bytes, key: Key, now: float) -> list[Effect]:
        """Asks ``peer`` for what this node lacks of a digest."""
        effects = self._sender.ask(peer, self._estimates.request(*key, peer, now), now)
        if effects and self._members.is_connected(peer):
            self._owed[peer] = min(self._owed[peer] + 1, _MAX_OWED)
        return effects

    def on_brought(self, peer: bytes, now: float) -> None:
        """``peer`` brought a repair. Raises RemoteError if it brings too many without a question."""
        if self._owed[peer] > 0:
            self._owed[peer] -= 1
        elif not self._unasked.take(peer, now):
            raise RemoteError("too many repairs", Refusal.TOO_MANY)

    def on_peer_lost(self, peer: bytes) -> None:
        """Forget questions to and from the peer: answers after its restart could be more than it then asked for."""
        del self._owed[peer]
        for pending in self._pending.values():
            pending.waiting.pop(peer, None)

    def _open(self, key: Key, now: float) -> list[Effect]:
        """Take a place for a new gap; if necessary another gap's."""
        account = self._members.source((self._estimates.tellers(*key) or (key[0],))[0])
        crowd = account.name
        if len(self._pending) >= MAX_PENDING:
            crowd, _ = self._num_of.most_common(1)[0]
        effects: list[Effect] = []
        if len(self._pending) >= MAX_PENDING or self._num_of[account.name] >= MAX_PENDING_OF:
            oldest = next(other for other, pending in self._pending.items() if pending.teller == crowd)
            effects = [CancelTimer(Timer("repair", *oldest)), *self._end(oldest, now)]
        self._pending[key] = _Pending(account.name)
        self._num_of[account.name] += 1
        return effects

    def _end(self, key: Key, now: float) -> list[Effect]:
        """Answer the peers that wait for the same bytes with what there is now."""
        pending = self._pending.pop(key)
        self._num_of[pending.teller] -= 1
        if not self._num_of[pending.teller]:
            del self._num_of[pending.teller]
        return [e for peer, request in pending.waiting.items() for e in self.on_request(peer, request, now)]

    # --- answering -------------------------------------------------------------------------------------------------

    def on_request(self, peer: bytes, request: RepairRequest, now: float) -> list[Effect]:
        key = (peer, request.owner)
        if not self._repaired.has(key, now):
            self._refusals[Refusal.TOO_SOON] += 1
            return [Emit("repair_refused", {"peer": peer})]
        pending = self._pending.get((request.owner, request.namespace))
        if pending is not None and peer not in pending.waiting and len(pending.waiting) < _MAX_WAITING_PER_REPAIR:
            pending.waiting[peer] = request
            return []
        repair = self._repair_for(request)
        if repair is None:
            return []
        effects = self._sender.answer(peer, repair, now)
        if repair.mode != SAME and effects:
            self._repaired.take(key, now)
        return effects

    def _repair_for(self, request: RepairRequest) -> Repair | None:
        if request.owner == self._me:
            own = self._own.get(request.namespace)
            return own.repair(request) if own else None
        return self._estimates.relay(request)

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def check_invariants(self) -> None:
        assert len(self._pending) <= MAX_PENDING
        assert self._num_of == Counter(pending.teller for pending in self._pending.values())
        assert all(num <= MAX_PENDING_OF for num in self._num_of.values())
        assert all(num <= _MAX_OWED for num in self._owed.values())
        assert all(len(pending.waiting) <= _MAX_WAITING_PER_REPAIR for pending in self._pending.values())

"""Which nodes could answer a request of this entry node now, with what is known of each, and which are left out.

Besides reports, this node uses what it sent where (``dispatches.py``), which nodes refused lately (``overload.py``) and
which have served long enough for their claims to count fully (``newcomers.py``).
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence, Set

import numpy as np

from mycelia.proto.admission.overload import BusyPeers
from mycelia.proto.cache.sharing import EVERYBODY, owner_of
from mycelia.proto.config import RequestConfig
from mycelia.proto.planes.digests import DigestPlane
from mycelia.proto.planes.membership import Membership
from mycelia.proto.planes.request import Request
from mycelia.proto.routing.candidates import Candidates, Usual
from mycelia.proto.routing.choose import Decision
from mycelia.proto.routing.dispatches import Dispatches
from mycelia.proto.routing.newcomers import Newcomers
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import MAX_TOKENS_PER_REQUEST
from mycelia.proto.wire.versions import version_of


class Choice:
    """The candidates for each request. The caller changes ``dispatches`` and ``busy``."""

    def __init__(self, me: bytes, config: RequestConfig, members: Membership, digests: DigestPlane) -> None:
        self._me = me
        self._config = config
        self._members = members
        self._digests = digests
        self._dispatches: dict[bytes, Dispatches] = {}
        """Namespace -> dispatches."""
        self.busy = BusyPeers()
        self._newcomers = Newcomers()

    def in_flight(self, peer: bytes) -> int:
        """Requests of this node that ``peer`` is working on."""
        return sum(space.in_flight(peer) for space in self._dispatches.values())

    def dispatches(self, request: Request) -> Dispatches:
        space = self._dispatches.get(request.namespace)
        if space is None:
            space = self._dispatches[request.namespace] = Dispatches()
        return space

    def remember(self, request: Request, peer: bytes, chain: Sequence[int], now: float) -> None:
        """``peer`` got the request, or holds it with its answer. ``chain`` is masked for its owner. Mutates."""
        config = self._config
        keep_s = config.private_dispatch_s if request.salt.scope != EVERYBODY else config.own_dispatch_s
        self.dispatches(request).remember(peer, chain, now + keep_s)

    def on_peer_lost(self, peer: bytes) -> None:
        for space in self._dispatches.values():
            space.forget(peer)

    def candidates(
        self, request: Request, now: float, without: Set[bytes] = frozenset(), *, also_full: bool = False
    ) -> Candidates:
        """The candidates for ``request``. also_full: include those whose queues are as long as allowed."""
        namespace, chain = request.namespace, request.chain
        table, space = self._members.loads(namespace), self.dispatches(request)
        sent = space.matches(request.own_chain, now)
        blocks = dict(self._digests.estimates.matches(namespace, chain))
        left_out = self._left_out(request, now) | without
        newcomers, have_enough = self._newcomers.look(table, space.in_flight, now)
        left_out |= have_enough
        for peer in newcomers & blocks.keys():
            blocks[peer] = max(blocks[peer] // 2, sent.get(peer, 0))
        for peer, num_blocks in sent.items():
            blocks[peer] = max(num_blocks, blocks.get(peer, 0))
        if self._members.own_vitals(namespace) is not None:
            own = owner_of(request.salt.tag_at(self._me), request.salt.scope, self._me, "")
            blocks[self._me] = self._digests.held_blocks(namespace, chain, own.tag)
        matched = {peer: num_blocks * STRIDE for peer, num_blocks in blocks.items()} | request.truths
        most = request.num_reusable
        return table.candidates(
            request.num_tokens,
            {peer: min(num_tokens, most) for peer, num_tokens in matched.items()},
            {peer: min(num_blocks * STRIDE, most) for peer, num_blocks in sent.items()},
            space.running(),
            left_out,
            now,
            math.inf if also_full else self._config.max_waiting_per_slot,
            space.usual,
        )

    def sent(self, request: Request, decision: Decision, now: float) -> None:
        chosen, expected_s = decision.chosen, decision.expected_s
        uncached = max(request.num_tokens - decision.matched_tokens, 0)
        self._newcomers.sent(chosen, self._members.loads(request.namespace), now)
        space = self.dispatches(request)
        space.begin(request.request_id, chosen, uncached, expected_s, now)
        space.note(Usual(request.num_tokens, decision.uncached_tokens))
        self.remember(request, chosen, request.own_chain, now)

    def may_wait_long(self, request: Request) -> bool:
        """Whether the request may also go to full nodes, which then decide: no other node would be sooner, its answer
        has begun, or this node is leaving and thus reports itself full."""
        return self._is_alone(request) or bool(request.generated) or self._members.is_leaving

    def has_turn_here(self, request: Request) -> bool:
        """Whether the request goes to this node's own engine in any case: no other node could answer, and the engine,
        which knows what waits there, has a turn for a subnet with nothing else in flight here."""
        own_vitals = self._members.own_vitals(request.namespace)
        return request.is_first and self._is_alone(request) and own_vitals is not None and own_vitals.slots > 0

    def _is_alone(self, request: Request) -> bool:
        peers = self._members.loads(request.namespace).peers
        return len(peers) == 1 and peers[0] == self._me

    def has_place(self, request: Request, now: float) -> bool:
        return len(self._fitting(request, now, also_full=self.may_wait_long(request))) > 0

    def place_s(self, request: Request, now: float) -> float:
        """Seconds between two requests that the fastest node ends, by the nodes' reports; 0.0: unknown."""
        nodes = self._fitting(request, now, also_full=True)
        told_s = (nodes.hold_s / np.maximum(nodes.slots, 1.0))[nodes.hold_s > 0]
        return float(told_s.min()) if len(told_s) else 0.0

    def busy_ms(self, request: Request, now: float) -> int:
        """Milliseconds until a busy node may get this request; 0: none is busy."""
        peers = self._members.fitting(request.namespace, request.num_tokens)
        return self.busy.least_wait_ms([self.busy_key(request, peer) for peer in peers], now)

    def busy_key(self, request: Request, peer: bytes) -> bytes:
        """The key in ``busy``: a node may be busy with one model and not with another; this node's own engine
        distinguishes its clients, to a peer they are all this node."""
        return request.namespace + peer + (request.subnet if peer == self._me else b"")

    def check_invariants(self, running: Collection[Request]) -> None:
        """Raises AssertionError unless the dispatches that count are those of ``running``."""
        at_peers = Counter((request.namespace, request.peer) for request in running)
        for (namespace, peer), num_requests in at_peers.items():
            assert self._dispatches[namespace].in_flight(peer) == num_requests
        self._newcomers.check_invariants()
        assert sum(space.num_in_flight() for space in self._dispatches.values()) == len(running)

    def _fitting(self, request: Request, now: float, also_full: bool) -> Candidates:
        """The candidates, without what they hold of the prompt."""
        table, running = self._members.loads(request.namespace), self.dispatches(request).running()
        most = math.inf if also_full else self._config.max_waiting_per_slot
        return table.candidates(request.num_tokens, {}, {}, running, self._left_out(request, now), now, most)

    def _left_out(self, request: Request, now: float) -> set[bytes]:
        """Nodes to which the request is not sent at any cost."""
        setbacks = request.setbacks
        may_kill_engines = setbacks.num_engine_losses >= self._config.max_engine_losses
        only_here = may_kill_engines or (request.is_doubted and self._me not in setbacks.failed_peers)
        is_own_free = not self.busy.is_busy(self.busy_key(request, self._me), now)
        if setbacks.tries + 1 >= self._config.max_attempts and self._me not in setbacks.failed_peers and is_own_free:
            only_here = only_here or self._members.own_vitals(request.namespace) is not None
        left_out = setbacks.failed_peers | self.busy.now(request.namespace, now) - {self._me}
        if not is_own_free:
            left_out.add(self._me)
        needed = version_of(request.sampling)
        if needed > 1:
            peers = self._members.loads(request.namespace).peers
            left_out.update(peer for peer in peers if self._members.wire_version(peer) < needed)
        if only_here or request.num_tokens > MAX_TOKENS_PER_REQUEST:
            left_out.update(peer for peer in self._members.loads(request.namespace).peers if peer != self._me)
        return left_out

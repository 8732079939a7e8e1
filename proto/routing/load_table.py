"""The load of every node of one namespace as this node knows it, in columns that are updated when news arrives.

A decision reads all rows at once and news changes one row, so a row is written when its news arrives. Invariant: rows 0
.. len(peers) - 1 are the connected nodes that serve the namespace, and this node if it serves it, in any order.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import UNKNOWN, Candidates, Usual
from mycelia.proto.routing.dispatches import UnderWay
from mycelia.proto.routing.observed import Observed
from mycelia.proto.wire.messages import MAX_SMALL, Served

_COLUMNS = range(14)
_ROUND_TRIP, _TOLD_AT, _HOLDS_UNTIL, _CONTEXT, _QUEUED, _REQUESTS, _SLOTS, _RATE, _HOLD = _COLUMNS[:9]
_IMPRECISION, _LATENESS, _OBSERVED_AT, _SEEN_RATE, _SINCE = _COLUMNS[9:]
_MAX_PROMPTS = 4.0
"""More prompts that wait to be computed count as this many: a bound on what claims can do to the mean of all nodes."""
_HAS_PLACE = 1.5
"""A node has a place while its requests per slot are below this."""


class LoadTable:
    """One row per node. ``observed`` is read whenever ``observe`` reports news."""

    def __init__(
        self,
        me: bytes,
        config: RoutingConfig,
        observed: Observed,
        subnet_of: Callable[[bytes], bytes] = lambda peer: peer,
        connected_at: Callable[[bytes], float] = lambda peer: 0.0,
        namespace: bytes = b"",
    ) -> None:
        """subnet_of: the group in which a peer is counted. connected_at: the time at which it connected."""
        self._me = me
        self._config = config
        self._observed = observed
        self._peers: list[bytes] = []
        self._row_of: dict[bytes, int] = {}
        self._subnet_of = subnet_of
        self._connected_at = connected_at
        self._namespace = namespace
        self._subnets: dict[bytes, bytes] = {}
        self._of_subnet: dict[bytes, set[bytes]] = {}
        """The mapping in both directions, as it was when each peer came."""
        self._columns: NDArray[np.float64] = np.zeros((len(_COLUMNS), 16))

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def peers(self) -> Sequence[bytes]:
        """The peer of each row. Read-only."""
        return self._peers

    def subnet(self, peer: bytes) -> bytes:
        """The group in which ``peer``, which must be in the table, is counted."""
        return self._subnets[peer]

    def of_subnet(self, subnet: bytes) -> Collection[bytes]:
        """The subnet's peers in the table. Read-only."""
        return self._of_subnet.get(subnet, ())

    def put(self, peer: bytes, served: Served, told_at: float, holds_until: float, round_trip_s: float | None) -> None:
        """``peer`` reported ``served`` at ``told_at`` and would have reported any change until ``holds_until``.
        round_trip_s: None when not measured yet. Mutates."""
        row = self._row_of.get(peer)
        if row is None:
            row = self._add(peer)
        vitals = served.vitals
        self._columns[: _HOLD + 1, row] = (
            self._config.default_round_trip_s if round_trip_s is None else round_trip_s,
            told_at,
            holds_until,
            served.context_tokens,
            vitals.queued_tokens,
            min(vitals.active_requests + vitals.waiting_requests, MAX_SMALL),
            vitals.slots,
            vitals.prefill_rate,
            vitals.hold_ms / 1000,
        )

    def observe(self, peer: bytes) -> None:
        """``observed`` has news of ``peer``, which need not be in the table. Mutates."""
        row = self._row_of.get(peer)
        if row is not None:
            self._columns[_IMPRECISION:, row] = self._observed.record(peer, self._connected_at(peer), self._namespace)

    def remove(self, peer: bytes) -> None:
        row = self._row_of.pop(peer, None)
        if row is None:
            return
        subnet = self._subnets.pop(peer)
        self._of_subnet[subnet].discard(peer)
        if not self._of_subnet[subnet]:
            del self._of_subnet[subnet]
        last = self._peers.pop()
        if last != peer:
            self._peers[row] = last
            self._row_of[last] = row
            self._columns[:, row] = self._columns[:, len(self._peers)]

    def pasts_s(self, now: float) -> NDArray[np.float64]:
        """How long each row's node has been known, see ``observed.py``; infinity for this node."""
        pasts_s = np.maximum(now - self._columns[_SINCE, : len(self._peers)], 0.0)
        own = self._row_of.get(self._me)
        if own is not None:
            pasts_s[own] = math.inf
        return pasts_s

    def past_s(self, peer: bytes, now: float) -> float:
        """The value of ``pasts_s`` for ``peer``; infinity if it is not in the table."""
        row = self._row_of.get(peer)
        if row is None or peer == self._me:
            return math.inf
        return max(now - float(self._columns[_SINCE, row]), 0.0)

    def has_place(self) -> NDArray[np.bool_]:
        """For each row whether a prompt would begin there soon, by the node's last report."""
        slots = self._columns[_SLOTS, : len(self._peers)]
        return (slots > 0) & (self._columns[_REQUESTS, : len(self._peers)] < slots * _HAS_PLACE)

    def candidates(
        self,
        prompt_tokens: int,
        matched: Mapping[bytes, int],
        sent: Mapping[bytes, int],
        under_way: Mapping[bytes, Sequence[UnderWay]],
        left_out: Set[bytes],
        now: float,
        max_waiting_per_slot: float = math.inf,
        usual: Usual = UNKNOWN,
    ) -> Candidates:
        """This node and every node whose context holds ``prompt_tokens`` and one more. ``left_out`` are excluded. If
        ``max_waiting_per_slot`` is finite, nodes with a longer queue are excluded, and nodes that reported lately that
        they have no slots. Entries for peers that are not in the table are ignored:

        matched: tokens of the prompt in the peer's cache; sent: tokens of the prompt that this node sent there lately;
        under_way: requests that this node sent there and that are not over; usual: see ``Usual``.
        """
        num = len(self._peers)
        columns = self._columns[:, :num]
        slots = columns[_SLOTS]
        matched_tokens, sent_tokens = self._scattered(matched), self._scattered(sent)
        age_s = np.maximum(now - np.maximum(columns[_TOLD_AT], np.minimum(columns[_HOLDS_UNTIL], now)), 0.0)
        # An old queue is done by now. A node that does not report its end must not be avoided for ever.
        still_there = np.exp2(age_s * (-1.0 / self._config.told_half_life_s))
        reported, requests = columns[_QUEUED] * still_there, columns[_REQUESTS] * still_there
        queued = reported.copy()
        overdue_s = np.zeros(num)
        for peer, running in under_way.items():
            row = self._row_of.get(peer)
            if row is not None:
                # The peer's last report cannot include requests that had not arrived when the peer sent it.
                since = columns[_TOLD_AT, row] - columns[_ROUND_TRIP, row]
                unreported = [one.tokens for one in running if one.sent_at > since]
                queued[row] += sum(unreported)
                requests[row] = min(max(requests[row] + len(unreported), len(running)), MAX_SMALL)
                overdue_s[row] = max(now - min(one.due_at for one in running), 0.0)
        fading = np.exp2(
            np.maximum(now - columns[_OBSERVED_AT], 0.0) * (-1.0 / self._config.observation_half_life_s),
        )
        fits = columns[_CONTEXT] > prompt_tokens
        own = self._row_of.get(self._me)
        if own is not None:  # its engine itself refuses what is too long, and knows better
            fits[own] = True
        fits &= requests < np.maximum(slots, 1.0) * (1 + max_waiting_per_slot)
        if math.isfinite(max_waiting_per_slot):
            # Without slots the node's engine is starting again. The report of another node's new engine may be lost.
            has_engine = (slots > 0) | (age_s > self._config.told_half_life_s)
            if own is not None:
                has_engine[own] = slots[own] > 0
            fits &= has_engine
        for peer in left_out:
            row = self._row_of.get(peer)
            if row is not None:
                fits[row] = False
        made = [
            matched_tokens,
            requests,
            queued,
            slots.copy(),
            columns[_RATE].copy(),
            columns[_HOLD].copy(),
            columns[_ROUND_TRIP].copy(),
            1.0 - columns[_IMPRECISION] * fading,
            np.maximum(columns[_LATENESS] * fading, overdue_s),
            age_s,
            sent_tokens,
            columns[_SEEN_RATE].copy(),
        ]
        if own is not None:
            made[-1][own] = math.inf  # (this node's own report is true)
        # (what this node sent since the reports was partly computed since)
        prompts = np.minimum(reported[fits] / usual.uncached, _MAX_PROMPTS)
        per_node = float(np.add.reduce(prompts)) / max(len(prompts), 1)
        peers, local = self._peers.copy(), -1 if own is None else own
        if not np.logical_and.reduce(fits):
            peers = [self._peers[place] for place in np.flatnonzero(fits).tolist()]
            local = peers.index(self._me) if self._me in peers else -1
            made = [column[fits] for column in made]
        return Candidates(peers, local, *made, usual=usual, prompts_per_node=per_node)

    def check_invariants(self) -> None:
        assert self._row_of == {peer: row for row, peer in enumerate(self._peers)}
        assert self._columns.shape[1] >= len(self._peers)
        assert self._subnets.keys() == self._row_of.keys() == set().union(*self._of_subnet.values())
        for peer, row in self._row_of.items():
            if peer in self._observed:
                assert tuple(self._columns[_IMPRECISION:, row].tolist()) == self._observed.record(
                    peer, self._connected_at(peer), self._namespace
                )

    def _add(self, peer: bytes) -> int:
        row = len(self._peers)
        if row == self._columns.shape[1]:
            self._columns = np.concatenate([self._columns, np.zeros_like(self._columns)], axis=1)
        self._peers.append(peer)
        self._row_of[peer] = row
        subnet = self._subnets[peer] = self._subnet_of(peer)
        self._of_subnet.setdefault(subnet, set()).add(peer)
        self.observe(peer)
        return row

    def _scattered(self, values: Mapping[bytes, int]) -> NDArray[np.float64]:
        column = np.zeros(len(self._peers))
        row_of = self._row_of
        for peer, value in values.items():
            row = row_of.get(peer)
            if row is not None:
                column[row] = value
        return column

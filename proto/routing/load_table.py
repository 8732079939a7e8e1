"""What is known of the load of every node of one namespace, in columns that are kept up to date as news come.

A decision reads all rows at once and news touch one, so a row is written where the news is heard. Invariant: rows
0 .. len(peers) - 1 are the nodes that serve the namespace and are connected, and this node if it serves it; in no order
that means anything.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidates
from mycelia.proto.routing.dispatches import UnderWay
from mycelia.proto.routing.observed import Observed
from mycelia.proto.wire.messages import MAX_SMALL, Served

_COLUMNS = range(14)
_ROUND_TRIP, _TOLD_AT, _HOLDS_UNTIL, _CONTEXT, _QUEUED, _REQUESTS, _SLOTS, _RATE, _HOLD = _COLUMNS[:9]
_IMPRECISION, _LATENESS, _OBSERVED_AT, _SEEN_RATE, _SINCE = _COLUMNS[9:]
_HAS_PLACE = 1.5
"""Requests a slot below which a node has a place."""


class LoadTable:
    """One row a node. ``observed`` is read whenever ``observe`` says that it has news."""

    def __init__(
        self,
        me: bytes,
        config: RoutingConfig,
        observed: Observed,
        subnet_of: Callable[[bytes], bytes] = lambda peer: peer,
        connected_at: Callable[[bytes], float] = lambda peer: 0.0,
    ) -> None:
        """subnet_of: what a peer counts as where all keys of a subnet count together; connected_at: the time at
        which it connected."""
        self._me = me
        self._config = config
        self._observed = observed
        self._peers: list[bytes] = []
        self._row_of: dict[bytes, int] = {}
        self._subnet_of = subnet_of
        self._connected_at = connected_at
        self._subnets: dict[bytes, bytes] = {}
        self._of_subnet: dict[bytes, set[bytes]] = {}
        """Both ways; as it was when a peer came."""
        self._columns: NDArray[np.float64] = np.zeros((len(_COLUMNS), 16))

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def peers(self) -> Sequence[bytes]:
        """Row by row. To look at."""
        return self._peers

    def subnet(self, peer: bytes) -> bytes:
        """What ``peer``, which is here, counts as."""
        return self._subnets[peer]

    def of_subnet(self, subnet: bytes) -> Collection[bytes]:
        """Its peers that are here. To look at."""
        return self._of_subnet.get(subnet, ())

    def put(self, peer: bytes, served: Served, told_at: float, holds_until: float, round_trip_s: float | None) -> None:
        """What ``peer`` told of itself at ``told_at``, and that would have told any change until ``holds_until``.
        round_trip_s: None when it was not measured yet. Mutates."""
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
        """``observed`` has news of ``peer``, who need not be here. Mutates."""
        row = self._row_of.get(peer)
        if row is not None:
            self._columns[_IMPRECISION:, row] = self._observed.record(peer, self._connected_at(peer))

    def remove(self, peer: bytes) -> None:
        """Nothing happens if ``peer`` is not here. Mutates."""
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
        """Row by row, how long it has been known, see ``observed.py``; infinity for this node."""
        pasts_s = np.maximum(now - self._columns[_SINCE, : len(self._peers)], 0.0)
        own = self._row_of.get(self._me)
        if own is not None:
            pasts_s[own] = math.inf
        return pasts_s

    def past_s(self, peer: bytes, now: float) -> float:
        """As ``pasts_s``, of one; infinity if it is not here."""
        row = self._row_of.get(peer)
        if row is None or peer == self._me:
            return math.inf
        return max(now - float(self._columns[_SINCE, row]), 0.0)

    def has_place(self) -> NDArray[np.bool_]:
        """Row by row, whether a prompt would begin there soon, as it told last."""
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
    ) -> Candidates:
        """This node, and everybody whose context holds ``prompt_tokens`` and one more, but for ``left_out`` and, where
        queues have a bound, those with a longer queue and those that told lately that they have no slots. Peers that
        are not here are ignored in what is told of them:

        matched: tokens of the prompt in its cache; sent: tokens of the prompt sent there by this node lately;
        under_way: requests sent there by this node that are not over.
        """
        num = len(self._peers)
        columns = self._columns[:, :num]
        slots = columns[_SLOTS]
        matched_tokens, sent_tokens = self._scattered(matched), self._scattered(sent)
        age_s = np.maximum(now - np.maximum(columns[_TOLD_AT], np.minimum(columns[_HOLDS_UNTIL], now)), 0.0)
        # What was there long ago is done by now, and who tells nobody that it is must not be avoided for ever.
        still_there = np.exp2(age_s * (-1.0 / self._config.told_half_life_s))
        queued, requests = columns[_QUEUED] * still_there, columns[_REQUESTS] * still_there
        overdue_s = np.zeros(num)
        for peer, running in under_way.items():
            row = self._row_of.get(peer)
            if row is not None:
                # Its last word about its load cannot include what was not there yet when it spoke.
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
        if own is not None:  # its engine says itself what is too long, and better
            fits[own] = True
        fits &= requests < np.maximum(slots, 1.0) * (1 + max_waiting_per_slot)
        if math.isfinite(max_waiting_per_slot):
            # Its engine is starting again. Of another node's new engine the news may have been lost.
            has_engine = (slots > 0) | (age_s > self._config.told_half_life_s)
            if own is not None:
                has_engine[own] = slots[own] > 0
            fits &= has_engine
        for peer in left_out:
            row = self._row_of.get(peer)
            if row is not None:
                fits[row] = False
        made = (
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
        )
        if own is not None:
            made[-1][own] = math.inf  # (its own word is true)
        if np.logical_and.reduce(fits):
            return Candidates(self._peers.copy(), -1 if own is None else own, *made)
        places = np.flatnonzero(fits).tolist()
        peers = [self._peers[place] for place in places]
        local = peers.index(self._me) if self._me in peers else -1
        return Candidates(peers, local, *(column[fits] for column in made))

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant is broken."""
        assert self._row_of == {peer: row for row, peer in enumerate(self._peers)}
        assert self._columns.shape[1] >= len(self._peers)
        assert self._subnets.keys() == self._row_of.keys() == set().union(*self._of_subnet.values())
        for peer, row in self._row_of.items():
            if peer in self._observed:
                assert tuple(self._columns[_IMPRECISION:, row].tolist()) == self._observed.record(
                    peer, self._connected_at(peer)
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

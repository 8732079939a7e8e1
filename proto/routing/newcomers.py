"""The share of its prompts that this node gives to nodes it has not known for long, while others can serve.

Keys are free, and all reports of a node about itself are claims. A node that claims to be idle, fast and to hold every
prefix would be the best choice for every prompt. If it answers at once with invented text, no measured time
distinguishes it from a fast machine. Only a past cannot be had at once. So a node that has been known for less than
``PROBATION_S``, beside nodes known for longer, is a *newcomer*. It gets at most a twelfth of the prompts, or an equal
part where few others have a place for them. All keys of a subnet count together, and all newcomers together get at most
half. Half of the cache that a newcomer claims counts, but all of the prompts that this node itself sent there.

Where all are new, as in a swarm that has just started, only this node, which knows itself, counts as longer known.

Invariant: at most MAX_SUBNETS shares are remembered, the latest; they are shares of the last ``WINDOW`` prompts.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable

from mycelia.proto.routing.load_table import LoadTable

PROBATION_S = 600.0
LONGER_S = 30.0
"""A node is new only beside nodes whose past is this much longer: nodes that start together are found one by one."""
LEAST_SHARE, ALL_SHARE = 0.08, 0.5
"""Shares of the prompts: for one subnet of newcomers, and for all newcomers together."""
WINDOW = 32
FEW_OTHERS = 3
"""Number of longer known nodes besides this one at which newcomers are bounded together and claims count half."""
MAX_IN_FLIGHT = 4
"""Requests of this node in flight at one newcomer."""
MAX_SUBNETS = 128
_LOOK_S = 1.0
"""Seconds between two updates of the newcomers and the nodes with a place. One takes 30 us for 256 nodes."""
_FADING = 1.0 - 1 / WINDOW


class Newcomers:
    """Which part of this node's prompts each subnet got."""

    def __init__(self) -> None:
        self._shares: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """Subnet -> (its share, the number of the prompt at which it had this share)."""
        self._all_share = 0.0
        self._num_sent = 0
        self._table: LoadTable | None = None
        self._looked_at = 0.0
        """Time of the last update, which computes the following:"""
        self._past_s = 0.0
        """A node with a shorter past is a newcomer."""
        self._newcomers: set[bytes] = set()
        self._others_s: list[float] = []
        """Pasts of the nodes that had a place, sorted."""

    def sent(self, peer: bytes, table: LoadTable, now: float) -> None:
        subnet = table.subnet(peer)
        share = self._share(subnet)
        self._num_sent += 1
        self._shares[subnet] = (share + (1.0 - share) / WINDOW, self._num_sent)
        self._shares.move_to_end(subnet)
        if len(self._shares) > MAX_SUBNETS:
            self._shares.popitem(last=False)
        is_new = table.past_s(peer, now) < self._past_s
        self._all_share += (is_new - self._all_share) / WINDOW

    def look(self, table: LoadTable, in_flight: Callable[[bytes], int], now: float) -> tuple[set[bytes], set[bytes]]:
        """(newcomers of ``table`` if there are enough others, nodes of it that get no prompt now). Mutates."""
        if table is not self._table or now >= self._looked_at + _LOOK_S:
            self._look(table, now)
        newcomers, left_out = self._newcomers, set[bytes]()
        if newcomers:
            is_all = self._all_share + 1 / WINDOW > ALL_SHARE
            left_out = {peer for peer in newcomers if is_all or in_flight(peer) >= MAX_IN_FLIGHT}
        for subnet, (share, _) in self._shares.items():
            if share + 1 / WINDOW > LEAST_SHARE and (share := self._share(subnet) + 1 / WINDOW) > LEAST_SHARE:
                keys = table.of_subnet(subnet)
                left_out.update(peer for peer in keys if self._has_enough(share, table.past_s(peer, now)))
        return newcomers, left_out

    def _look(self, table: LoadTable, now: float) -> None:
        self._table, self._looked_at, self._past_s, self._newcomers = table, now, 0.0, set()
        pasts_s = table.pasts_s(now)
        self._others_s = sorted(pasts_s[table.has_place()].tolist())
        if len(self._others_s) > FEW_OTHERS:
            has_own = math.isinf(self._others_s[-1])
            self._past_s = min(PROBATION_S, self._others_s[-FEW_OTHERS - has_own] - LONGER_S)
        if self._past_s > 0:
            self._newcomers = {table.peers[place] for place in (pasts_s < self._past_s).nonzero()[0].tolist()}

    def _has_enough(self, share: float, past_s: float) -> bool:
        if past_s >= PROBATION_S:
            return False
        num_others = len(self._others_s) - bisect_left(self._others_s, past_s + LONGER_S)
        return num_others >= FEW_OTHERS or (num_others > 0 and share > 1 / (1 + num_others))

    def _share(self, subnet: bytes) -> float:
        """The subnet's share of the prompts up to now."""
        share, since = self._shares.get(subnet, (0.0, 0))
        return share * _FADING ** (self._num_sent - since) if share else 0.0

    def check_invariants(self) -> None:
        assert len(self._shares) <= MAX_SUBNETS and 0 <= self._all_share <= 1
        assert sum(map(self._share, self._shares)) <= 1 + 1e-6

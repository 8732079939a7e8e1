"""What is given to nodes that have not served this one for long: a share of its prompts, while others can serve.

Keys are free, and everything that a node tells of itself is a claim. One that claims to be idle, fast and to hold every
prefix would be the best choice for every prompt, and where it answers at once whatever comes to its mind, no measure of
time tells it from a fast machine. What such a node cannot have at once is a past. So a node that has been
known for less than ``PROBATION_S`` is a *newcomer* beside those that have been for longer, and gets no more than a
twelfth of the prompts, or an equal part where few others have a place for them; all keys of a subnet together, and
all newcomers together no more than half. What they claim to hold counts half, but what this node sent there itself.

Where all are new, as in a swarm that has just started, nobody has a longer past, and only this node itself, which knows
itself, counts against the others.

Invariant: at most MAX_SUBNETS shares are remembered, the latest; they are those of the last ``WINDOW`` prompts.
"""

import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable

from mycelia.proto.routing.load_table import LoadTable

PROBATION_S = 600.0
LONGER_S = 30.0
"""By which the past of others is longer beside which a node is new: those that start together are found one by one."""
LEAST_SHARE, ALL_SHARE = 0.08, 0.5
"""Of the prompts: that one subnet of newcomers gets, and all of them."""
WINDOW = 32
FEW_OTHERS = 3
"""Nodes with a longer past beside this one, from which on newcomers are bounded together and claims count half."""
MAX_IN_FLIGHT = 4
"""Requests of this node at one newcomer."""
MAX_SUBNETS = 128
_LOOK_S = 1.0
"""Between two looks who is new and who has a place: 30 us for 256 nodes."""
_FADING = 1.0 - 1 / WINDOW


class Newcomers:
    """Shares of the prompts that this node sent somewhere."""

    def __init__(self) -> None:
        self._shares: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """Subnet -> its share, and of which prompt on that was so."""
        self._all_share = 0.0
        self._num_sent = 0
        self._table: LoadTable | None = None
        self._looked_at = 0.0
        """When was looked at that last; what was seen:"""
        self._past_s = 0.0
        """A shorter past makes a newcomer."""
        self._newcomers: set[bytes] = set()
        self._others_s: list[float] = []
        """Pasts of the nodes that had a place, sorted."""

    def sent(self, peer: bytes, table: LoadTable, now: float) -> None:
        """A prompt goes to ``peer``. Mutates."""
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
        """(newcomers of ``table`` where there are others enough, its nodes that get no prompt now). Mutates."""
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
        """Of the prompts up to now."""
        share, since = self._shares.get(subnet, (0.0, 0))
        return share * _FADING ** (self._num_sent - since) if share else 0.0

    def check_invariants(self) -> None:
        """Raises AssertionError when an invariant is broken."""
        assert len(self._shares) <= MAX_SUBNETS and 0 <= self._all_share <= 1
        assert sum(map(self._share, self._shares)) <= 1 + 1e-6

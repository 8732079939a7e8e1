"""Which strangers get a place when there are too few, and which give one up: connections, handshakes, streams.

Places are given by subnet (``subnets.Places``). If there is none for a newcomer, the holder that uses its place least
gives it up: of the subnet that holds most places, the one that was idle for longest.

    rank     gives up its place to
    IDLE     another subnet when all places are taken, a known key, its own subnet after ``own_after_s``
    PROVEN   another subnet that holds less than half as many; see below
    KEPT     nobody

Where all are proven, newcomers would find no place at all, and a node to which all others come first would introduce
nobody any more. So a holder that had its place for ``settled_after_s``, long enough to meet others, may lose it to a
newcomer: one every TURNOVER_S, and none of the half that is there for longest, which no crowd of newcomers can push out
(as Bitcoin's nodes do it).

Nothing here is an offence: a newcomer's arrival decides whether another holder loses its place.

Invariant: the taken places are exactly those of holders that were admitted and neither released nor given up.
"""

import math
from collections.abc import Container
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from mycelia.proto.admission.subnets import Places

HolderT = TypeVar("HolderT")

TURNOVER_S = 2.0


class Rank(IntEnum):
    """How much the holder of a place has done to keep it."""

    IDLE = 0
    PROVEN = 1
    KEPT = 2


@dataclass
class _Held:
    key: bytes
    subnet: str
    since: float
    used_at: float
    rank: Rank


class Admission(Generic[HolderT]):
    """Places of one kind and their holders."""

    def __init__(
        self,
        num_places: int,
        per_key: int,
        num_kept: int = 0,
        own_after_s: float = 0.0,
        settled_after_s: float = math.inf,
    ) -> None:
        """num_kept: places that only known keys may take. own_after_s: how long a holder must have been idle before it
        gives up its place to another one of its own subnet. settled_after_s: after how long a proven holder may lose
        its place to any newcomer."""
        self._places = Places(num_places, per_key, num_kept)
        self._own_after_s = own_after_s
        self._settled_after_s = settled_after_s
        self._turned_at = -math.inf
        """When a settled holder lost its place last."""
        self._held: dict[HolderT, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def subnet_of(self, holder: HolderT) -> str:
        """The subnet of ``holder``; empty: it holds no place."""
        return self._held[holder].subnet if holder in self._held else ""

    def rank_of(self, holder: HolderT) -> Rank:
        """The rank of ``holder``; IDLE also when it holds no place."""
        return self._held[holder].rank if holder in self._held else Rank.IDLE

    def admit(
        self,
        holder: HolderT,
        key: bytes,
        subnet: str,
        now: float,
        is_known: bool = False,
        is_proven: bool = False,
        busy: Container[bytes] = (),
    ) -> list[HolderT] | None:
        """None: no place for ``holder``. Otherwise the holders that gave up theirs, at most one: end them, they are
        released. is_known, is_proven: see ``Places.take``. busy: keys whose holders keep their places. Mutates."""
        given_up: list[HolderT] = []
        if not self._places.take(key, subnet, is_known, is_proven):
            other = self._idlest(key, subnet, now, is_known, busy)
            is_turn = other is None and now >= self._turned_at + TURNOVER_S
            if is_turn:
                other = self._settled(key, now, busy)
            if other is None:
                return None
            held = self.release(other)
            if not self._places.take(key, subnet, is_known, is_proven):
                self._take_back(other, held)
                return None
            given_up = [other]
            if is_turn:
                self._turned_at = now
        self._held[holder] = _Held(key, subnet, now, now, Rank.KEPT if is_known else Rank.IDLE)
        return given_up

    def raise_rank(self, key: bytes, rank: Rank) -> None:
        """Every holder of ``key`` has at least this rank from now on. Mutates."""
        for held in self._held.values():
            if held.key == key:
                held.rank = max(held.rank, rank)

    def keep(self, holder: HolderT) -> None:
        """``holder`` gives up its place to nobody; does nothing without a place. Mutates."""
        if holder in self._held:
            self._held[holder].rank = Rank.KEPT

    def use(self, key: bytes, now: float) -> None:
        for held in self._held.values():
            if held.key == key:
                held.used_at = now

    def release(self, holder: HolderT) -> _Held | None:
        """``holder`` is over. Does nothing when it holds no place, for example after it gave it up. Mutates."""
        held = self._held.pop(holder, None)
        if held is not None:
            self._places.free(held.key, held.subnet)
        return held

    def _idlest(self, key: bytes, subnet: str, now: float, is_known: bool, busy: Container[bytes]) -> HolderT | None:
        """The holder that gives up its place for a newcomer of ``subnet``."""
        is_full = is_known or self._places.is_full  # (otherwise only its own share is used up)
        is_at_limit = self._places.is_at_limit(key)
        num_own = self._places.num_of(subnet)

        def gives_up(held: _Held) -> bool:
            if held.rank == Rank.KEPT or held.key in busy or (is_at_limit and held.key != key):
                return False
            if held.subnet == subnet and not is_known:
                return held.rank == Rank.IDLE and now - held.used_at >= self._own_after_s
            is_greedy = self._places.num_of(held.subnet) > 2 * (num_own + 1)
            return is_full and (held.rank == Rank.IDLE or is_greedy)

        def order(one: tuple[HolderT, _Held]) -> tuple[Rank, int, float]:
            held = one[1]
            return held.rank, -self._places.num_of(held.subnet), held.used_at

        candidates = [one for one in self._held.items() if gives_up(one[1])]
        return min(candidates, key=order)[0] if candidates else None

    def _settled(self, key: bytes, now: float, busy: Container[bytes]) -> HolderT | None:
        """The holder that had its place for longest, of the half that is there for a shorter time."""
        if self._places.is_at_limit(key):
            return None
        younger = sorted(self._held.items(), key=lambda one: one[1].since)[(len(self._held) + 1) // 2 :]
        for holder, held in younger:
            if held.rank == Rank.PROVEN and held.key not in busy and now - held.since >= self._settled_after_s:
                return holder
        return None

    def _take_back(self, holder: HolderT, held: _Held | None) -> None:
        assert held is not None
        self._places.take(held.key, held.subnet, is_known=True)
        self._held[holder] = held

    def check_invariants(self) -> None:
        self._places.check_invariants()
        assert self._places.num_taken == len(self._held)

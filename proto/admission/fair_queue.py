"""What waits at an engine, and who starts next: fair among clients by the work done for them, bounded for each.

*Levels.* Keys are free, so the order has three levels (``fair_order.py`` three times): the owner and all others share
the engine, subnets (``subnets.py``) the part of the others, and the keys of a subnet its part. A client
without a subnet is a subnet of its own. What follows says client for each of these.

*Owner.* This node's own requests (client ``b""``) come before those of others while the two counters are near each
other, and what the owner receives counts ``OWNER_WEIGHT`` times less. So they are the first to start; and of an engine
that all want, however many they are, others get 1 / (1 + ``OWNER_WEIGHT``). Their places in the queue are apart.

*Order.* Every client has a counter of the service it received: tokens of prompts computed for it plus ``ANSWER_WEIGHT``
x tokens of answers. Next comes, of the clients whose counters are at most ``SLACK`` above the least, the one whose turn
it has been longest: since its first one came, or the one before that started; and of a client what waited longest.
A client of which nothing waited has its counter lifted, when something does again, to the *level* of those that wait
(to the counter of the last that did, if none): nobody saves up for a time when it asks nothing.

Without the slack, and with the least of those that wait for the level, this is the Virtual Token Counter of Sheng et
al., "Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588). Between two clients that always have
something waiting the service received differs by at most 2 x max(longest prompt, ANSWER_WEIGHT x tokens running at
once) + 2 x ``SLACK``, however much one of them asks (their theorem 4.4); no other order that never idles bounds it
better than by half of the first term. Among clients that ask about as much as each other, whose counters differ by
chance and of which one thing waits at a time, the slack makes the order that of arrival: nobody is overtaken again and
again, and the p99 of the wait is a fifth to a quarter lower in busy swarms. Whoever has much waiting gets one in before
a newcomer, not all that came before it.

*Level.* Were it the least itself, clients that ask one thing each, under ever new names perhaps, would hold it where it
is, and whoever is ahead, by one long prompt, would wait for as long as they come. So it also rises with the service, by
``LEVEL_SHARE`` of what each of those that share it would receive were all alike; it is the virtual time of weighted
fair queueing (WF2Q+ of Bennett and Zhang, SIGCOMM 1996), but for that share. Until a client starts that is ahead of the
least, the others receive at most (3n + 4) x its lead and 2n + 1 requests beside those that run, n being the most of
them that wait at a time. (It rises by 1/(2n + 4) of the service at least; once it is as far, nobody begins before that
client, and n have to catch up.) The level stays between the least and the most of those that wait, so who begins is
never further behind than they are among each other, and the bound above holds.

*Bounds.* How much of the queue a client may fill, and when it may come back: ``shares.py``.

The real engines, the fake one and the simulator's have this queue in common, so that what is simulated is what runs.

Invariants: those of ``fair_order.py`` on each level, with MAX_CLIENTS subnets and MAX_KEYS keys of each.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from mycelia.proto.admission.fair_order import OWNER, FairOrder, Key
from mycelia.proto.admission.shares import Shares, has_room
from mycelia.proto.admission.subnets import LOCAL_SHARE, is_local

ANSWER_WEIGHT = 2.0
"""Service of a token of an answer beside one of a prompt: the paper's, and about what they cost. On two cores a 135M
model prefills 292 tokens/s and decodes 115 to 223."""
OWNER_WEIGHT = 8.0
"""What others pay for a token beside what the owner pays."""
SLACK = 1_024.0
"""Tokens of a prompt: about two requests. Eight times as much gains no more."""
MAX_WAIT_S = 120.0
"""A client's requests are refused rather than queued for longer than this: nodes that ask for others give a request up
after so long a silence. Its first one waits however long it takes."""
MAX_CLIENTS, MAX_KEYS = 1_024, 64


class Waiting(Protocol):
    """What can wait."""

    @property
    def client(self) -> bytes:
        """Who asked: an authenticated peer id; empty for this node's own."""
        ...

    @property
    def subnet(self) -> str:
        """Where it asked from, see ``subnets.py``; empty: from a subnet of its own."""
        ...


T = TypeVar("T", bound=Waiting)

_OTHERS = "others"
_Subnets = FairOrder[FairOrder[deque[T]]]


def share_of(item: Waiting) -> Key:
    """The share of an engine that ``item`` takes from: its subnet's, its client's if it has none, or the owner's."""
    return (item.subnet or item.client) if item.client else OWNER


def weighted(client: bytes, service: float) -> float:
    """What ``service`` counts for a client."""
    return service if client else service / OWNER_WEIGHT


class FairQueue(Generic[T]):
    """A bounded queue. Things are told apart by identity."""

    def __init__(self, max_waiting: int, max_wait_s: float = MAX_WAIT_S, slack: float = SLACK) -> None:
        def subnets() -> _Subnets[T]:
            return FairOrder(slack, MAX_CLIENTS, lambda: FairOrder[deque[T]](slack, MAX_KEYS, deque))

        self._shares = Shares(max_waiting, max_wait_s)
        self._order = FairOrder[_Subnets[T]](slack, 2, subnets)
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, item: T) -> bool:
        return any(other is item for other in self._line(item.client, item.subnet))

    def __iter__(self) -> Iterator[T]:
        """In the order in which they should start if no counter changed; those of one client in the order they came."""
        return iter(self._order)

    def join(self, item: T, now: float, guess_s: float = 1.0) -> float:
        """0.0: ``item`` waits. Else it was refused, and this is the time in seconds after which its client may send
        something. guess_s: see ``Shares.join``. Mutates."""
        wait_s = self._refused_s(item, now, guess_s)
        if not wait_s:
            side, share, key = path_of(item.client, item.subnet)
            self._order.entered(side).entered(share).entered(key).append(item)
            self._num_waiting += 1
        return wait_s

    def blocked(self, now: float) -> None:
        """Call when something waits and nothing can start. Mutates the pace only."""
        self._shares.pace.waits(now)

    def start(self, item: T, prompt_tokens: int, now: float) -> None:
        """``item`` leaves to be served; ``prompt_tokens`` of its prompt must be computed. Mutates."""
        for order, key in self._levels(item.client, item.subnet):
            order.starts(key)
        self._remove(item)
        self.charge(item.client, prompt_tokens, item.subnet)
        self._shares.pace.freed(now, len(self) > 0)

    def enter_beside(self, client: bytes, subnet: str = "") -> None:
        """Something of ``client``, of which nothing did, waits in another queue for the same engine: nothing was saved
        up for it here either. Mutates."""
        side, share, key = path_of(client, subnet)
        self._order.lifted(side).lifted(share).lifted(key)

    def serve_beside(self, client: bytes, service: float, subnet: str = "") -> None:
        """Something that waits in another queue received service: whoever begins to wait here, and finds nobody, starts
        from that counter. Mutates."""
        for order, key in self._levels(client, subnet):
            order.starts(key)
        self.charge(client, service, subnet)

    def put_back(self, item: T, prompt_tokens: int, is_next: bool = True) -> None:
        """What was started has to start again, as the first of its client. ``prompt_tokens``: of those that it was
        charged for, as many as were not computed. is_next: before all others, too. Mutates."""
        self.charge(item.client, -prompt_tokens, item.subnet)
        side, share, key = path_of(item.client, item.subnet)
        self._order.returned(side, is_next).returned(share, is_next).returned(key, is_next).appendleft(item)
        self._num_waiting += 1

    def withdraw(self, item: T) -> None:
        """``item`` leaves without being served. Mutates."""
        self._remove(item)
        if not self._num_waiting:
            self._shares.pace.nobody_waits()

    def charge_answer(self, client: bytes, num_tokens: int, subnet: str = "") -> None:
        """So many more tokens of an answer came for ``client``. Mutates."""
        self.charge(client, ANSWER_WEIGHT * num_tokens, subnet)

    def charge(self, client: bytes, service: float, subnet: str = "") -> None:
        """``client`` received service, in tokens of a prompt; below 0: gives it back. Mutates."""
        for order, key in self._levels(client, subnet):
            order.charge(key, weighted(client, service))

    def counter(self, client: bytes, subnet: str = "", level: int = 1) -> float:
        """The service that the client counts as having received at a level: 0, the owner or all others; 1, its
        subnet; 2, itself in its subnet."""
        order, key = self._levels(client, subnet)[level]
        return order.counter(key)

    def num_of(self, client: bytes, subnet: str = "") -> int:
        """How much of ``client`` waits."""
        return len(self._line(client, subnet))

    def check_invariants(self) -> None:
        """Raises AssertionError when the books do not fit each other."""
        items = list(self)
        assert self._num_waiting == len(self._order) == len(items)
        for item in items:
            assert item in self
            for order, _ in self._levels(item.client, item.subnet):
                order.check_invariants()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _refused_s(self, item: T, now: float, guess_s: float) -> float:
        num_own = self.num_of(item.client, item.subnet)
        if not item.client:
            return self._shares.join(OWNER, num_own, num_own, 1.0, now, guess_s)
        share = share_of(item)
        others = self._order.line(_OTHERS)
        keys = others.line(share) if others is not None else None
        num_taken, num_subnet = len(others or ()), len(keys or ())
        part = 1 / ((others.num_waiting if others else 0) + (keys is None))
        if not is_local(item.subnet):
            return self._shares.join(_name(share), num_subnet, num_taken, part, now, guess_s)
        # A swarm on one machine: its nodes are refused one by one, and all of them together at their share.
        if not has_room(int(num_subnet / LOCAL_SHARE), num_taken, self._shares.num_places):
            num_own = max(num_own, int(num_subnet / LOCAL_SHARE))
        part /= (keys.num_waiting if keys else 0) + (num_own == 0)
        return self._shares.join(item.client, num_own, num_taken, part, now, guess_s)

    def _levels(self, client: bytes, subnet: str) -> "list[tuple[FairOrder[Any], Key]]":
        """The orders that a client has a part in, and its key in each."""
        side, share, key = path_of(client, subnet)
        subnets = self._order.known(side)
        return [(self._order, side), (subnets, share), (subnets.known(share), key)]

    def _line(self, client: bytes, subnet: str) -> Sequence[T]:
        line: Any = self._order
        for key in path_of(client, subnet):
            line = line.line(key)
            if line is None:
                return ()
        return line  # type: ignore[no-any-return]

    def _remove(self, item: T) -> None:
        levels = self._levels(item.client, item.subnet)
        firsts = [next(iter(order.known(key))) is item for order, key in levels]
        order, key = levels[-1]
        line = order.known(key)
        del line[next(place for place, other in enumerate(line) if other is item)]
        for (order, key), was_first in reversed(list(zip(levels, firsts, strict=True))):
            order.left(key, was_first)
        self._num_waiting -= 1


def path_of(client: bytes, subnet: str) -> tuple[Key, Key, Key]:
    return (_OTHERS, subnet or client, client) if client else (OWNER, OWNER, OWNER)


def _name(share: Key) -> bytes:
    return share.encode() if isinstance(share, str) else share

"""The requests that wait at an engine, and which starts next: fair among clients by work done, bounded for each.

*Levels.* Keys are free, so the order has three levels (``fair_order.py`` three times): three *sides* share the engine,
which are the owner, the members of its private swarm if the node serves strangers as well, and all others; subnets
(``subnets.py``) share the part of a side, and the keys of a subnet its part. A client without a subnet is a subnet of
its own. Below, *client* means a share of any level.

*Owner.* This node's own requests (client ``b""``) come before others while the two counters are near each other, and
``OWNER_WEIGHT`` tokens for the owner count as one. So they start first; of an engine that all want, others get 1 / (1 +
``OWNER_WEIGHT``). The owner's places in the queue are separate. The same holds for members beside strangers, with
``MEMBER_WEIGHT``.

*Order.* Every client has a counter of the service it received: prompt tokens computed for it plus ``ANSWER_WEIGHT`` x
tokens of answers. Next comes, of the clients whose counters are at most ``SLACK`` above the least, the one whose turn
it has been for longest: since its first item came, or since its previous item started. Of a client the oldest item
starts. When a client begins to wait, its counter is raised to the *level* of the waiting clients (if there are none, to
the counter of the last one): no client saves up service while it asks nothing.

Without the slack, and with the least waiting counter as level, this is the Virtual Token Counter of Sheng et al.,
"Fairness in Serving Large Language Models" (OSDI 2024, arXiv 2401.00588). Between two clients that always have
something waiting, the service received differs by at most 2 x max(longest prompt, ANSWER_WEIGHT x tokens running at
once) + 2 x ``SLACK``, however much one of them asks (their theorem 4.4); no other order that never idles has a better
bound than half of the first term. Among clients with about equal demand, whose counters differ by chance and that have
one item waiting at a time, the slack makes the order the order of arrival: no client is overtaken again and again, and
the p99 of the wait is a fifth to a quarter lower in busy swarms. A client with many waiting items gets one of them in
before a newcomer, not all.

*Level.* If the level were the least counter, clients that ask one thing each, perhaps under ever new names, would keep
it constant, and a client that is ahead by one long prompt would wait as long as they come. So the level also rises with
the service, by ``LEVEL_SHARE`` of what each sharing client would receive if all were alike. Apart from that share it is
the virtual time of weighted fair queueing (WF2Q+ of Bennett and Zhang, SIGCOMM 1996). Before a client that is ahead of
the least starts, the others receive at most (3n + 4) x its lead and 2n + 1 requests beside the running ones, n being
the most that wait at a time. (The level rises by at least 1/(2n + 4) of the service; once it has reached the client, no
other client begins before it, and n have to catch up.) The level stays between the least and the greatest waiting
counter, so a new client is never further behind than the others among each other, and the bound above holds.

*Bounds.* How much of the queue a client may fill, and when it may come back: ``shares.py``.

Real engines, the fake engine and the simulator use this queue, so that the simulated code is the real one.

Invariants: those of ``fair_order.py`` on each level, with MAX_CLIENTS subnets and MAX_KEYS keys of each.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from mycelia.proto.admission.fair_order import MEMBERS, OWNER, FairOrder, Key
from mycelia.proto.admission.shares import Shares, has_room
from mycelia.proto.admission.subnets import LOCAL_SHARE, is_local, is_member

ANSWER_WEIGHT = 2.0
"""Service of an answer's token / a prompt's token: the paper's value, and about the real cost. On two cores a 135M
model prefills 292 tokens/s and decodes 115 to 223."""
OWNER_WEIGHT = 8.0
"""How much a token counts for others / for the owner."""
MEMBER_WEIGHT = 4.0
"""How much a token counts for a stranger / for a member of the node's private swarm."""
SLACK = 1_024.0
"""Tokens of a prompt: about two requests. Eight times as much gains no more."""
MAX_WAIT_S = 120.0
"""A client's further requests are refused instead of queued for longer than this, because entry nodes give a request up
after this long a silence. A client's first request waits however long it takes."""
MAX_CLIENTS, MAX_KEYS = 1_024, 64


class Waiting(Protocol):
    @property
    def client(self) -> bytes:
        """The client: an authenticated peer id; empty for this node's own requests."""
        ...

    @property
    def subnet(self) -> str:
        """The subnet of the client, see ``subnets.py``; empty: a subnet of its own."""
        ...


T = TypeVar("T", bound=Waiting)

_OTHERS = "others"
"""The key of those that are neither the owner nor members."""
_Subnets = FairOrder[FairOrder[deque[T]]]


def share_of(item: Waiting) -> Key:
    """The share of an engine that ``item`` takes from: its subnet's, its client's without a subnet, or the owner's."""
    return (item.subnet or item.client) if item.client else OWNER


def side_of(item: Waiting) -> Key:
    """The owner, members, or others."""
    return path_of(item.client, item.subnet)[0]


def weight_of(client: bytes, subnet: str) -> float:
    """The number of tokens that count as one for this client."""
    if not client:
        return OWNER_WEIGHT
    return MEMBER_WEIGHT if is_member(subnet) else 1.0


def weighted(client: bytes, subnet: str, service: float) -> float:
    return service / weight_of(client, subnet)


class FairQueue(Generic[T]):
    """A bounded queue. Items are distinguished by identity."""

    def __init__(self, max_waiting: int, max_wait_s: float = MAX_WAIT_S, slack: float = SLACK) -> None:
        def subnets() -> _Subnets[T]:
            return FairOrder(slack, MAX_CLIENTS, lambda: FairOrder[deque[T]](slack, MAX_KEYS, deque))

        self._shares = Shares(max_waiting, max_wait_s)
        self._order = FairOrder[_Subnets[T]](slack, 3, subnets)
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, item: T) -> bool:
        return any(other is item for other in self._line(item.client, item.subnet))

    def __iter__(self) -> Iterator[T]:
        """Items in the order in which they should start if no counter changed; of one client by arrival."""
        return iter(self._order)

    def unordered(self) -> list[T]:
        """Items in any order, which costs little: what needs no order may ask at each step of an engine."""
        shares = (share for side in self._order.lines() for share in side.lines())
        return [item for share in shares for line in share.lines() for item in line]

    def join(self, item: T, now: float, guess_s: float = 1.0) -> float:
        """0.0: ``item`` waits now. Otherwise it was refused, and its client may send something after this many seconds.
        guess_s: see ``Shares.join``. Mutates."""
        wait_s = self._refused_s(item, now, guess_s)
        if not wait_s:
            side, share, key = path_of(item.client, item.subnet)
            self._order.entered(side).entered(share).entered(key).append(item)
            self._num_waiting += 1
        return wait_s

    def passes(self, item: T, prompt_tokens: int) -> bool:
        """Whether nothing waits, so that ``item`` starts at once; it counts as joined and started then. Mutates."""
        if self._num_waiting:
            return False
        client, subnet = item.client, item.subnet
        service = weighted(client, subnet, prompt_tokens)
        side, share, key = path_of(client, subnet)
        self._order.passed(side, service).passed(share, service).passed(key, service)
        self._shares.passed(_name(key if is_local(subnet) else share))
        return True

    def blocked(self, now: float) -> None:
        """Call when something waits and nothing can start. Mutates only the pace."""
        self._shares.pace.waits(now)

    def start(self, item: T, prompt_tokens: int, now: float) -> None:
        """``item`` leaves to be served; ``prompt_tokens`` of its prompt must be computed. Mutates."""
        for order, key in self._levels(item.client, item.subnet):
            order.starts(key)
        self._remove(item)
        self.charge(item.client, prompt_tokens, item.subnet)
        self._shares.pace.freed(now, len(self) > 0)

    def enter_beside(self, client: bytes, subnet: str = "") -> None:
        """The first item of ``client`` waits in another queue: its counter rises as if it waited here. Mutates."""
        side, share, key = path_of(client, subnet)
        self._order.lifted(side).lifted(share).lifted(key)

    def serve_beside(self, client: bytes, service: float, subnet: str = "") -> None:
        """An item of another queue got service: a client that comes to an empty queue starts at its counter.
        Mutates."""
        for order, key in self._levels(client, subnet):
            order.starts(key)
        self.charge(client, service, subnet)

    def put_back(self, item: T, prompt_tokens: int, is_next: bool = True) -> None:
        """A started item has to start again, as the first of its client. ``prompt_tokens``: tokens that it was charged
        for but that were not computed. is_next: it also comes before all other clients. Mutates."""
        self.charge(item.client, -prompt_tokens, item.subnet)
        side, share, key = path_of(item.client, item.subnet)
        self._order.returned(side, is_next).returned(share, is_next).returned(key, is_next).appendleft(item)
        self._num_waiting += 1

    def withdraw(self, item: T) -> None:
        self._remove(item)
        if not self._num_waiting:
            self._shares.pace.nobody_waits()

    def charge_answer(self, client: bytes, num_tokens: int, subnet: str = "") -> None:
        self.charge(client, ANSWER_WEIGHT * num_tokens, subnet)

    def charge(self, client: bytes, service: float, subnet: str = "") -> None:
        """``client`` received service, in tokens of a prompt; below 0: gives it back. Mutates."""
        for order, key in self._levels(client, subnet):
            order.charge(key, weighted(client, subnet, service))

    def counter(self, client: bytes, subnet: str = "", level: int = 1) -> float:
        """The service counted for the client at a level. 0: its side; 1: its subnet; 2: itself."""
        order, key = self._levels(client, subnet)[level]
        return order.counter(key)

    def num_of(self, client: bytes, subnet: str = "") -> int:
        return len(self._line(client, subnet))

    def check_invariants(self) -> None:
        items = list(self)
        assert self._num_waiting == len(self._order) == len(items)
        assert set(map(id, self.unordered())) == set(map(id, items))
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
        others = self._order.line(side_of(item))
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
        """The orders in which a client has a share, and its key in each."""
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
        # (what waits alone, as nearly everything in a queue that is seldom full, is the first of all)
        firsts = [self._num_waiting == 1 or next(iter(order.known(key))) is item for order, key in levels]
        order, key = levels[-1]
        line = order.known(key)
        del line[next(place for place, other in enumerate(line) if other is item)]
        for (order, key), was_first in reversed(list(zip(levels, firsts, strict=True))):
            order.left(key, was_first)
        self._num_waiting -= 1


def path_of(client: bytes, subnet: str) -> tuple[Key, Key, Key]:
    if not client:
        return OWNER, OWNER, OWNER
    return MEMBERS if is_member(subnet) else _OTHERS, subnet or client, client


def _name(share: Key) -> bytes:
    return share.encode() if isinstance(share, str) else share

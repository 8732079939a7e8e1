"""What waits at an engine, and who starts next: fair among clients by the work done for them, bounded for each.

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

Invariants: a client's counter never falls but for what ``put_back`` returns; of clients of which nothing waits at most
MAX_CLIENTS are remembered, those that are ahead of one that waits before others.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar

from proto.shares import Shares

ANSWER_WEIGHT = 2.0
"""Service of a token of an answer beside one of a prompt: the paper's, and about what they cost. On two cores a 135M
model prefills 292 tokens/s and decodes 115 to 223."""
SLACK = 1_024.0
"""Tokens of a prompt: about two requests. Eight times as much gains no more."""
LEVEL_SHARE = 0.5
"""At 1 who asks now and then of an engine that eight others keep busy waits 8.7 s instead of 5.9 s, as it begins in
their middle; at a half 6.4 s. At a quarter 6.0 s, and whoever is ahead may wait twice as long as at a half."""
MAX_WAIT_S = 120.0
"""A client's requests are refused rather than queued for longer than this: nodes that ask for others give a request up
after so long a silence. Its first one waits however long it takes."""
MAX_CLIENTS = 1_024


class Waiting(Protocol):
    """What can wait."""

    @property
    def client(self) -> bytes:
        """Who asked: an authenticated peer id; empty for this node's own."""
        ...


T = TypeVar("T", bound=Waiting)


@dataclass
class _Client(Generic[T]):
    counter: float
    """Service received; comparable between clients."""
    waiting: deque[T] = field(default_factory=deque)
    """In order of arrival."""
    turn: int = 0
    """Orders clients by the moment since which their first one is the next of theirs."""


class FairQueue(Generic[T]):
    """A bounded queue. Things are told apart by identity."""

    def __init__(self, max_waiting: int, max_wait_s: float = MAX_WAIT_S, slack: float = SLACK) -> None:
        self._slack = slack
        self._shares = Shares(max_waiting, max_wait_s)
        self._clients: dict[bytes, _Client[T]] = {}
        self._waiting: dict[bytes, _Client[T]] = {}
        """Of those, the ones of which something waits: no more than there are places."""
        self._level = 0.0
        """Not yet put between the counters of those that wait."""
        self._last = b""
        """The client of which something started last."""
        self._turns = itertools.count()
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __contains__(self, item: T) -> bool:
        client = self._waiting.get(item.client)
        return client is not None and any(other is item for other in client.waiting)

    def __iter__(self) -> Iterator[T]:
        """In the order in which they should start if no counter changed; those of one client in the order they came."""
        clients = list(self._waiting.values())
        most = min((client.counter for client in clients), default=0.0) + self._slack
        near = sorted((client for client in clients if client.counter <= most), key=lambda client: client.turn)
        for items in zip_longest(*[list(client.waiting) for client in near]):
            yield from [item for item in items if item is not None]
        far = [client for client in clients if client.counter > most]
        for client in sorted(far, key=lambda client: (client.counter, client.turn)):
            yield from list(client.waiting)

    def join(self, item: T, now: float, guess_s: float = 1.0) -> float:
        """0.0: ``item`` waits. Else it was refused, and this is the time in seconds after which its client may send
        something. guess_s: see ``Shares.join``. Mutates."""
        num_own = self.num_of(item.client)
        num_clients = len(self._waiting) + (num_own == 0)
        wait_s = self._shares.join(item.client, num_own, len(self), 1 / num_clients, now, guess_s)
        if not wait_s:
            mine = self._lifted(item.client)
            if not mine.waiting:
                mine.turn = next(self._turns)
                self._waiting[item.client] = mine
            mine.waiting.append(item)
            self._num_waiting += 1
        return wait_s

    def blocked(self, now: float) -> None:
        """Call when something waits and nothing can start. Mutates the pace only."""
        self._shares.pace.waits(now)

    def start(self, item: T, prompt_tokens: int, now: float) -> None:
        """``item`` leaves to be served; ``prompt_tokens`` of its prompt must be computed. Mutates."""
        self._level = self._floor()
        self._remove(item)
        self.charge(item.client, prompt_tokens)
        self._last = item.client
        self._shares.pace.freed(now, len(self) > 0)

    def put_back(self, item: T, prompt_tokens: int) -> None:
        """What was started has to start again, as the first of its client. ``prompt_tokens``: as then. Mutates."""
        self.charge(item.client, -prompt_tokens)
        mine = self._waiting[item.client] = self._clients[item.client]
        mine.waiting.appendleft(item)
        mine.turn = -1
        self._num_waiting += 1

    def withdraw(self, item: T) -> None:
        """``item`` leaves without being served. Mutates."""
        self._remove(item)
        if not self._num_waiting:
            self._shares.pace.nobody_waits()

    def charge_answer(self, client: bytes, num_tokens: int) -> None:
        """So many more tokens of an answer came for ``client``. Mutates."""
        self.charge(client, ANSWER_WEIGHT * num_tokens)

    def charge(self, client: bytes, service: float) -> None:
        """``client`` received service, in tokens of a prompt; below 0: gives it back. Mutates."""
        if client not in self._clients:
            self._clients[client] = _Client(self._floor())
        self._clients[client].counter += service
        num_others = len(self._waiting) - (client in self._waiting)
        self._level += LEVEL_SHARE * max(service, 0.0) / (num_others + 1)

    def counter(self, client: bytes) -> float:
        """The service that ``client`` counts as having received."""
        mine = self._clients.get(client)
        return mine.counter if mine else self._floor()

    def num_of(self, client: bytes) -> int:
        """How much of ``client`` waits."""
        mine = self._waiting.get(client)
        return len(mine.waiting) if mine else 0

    def check_invariants(self) -> None:
        """Raises AssertionError when the books do not fit each other."""
        assert self._num_waiting == sum(len(client.waiting) for client in self._clients.values())
        assert len(self._clients) <= MAX_CLIENTS + self._shares.num_places
        assert self._waiting == {key: client for key, client in self._clients.items() if client.waiting}
        for key, client in self._clients.items():
            assert all(item.client == key for item in client.waiting)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _floor(self) -> float:
        """The counter that whoever begins to wait has at least: the level, if somebody waits."""
        if self._waiting:
            counters = [client.counter for client in self._waiting.values()]
            return min(max(self._level, min(counters)), max(counters))
        last = self._clients.get(self._last)
        return last.counter if last else 0.0

    def _lifted(self, key: bytes) -> _Client[T]:
        """The books of a client of which something is going to wait."""
        if key in self._waiting:
            return self._waiting[key]
        floor = self._floor()
        if len(self._clients) >= MAX_CLIENTS:
            self._forget()
        mine = self._clients.get(key)
        if mine is None:
            mine = self._clients[key] = _Client(floor)
        mine.counter = max(mine.counter, floor)
        return mine

    def _forget(self) -> None:
        """Of clients of which nothing waits those that gain nothing by it, else the one that gains least."""
        least = min((client.counter for client in self._waiting.values()), default=self._floor())
        idle = {
            key: client.counter for key, client in self._clients.items() if not client.waiting and key != self._last
        }
        gone = [key for key, counter in idle.items() if counter <= least]
        for key in gone or sorted(idle, key=lambda key: idle[key])[:1]:
            del self._clients[key]

    def _remove(self, item: T) -> None:
        mine = self._clients[item.client]
        place = next(place for place, other in enumerate(mine.waiting) if other is item)
        del mine.waiting[place]
        if place == 0:
            mine.turn = next(self._turns)
        if not mine.waiting:
            del self._waiting[item.client]
        self._num_waiting -= 1

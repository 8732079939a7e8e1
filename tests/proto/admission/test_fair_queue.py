"""Shares of a bounded queue and the order in which it is served."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.proto.admission.fair_queue import MAX_CLIENTS, OWNER_WEIGHT, FairQueue
from mycelia.proto.admission.overload import MAX_BUSY, BusyPeers, EntryPlaces
from mycelia.proto.admission.shares import MAX_RETRY_S, MIN_RETRY_S, Pace, Shares
from mycelia.proto.wire.messages import Failed
from tests.profiles import examples

A, B, C = b"a", b"b", b"c"
SLACK = 300.0


@dataclass(eq=False)
class Item:
    client: bytes
    tokens: int = 100
    subnet: str = ""


@dataclass
class Flight:
    subnet: bytes


def filled(*clients: bytes, places: int = 64, slack: float = 0.0) -> FairQueue[Item]:
    queue = FairQueue[Item](places, slack=slack)
    for client in clients:
        assert queue.join(Item(client), 0.0) == 0.0
    return queue


def served(queue: FairQueue[Item], num: int) -> bytes:
    order = b""
    for _ in range(num):
        item = next(iter(queue))
        queue.start(item, item.tokens, 0.0)
        order += item.client
    return order


def test_clients_take_turns_by_the_work_done_for_them() -> None:
    assert served(filled(A, A, A, B, B, B), 6) == b"ababab"
    queue = filled(A, A, A, A)
    queue.join(Item(B, 300), 0.0)
    queue.join(Item(B, 300), 0.0)
    assert served(queue, 6) == b"abaaba", "one of 300 tokens is as good as three of 100"
    queue = filled(A, A, B, B)
    queue.charge_answer(A, 60)
    assert served(queue, 4) == b"bbaa", "answers count twice"


def test_among_clients_that_received_about_as_much_the_first_comes_first() -> None:
    assert served(filled(A, B, C, slack=250), 3) == b"abc"
    queue = filled(A, B, C, slack=250)
    queue.charge(B, 100)
    assert served(queue, 3) == b"abc", "though B received more"
    queue = filled(A, A, B, C, slack=250)
    queue.charge(A, 251)
    assert [item.client for item in queue] == [B, C, A, A]


@pytest.mark.parametrize("tokens", [1, 8, 128, 512])
def test_whoever_has_much_waiting_gets_one_in_before_who_asks_one_thing_at_a_time(tokens: int) -> None:
    queue = FairQueue[Item](64)
    for _ in range(20):
        while queue.join(Item(A, tokens), 0.0) == 0.0:
            pass
        queue.join(Item(B, tokens), 0.0)
        assert served(queue, 2).count(B) == 1


def test_nobody_saves_up_while_it_asks_nothing() -> None:
    queue = filled(A, A, A, A, A, A)
    assert served(queue, 3) == b"aaa"
    queue.join(Item(B), 0.0)
    queue.join(Item(B), 0.0)
    assert served(queue, 4) == b"abab"
    queue = filled(A)
    assert served(queue, 1) == b"a"
    for client in (B, A, B, A):  # (nothing waits: the newcomer begins where the last client is)
        queue.join(Item(client), 0.0)
    assert served(queue, 4) == b"baba"


@pytest.mark.parametrize("num_fresh", [1, 4, 16])
def test_who_is_ahead_is_served_however_many_come_that_never_came_before(num_fresh: int) -> None:
    """B was given a long prompt; others ask once each under new names, so that one with less always waits."""
    queue = filled(A, B, slack=SLACK)
    lead, names = 8_000, itertools.count()

    def newcomer() -> None:
        assert queue.join(Item(b"%d" % next(names), 500), 0.0) == 0.0

    queue.charge(B, lead)
    for _ in range(num_fresh):
        newcomer()
    service = 0
    while (item := next(iter(queue))).client != B:
        queue.start(item, item.tokens, 0.0)
        service += item.tokens
        if item.client == A:
            queue.join(Item(A, 500), 0.0)
        else:
            newcomer()
        num_others = num_fresh + 1
        assert service <= (3 * num_others + 4) * lead + (2 * num_others + 1) * 500, "see the module"
    assert service >= lead - SLACK, "it had more than the others"


@pytest.mark.parametrize("num_rivals", [1, 4])
def test_who_asks_now_and_then_begins_no_later_than_those_that_always_wait(num_rivals: int) -> None:
    rivals = [b"%d" % number for number in range(num_rivals)]
    queue = filled(*rivals, slack=0.0)
    for _ in range(20):
        for item in list(queue)[: 2 * num_rivals]:
            queue.start(item, item.tokens, 0.0)
            queue.join(Item(item.client), 0.0)
        queue.join(Item(A), 0.0)
        assert A in served(queue, num_rivals + 1)
        for rival in rivals:
            if not queue.num_of(rival):
                queue.join(Item(rival), 0.0)


def test_what_is_started_in_vain_comes_first_again_and_is_not_counted() -> None:
    queue = filled(A, A, B)
    first = next(iter(queue))
    queue.start(first, 100, 0.0)
    queue.put_back(first, 100)
    assert next(iter(queue)) is first and served(queue, 3) == b"aba"
    queue.check_invariants()


PLACES = [(b"", ""), (A, ""), (A, "s"), (B, "s"), (C, "local 1"), (B, "member s")]
"""Clients with their subnets, of all kinds."""


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 5_000), st.booleans()), max_size=30))
@settings(max_examples=examples(100), deadline=None)
def test_what_passes_counts_as_joined_and_started(comings: list[tuple[tuple[bytes, str], int, bool]]) -> None:
    """Two queues see the same; in one of them, what finds the queue empty passes."""
    passing, other = FairQueue[Item](64), FairQueue[Item](64)
    waiting: list[tuple[Item, Item]] = []
    for (client, subnet), tokens, starts in comings:
        items = Item(client, tokens, subnet), Item(client, tokens, subnet)
        was_empty, passes = not other, starts and passing.passes(items[0], tokens)
        assert passes == (starts and was_empty)
        assert other.join(items[1], 0.0) == 0.0
        if passes:
            other.start(items[1], tokens, 0.0)
        else:
            assert passing.join(items[0], 0.0) == 0.0
            waiting.append(items)
        if len(waiting) > 2:
            first = next(iter(passing))
            pair = next(pair for pair in waiting if pair[0] is first)
            assert next(iter(other)) is pair[1]
            passing.start(pair[0], pair[0].tokens, 0.0)
            other.start(pair[1], pair[1].tokens, 0.0)
            waiting.remove(pair)
        passing.check_invariants()
        for level in range(3):
            counters = [[queue.counter(*place, level) for place in PLACES] for queue in (passing, other)]
            assert counters[0] == counters[1]


def test_one_client_gets_half_and_each_more_of_what_is_left() -> None:
    queue = filled(*[A] * 32)
    assert queue.join(Item(A), 0.0) > 0
    for client, places in ((B, 16), (C, 8), (b"d", 4)):
        for _ in range(places):
            assert queue.join(Item(client), 0.0) == 0.0
        assert queue.join(Item(client), 0.0) > 0
    assert len(queue) == 60


HOUSE, LOCAL, OWNER = "203.0.113.0/24", "local 127.0.0.1", b""


def test_the_keys_of_a_subnet_have_one_share_and_take_turns_in_it() -> None:
    queue = FairQueue[Item](64, slack=0.0)
    for number in range(6):
        assert queue.join(Item(b"key%d" % number, 100, HOUSE), 0.0) == 0.0
    for _ in range(3):
        assert queue.join(Item(B), 0.0) == 0.0
    order = []
    while len(queue):
        item = next(iter(queue))
        queue.start(item, item.tokens, 0.0)
        order.append(item.client)
        queue.check_invariants()
    assert [client == B for client in order[:6]].count(True) == 3, "as much as all six together"
    assert len(set(order)) == 7


def test_the_keys_of_a_subnet_fill_no_more_places_than_one_client() -> None:
    queue = FairQueue[Item](64)
    for number in range(200):
        queue.join(Item(b"key%d" % number, 100, HOUSE), 0.0)
    assert len(queue) == 32
    told = queue.join(Item(b"late", 100, HOUSE), 0.0)
    assert told > 0
    # The retry time of one key counts for all of its subnet: they cannot use it one after the other.
    assert sum(queue.join(Item(b"key%d" % number, 100, HOUSE), told * 1.01) == 0.0 for number in range(50)) == 1


def test_nodes_of_one_machine_are_let_in_one_by_one_up_to_three_quarters() -> None:
    queue = FairQueue[Item](64)
    for number in range(200):
        queue.join(Item(b"key%d" % (number % 20), 100, LOCAL), 0.0)
    assert 44 <= len(queue) <= 50
    assert queue.join(Item(B), 0.0) == 0.0


def test_the_owner_comes_first_has_places_of_its_own_and_leaves_a_part() -> None:
    queue = FairQueue[Item](8, slack=0.0)
    for number in range(8):
        queue.join(Item(b"%d" % number), 0.0)
    assert queue.join(Item(OWNER), 0.0) == 0.0
    assert next(iter(queue)).client == OWNER
    num_own = 0
    for number in range(1_000):
        queue.join(Item(OWNER), 9.0 * number)
        queue.join(Item(b"other%d" % number), 9.0 * number)
        item = next(iter(queue))
        queue.start(item, item.tokens, 9.0 * number)
        num_own += item.client == OWNER
        queue.check_invariants()
    assert num_own / 1_000 == pytest.approx(OWNER_WEIGHT / (1 + OWNER_WEIGHT), rel=0.05)


def test_forgotten_clients_do_not_pile_up() -> None:
    queue = FairQueue[Item](64)
    for number in range(3 * MAX_CLIENTS):
        item = Item(b"%d" % number, number % 7)
        assert queue.join(item, 0.0) == 0.0
        queue.start(item, item.tokens, 0.0)
        queue.check_invariants()


def test_a_client_whose_own_would_wait_too_long_is_refused_but_never_its_first() -> None:
    queue = FairQueue[Item](64, max_wait_s=60.0)
    queue.join(Item(A), 0.0)
    queue.blocked(0.0)
    queue.start(next(iter(queue)), 100, 25.0)
    assert [queue.join(Item(A), 25.0) > 0 for _ in range(4)] == [False, False, False, True]
    assert queue.join(Item(B), 25.0) == 0.0


def test_an_retry_time_is_kept_from_both_sides() -> None:
    shares = Shares(8)
    shares.pace.waits(0.0)
    shares.pace.freed(2.0, somebody_waits=True)
    assert shares.join(A, 4, 4, 1.0, 2.0) == pytest.approx(2.0)
    assert shares.join(A, 3, 3, 1.0, 3.0) == pytest.approx(1.0), "though there is room just now"
    assert shares.join(B, 0, 3, 0.5, 3.0) == 0.0
    assert shares.join(A, 5, 7, 0.5, 4.0) == 0.0, "though others took what was free"
    assert shares.join(A, 5, 8, 0.5, 4.0) > 0, "once"


def test_an_retry_time_moves_when_it_is_far_too_late_or_nobody_waits() -> None:
    shares = Shares(8)
    assert shares.join(A, 4, 4, 1.0, 0.0, guess_s=100.0) == 100.0
    assert shares.join(A, 1, 1, 1.0, 1.0, guess_s=60.0) == 99.0
    assert shares.join(A, 1, 1, 1.0, 1.0, guess_s=10.0) == 0.0, "it fits, and the time was far too long"
    assert shares.join(A, 0, 0, 1.0, 1.0) == 0.0


def test_an_retry_time_lapses() -> None:
    shares = Shares(8)
    assert shares.join(A, 4, 4, 1.0, 0.0, guess_s=5.0) == 5.0
    assert shares.join(A, 4, 4, 1.0, 15.1, guess_s=5.0) == 5.0


@given(
    own=st.integers(0, 64), others=st.integers(0, 64), part=st.floats(0.01, 1), guess=st.floats(0, 1e9),
    max_wait=st.floats(0.001, 1e6),
)  # fmt: skip
def test_every_refusal_says_a_time_within_bounds(
    own: int, others: int, part: float, guess: float, max_wait: float
) -> None:
    wait_s = Shares(64, max_wait).join(A, own, own + others, part, 0.0, guess)
    assert wait_s == 0.0 or MIN_RETRY_S <= wait_s <= MAX_RETRY_S
    if own + others == 0 or (own == 0 and others < 64):
        assert wait_s == 0.0


def test_the_pace_counts_only_while_somebody_waits() -> None:
    pace = Pace()
    pace.freed(1.0, somebody_waits=False)
    assert pace.seconds(1.0, guess_s=7.0) == 7.0
    pace.waits(10.0)
    pace.freed(12.0, somebody_waits=True)
    pace.freed(14.0, somebody_waits=False)
    assert pace.seconds(1_000.0, guess_s=7.0) == pytest.approx(2.0)
    pace.waits(2_000.0)
    assert pace.seconds(2_100.0, guess_s=7.0) > 50, "a stall is noticed while it lasts"


def test_busy_peers_are_remembered_within_bounds() -> None:
    busy = BusyPeers()
    for number in range(2 * MAX_BUSY):
        busy.refused(b"%d" % number, Failed(code="overloaded", message="", retryable=True), 0.0)
    assert not busy.is_busy(b"0", 0.5) and busy.is_busy(b"%d" % MAX_BUSY, 0.5)
    busy.refused(A, Failed(code="overloaded", message="", retryable=True, retry_after_ms=2**31 - 1), 0.0)
    assert busy.is_busy(A, MAX_RETRY_S - 1) and not busy.is_busy(A, MAX_RETRY_S + 1)
    assert busy.least_wait_ms([A, B], 0.0) == 1_000 * MAX_RETRY_S and busy.least_wait_ms([B], 0.0) == 0


def test_an_entrys_places_are_shared_and_its_pace_is_that_of_requests_that_end() -> None:
    places, in_flight = EntryPlaces(8), list[Flight]()
    for _ in range(4):
        assert places.join(A, in_flight, 0.0) == 0.0
        in_flight.append(Flight(A))
    assert places.join(A, in_flight, 0.0) > 0
    assert places.join(B, in_flight, 0.0) == 0.0
    in_flight.append(Flight(B))
    del in_flight[:2]  # (two ended within 10 s)
    assert places.join(B, in_flight, 10.0) == 0.0
    in_flight.append(Flight(B))
    assert places.shares.pace.seconds(10.0, 1.0) == pytest.approx(5.0, rel=0.05)


class QueueMachine(RuleBasedStateMachine):
    """The client that received least comes next, no counter falls, and the bound holds, in any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue[Item](12, slack=SLACK)
        self.now = 0.0
        self.running: list[Item] = []

    @rule(client=st.sampled_from([A, B, C]), tokens=st.integers(1, 1_000), after=st.floats(0, 5))
    def join(self, client: bytes, tokens: int, after: float) -> None:
        self.now += after
        item, num_taken = Item(client, tokens), len(self.queue)
        before = self.queue.counter(client)
        wait_s = self.queue.join(item, self.now)
        assert (item in self.queue) == (wait_s == 0.0)
        assert self.queue.counter(client) >= before
        if num_taken == 0:
            assert wait_s == 0.0
        if num_taken == 12:
            assert wait_s > 0

    @precondition(lambda self: len(self.queue) > 0)
    @rule(after=st.floats(0, 5))
    def start(self, after: float) -> None:
        self.queue.blocked(self.now)
        self.now += after
        counters = {client: self.queue.counter(client) for client in (A, B, C) if self.queue.num_of(client)}
        item = next(iter(self.queue))
        assert counters[item.client] <= min(counters.values()) + SLACK
        self.queue.start(item, item.tokens, self.now)
        self.running.append(item)

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data(), num_tokens=st.integers(0, 100))
    def decode(self, data: st.DataObject, num_tokens: int) -> None:
        self.queue.charge_answer(data.draw(st.sampled_from(self.running)).client, num_tokens)

    @precondition(lambda self: bool(self.running))
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        item = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.queue.put_back(item, item.tokens)

    @precondition(lambda self: len(self.queue) > 0)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        self.queue.withdraw(data.draw(st.sampled_from(list(self.queue))))

    @invariant()
    def books(self) -> None:
        self.queue.check_invariants()
        assert len(list(self.queue)) == len(self.queue)


QueueMachine.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
test_books_of_the_queue = pytest.mark.properties(QueueMachine.TestCase)

"""The choice of a model: gains, losses, turns, and what liars can do to it."""

import math
import random
from collections.abc import Sequence

import pytest

from mycelia.proto.supply.chooser import (
    COMING_S,
    FETCHES,
    INTERVAL_S,
    LISTEN_S,
    MAX_RETRY_S,
    RETRY_S,
    SOON_S,
    Began,
    Chooser,
    Continued,
    Effect,
    Failed,
    Looked,
    Move,
    Option,
    Reported,
    Serving,
    Stay,
    View,
)
from mycelia.proto.supply.demand import OwnDemand
from mycelia.proto.wire.messages import MAX_SMALL, Demand, ModelDemand

BIG, SMALL = Option("big", 100.0), Option("small", 400.0)
OPTIONS = (BIG, SMALL)


def chooser(me: bytes = b"me", held: str = "small", own: OwnDemand | None = None) -> Chooser:
    made = Chooser(me, [own or OwnDemand()], random.Random(1), 0.0)
    if held:
        made.handle(Began(held), 0.0)
    return made


def hear(one: Chooser, refused: Sequence[int], model: str = "big", now: float = 0.0, chooses: bool = False) -> None:
    """Reports of as many nodes in networks of their own."""
    for number, rate in enumerate(refused):
        rows = (ModelDemand(model=model, asked=rate, refused=rate),)
        one.handle(Reported(b"p%d" % number, f"h{number}", Demand(models=rows, coming=(), chooses=chooses)), now)


def look(one: Chooser, now: float = 1_000.0, answered: float = 0.0, serving: Sequence[Serving] = ()) -> Effect:
    (effect,) = one.handle(Looked(View(OPTIONS, serving, answered)), now)
    return effect


def test_it_listens_first_and_then_looks_at_most_once_an_hour() -> None:
    one = chooser()
    assert LISTEN_S[0] <= one.due_at <= LISTEN_S[1]
    now = one.due_at
    for _ in range(20):
        look(one, now)
        assert one.due_at - now >= INTERVAL_S
        now = one.due_at
    restarted = Chooser(b"me", [], random.Random(1), now + 60, decided_at=now)
    assert restarted.due_at >= now + INTERVAL_S
    assert Chooser(b"me", [], random.Random(1), 0.0, decided_at=1e12).due_at <= INTERVAL_S + LISTEN_S[1]


def test_whatever_is_believed_a_node_fetches_three_models_and_then_one_a_day() -> None:
    options = (Option("near", 100.0), *(Option(f"far{number}", 100.0, fetch_s=60.0) for number in range(100)))
    one, fetched, now = chooser(held="near"), 0, 1_000.0
    for wanted in range(7 * 24):
        hear(one, [128] * 9, f"far{wanted % 100}", now)
        (effect,) = one.handle(Looked(View(options)), now)
        if isinstance(effect, Move):
            fetched += effect.model != "near"
            one.handle(Began(effect.model), now)
        now += INTERVAL_S
    assert 8 <= fetched <= FETCHES + 7
    hear(one, [128] * 9, "near", now)
    (back,) = one.handle(Looked(View(options)), now)
    assert isinstance(back, Move) and back.model == "near", "it is here"


def test_an_idle_node_moves_to_what_is_lacking_and_says_why() -> None:
    one = chooser()
    hear(one, [128, 128, 128])
    move = look(one)
    assert isinstance(move, Move) and (move.model, move.instead) == ("big", "small")
    assert "lack an answer" in move.reason and "small" in move.reason
    assert one.coming(1_000.0) == ("big", "small")
    assert isinstance(look(one, 5_000.0), Stay), "the download goes on"
    one.handle(Began("big"), 6_000.0)
    assert one.held == "big" and one.coming(6_000.0) == ("big",) and one.coming(6_001.0 + COMING_S) == ()


def test_a_node_that_is_needed_stays_and_goes_when_others_have_room() -> None:
    one = chooser()
    hear(one, [128, 128, 128])
    assert isinstance(look(one, answered=90.0), Stay), (
        "100 requests an hour do not make up for 90 by half as much again"
    )
    idle = [Serving("small", f"h{number}", 0.1) for number in range(3)]
    assert isinstance(look(one, answered=90.0, serving=idle), Move)
    busy = [Serving("small", f"h{number}", 1.0) for number in range(3)]
    other = chooser()
    hear(other, [128, 128, 128])
    assert isinstance(look(other, answered=90.0, serving=busy), Stay)


def test_nodes_that_are_overloaded_are_helped_without_any_report() -> None:
    full = [Serving("big", f"h{number}", 2.0) for number in range(3)]
    assert isinstance(look(chooser(), serving=full), Move)


def test_own_clients_are_believed_alone() -> None:
    own = OwnDemand()
    for _ in range(60):
        own.ended("big", False, 990.0)
    move = look(chooser(own=own))
    assert isinstance(move, Move) and move.model == "big"


@pytest.mark.parametrize("num_keys", [1, 8])
def test_a_lone_liar_moves_nobody(num_keys: int) -> None:
    """Whatever one subnet claims: refusals, overload, room elsewhere; for hours."""
    one = chooser()
    rows = tuple(ModelDemand(model=name, asked=MAX_SMALL, refused=MAX_SMALL) for name in ("big", "small"))
    for hour in range(30):
        now = 3_600.0 * hour
        hear(one, [0, 0, 0], now=now)
        for number in range(num_keys):
            report = Demand(models=rows, coming=("small",), chooses=True)
            one.handle(Reported(b"liar%d" % number, "liar", report), now)
        lies = [Serving("big", "liar", math.inf)] * num_keys + [Serving("small", "liar", 0.0)] * num_keys
        assert isinstance(look(one, now, answered=5.0, serving=lies), Stay)


def test_a_lone_liar_does_not_keep_nodes_from_a_model() -> None:
    """It claims to come, and that there is no lack; with keys that are first in each order."""
    one = chooser()
    moved = 0
    for hour in range(8):
        now = 3_600.0 * hour
        hear(one, [64, 64, 64, 64], now=now)
        for number in range(8):
            report = Demand(models=(), coming=("big",), chooses=True)
            one.handle(Reported(b"liar%d" % number, "liar", report), now)
        moved += isinstance(look(one, now, serving=[Serving("big", "liar", 0.0)] * 8), Move)
        if moved:
            break
    assert moved


def moves(hour: int) -> int:
    """How many of 40 equal idle nodes that all hear the same move in their first hour."""
    peers = [b"p%d" % number for number in range(40)]
    count = 0
    for me in peers:
        one = chooser(me)
        for number, peer in enumerate(peers):
            rate = 64 if number < 4 else 0
            rows = (ModelDemand(model="big", asked=rate, refused=rate),)
            if peer != me:
                one.handle(Reported(peer, peer.decode(), Demand(models=rows, coming=(), chooses=True)), hour * 3_600.0)
        count += isinstance(look(one, hour * 3_600.0 + 900), Move)
    return count


def test_of_many_nodes_that_see_the_same_lack_as_many_move_as_it_needs() -> None:
    """200 requests an hour are believed, which two nodes answer."""
    counts = [moves(hour) for hour in range(10)]
    assert all(1 <= count <= 4 for count in counts), counts
    assert 15 <= sum(counts) <= 25, counts


def test_turns_double_while_nobody_begins() -> None:
    """A model that fits this machine alone is served within hours, although twenty others choose as well."""
    one = chooser()
    for hour in range(8):
        now = 3_600.0 * hour
        hear(one, [4] * 4 + [0] * 16, now=now, chooses=True)
        if isinstance(look(one, now), Move):
            break
    else:
        raise AssertionError("never")


def test_a_node_that_hears_no_other_one_choose_takes_no_turns() -> None:
    moved = []
    for seed in range(20):
        own = OwnDemand()
        own.ended("big", False, 0.0, num=4)
        alone, one_of_many = (chooser(b"me%d" % seed, own=own) for _ in range(2))
        assert isinstance(look(alone, 0.0), Move)
        hear(one_of_many, [0] * 10, chooses=True)
        moved.append(isinstance(look(one_of_many, 0.0), Move))
    assert sum(moved) <= 2, "eight requests an hour are a twelfth of what one node answers"


def test_what_failed_is_left_alone_for_longer_each_time_up_to_a_day() -> None:
    one, now = chooser(), 1_000.0
    for pause_s in (RETRY_S, 2 * RETRY_S, 4 * RETRY_S, 8 * RETRY_S, 16 * RETRY_S, MAX_RETRY_S, MAX_RETRY_S):
        hear(one, [128, 128, 128], now=now)
        assert isinstance(look(one, now), Move)
        one.handle(Failed("big"), now)
        hear(one, [128, 128, 128], now=now + pause_s - 1)
        assert isinstance(look(one, now + pause_s - 1), Stay)
        now += pause_s
    one.handle(Began("big"), now)
    one.handle(Began("small"), now)
    hear(one, [128, 128, 128], now=now)
    assert isinstance(look(one, now), Move)
    one.handle(Failed("big"), now)
    hear(one, [128, 128, 128], now=now + RETRY_S)
    assert isinstance(look(one, now + RETRY_S), Move), "it was served meanwhile: the first failure again"


def test_what_failed_for_a_passing_reason_is_tried_within_minutes_then_ever_later() -> None:
    one, now = chooser(held=""), 1_000.0
    for number in range(14):
        assert isinstance(look(one, now), Move)
        one.handle(Failed("big", is_passing=True), now)
        pause_s = min(SOON_S * 2**number, MAX_RETRY_S)
        assert min(pause_s, INTERVAL_S) <= one.due_at - now <= 1.25 * min(pause_s, INTERVAL_S)
        (early,) = one.handle(Looked(View((BIG,))), now + pause_s - 1)
        assert isinstance(early, Stay)
        now += pause_s
    look(one, now)
    one.handle(Began("big"), now)
    assert one.due_at >= now + INTERVAL_S, "nothing is to be tried again"


def test_a_download_that_is_tried_again_is_not_counted_again() -> None:
    one, now = chooser(), 1_000.0
    for number in range(2 * int(FETCHES)):
        hear(one, [128, 128, 128], now=now)
        (move,) = one.handle(Looked(View((Option("big", 100.0, fetch_s=1.0), SMALL))), now)
        assert isinstance(move, Move), number
        one.handle(Failed("big", is_passing=True), now)
        now += SOON_S * 2**number


def test_where_nothing_could_be_fetched_it_says_so() -> None:
    one = chooser(held="")
    for option in OPTIONS:
        one.handle(Failed(option.name), 0.0)
    stay = look(one)
    assert isinstance(stay, Stay) and "big, small will be tried again" in stay.reason


def test_a_move_of_the_last_run_goes_on() -> None:
    one = chooser()
    one.handle(Continued("big"), 0.0)
    hear(one, [128, 128, 128])
    assert one.coming(0.0) == ("big", "small") and isinstance(look(one), Stay)
    one.handle(Began("big"), 2_000.0)
    assert one.held == "big"


def test_a_download_has_to_pay_within_a_day() -> None:
    one = chooser()
    hear(one, [128, 128, 128])
    slow = Option("big", 100.0, fetch_s=100_000.0)
    (effect,) = one.handle(Looked(View((slow, SMALL))), 1_000.0)
    assert isinstance(effect, Stay)


def test_the_first_model_is_the_best_one_unless_something_is_asked_for() -> None:
    assert isinstance(look(chooser(held="")), Move)
    (move,) = chooser(held="").handle(Looked(View(OPTIONS)), 1_000.0)
    assert isinstance(move, Move) and (move.model, move.instead) == ("big", "")
    one = chooser(held="")
    hear(one, [16, 16, 16], model="small")
    move = look(one)
    assert isinstance(move, Move) and move.model == "small"
    (none,) = chooser(held="").handle(Looked(View(())), 1_000.0)
    assert isinstance(none, Stay) and "fits" in none.reason
    assert chooser(held="").coming(0.0) == ()


def test_first_choices_are_spread_by_how_much_is_lacking() -> None:
    counts = {"big": 0, "small": 0}
    for number in range(60):
        one = chooser(b"n%d" % number, held="")
        hear(one, [32, 32, 32], model="big")
        for peer in range(3):
            rows = tuple(ModelDemand(model=name, asked=32, refused=32) for name in ("big", "small"))
            one.handle(Reported(b"p%d" % peer, f"h{peer}", Demand(models=rows, coming=(), chooses=False)), 0.0)
        move = look(one)
        assert isinstance(move, Move)
        counts[move.model] += 1
    assert min(counts.values()) >= 18, counts

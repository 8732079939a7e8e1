"""A refused client gets a time of its own and finds a place then; clients that do not come keep none out."""

from itertools import pairwise

import msgspec
import pytest

from mycelia.proto.admission.retry_times import LEAST_AGAIN_S, MAX_HELD, MAX_RETRY_TIMES, RetryTimes
from mycelia.proto.config import OverlayConfig, RequestConfig
from mycelia.proto.effects import Dispatch, Fail
from mycelia.proto.events import FrameReceived, Leaving, Received, RequestCancelled, RequestSubmitted, VitalsChanged
from mycelia.proto.wire.messages import Accepted, Failed, Hello, Sampling, Served, Vitals, VitalsUpdate
from tests.proto.playbook import IDLE, NAMESPACE, World, peer_id

ME, PEER = peer_id(0), peer_id(1)
A, B = b"client a", b"client b"
FULL = Vitals(queued_tokens=900, active_requests=4, waiting_requests=30, slots=4)


def key(number: int) -> bytes:
    return b"%d" % number


def paced(place_s: float) -> RetryTimes:
    """An entry node that lately got a place each ``place_s``, until time 0."""
    one = RetryTimes()
    one.make(b"first", A, place_s, -100 * place_s)
    for number in range(99):
        one.placed((number - 99) * place_s)
    assert one.wait_s(b"nobody", 0.0) is None
    return one


def test_who_is_refused_at_the_same_time_is_told_different_times() -> None:
    one = paced(2.0)
    told = [one.make(key(number), A, 1.0, 0.0) for number in range(20)]
    gaps = [after - before for before, after in pairwise(told)]
    assert min(gaps) >= 2.0 and max(gaps) < 3.0
    one.check_invariants()


def test_an_retry_time_is_kept_for_a_while_from_its_time_on() -> None:
    one = paced(8.0)
    told_s = one.make(b"a", A, 1.0, 0.0)
    assert one.wait_s(b"a", told_s / 2) == pytest.approx(told_s / 2)
    assert one.wait_s(b"a", told_s) == 0.0
    assert one.wait_s(b"a", 1.2 * told_s) == 0.0
    assert one.wait_s(b"a", 1.3 * told_s) is None
    one.check_invariants()


def test_where_nobody_comes_back_times_stay_short() -> None:
    one = paced(0.5)
    now, told = 0.0, 0.0
    for number in range(2_000):
        now += 0.1
        one.wait_s(key(number), now)
        told = one.make(key(number), A, 1.0, now)
        if number % 5 == 0:
            one.placed(now)
    assert told < 20.0, "and not two thousand places"
    one.check_invariants()


def test_where_all_come_back_nobody_else_is_let_in() -> None:
    one = paced(1.0)
    due = {key(number): one.make(key(number), A, 1.0, 0.0) for number in range(30)}
    passed, now = 0, 0.0
    while due:
        now += 0.25
        for each in [each for each, at in due.items() if at <= now]:
            assert one.wait_s(each, now) == 0.0
            one.come(each, now)
            one.placed(now)
            del due[each]
        passed += one.may_pass(now)
    assert passed < 12, "as many as the spacing leaves over"
    assert one.may_pass(now + 10), "no retry_times, no limit"


def test_an_hour_in_which_nobody_asks_is_not_the_time_that_a_place_takes() -> None:
    one = RetryTimes()
    one.make(b"goes away", A, 1.0, 0.0)
    one.wait_s(b"next", 3_600.0)
    one.placed(3_600.0)
    assert one.make(b"soon after", A, 1.0, 3_601.0) < 5.0


def test_a_stall_is_noticed_while_somebody_is_held_though_nobody_else_comes() -> None:
    one = paced(1.0)
    one.make(b"goes away", A, 1.0, 0.0)
    one.held.add(b"request", A, is_next=False)
    one.wait_s(b"next", 100.0)
    assert one.make(b"next", A, 1.0, 100.0) > 10.0


def test_retry_times_are_bounded() -> None:
    one = RetryTimes()
    for number in range(3 * MAX_RETRY_TIMES):
        client = key(number % 100)
        assert one.make(key(number % (2 * MAX_RETRY_TIMES)), client, 0.001, 0.0) >= LEAST_AGAIN_S
    one.check_invariants()
    assert 0.95 * MAX_RETRY_TIMES < len(one) <= MAX_RETRY_TIMES


def test_a_client_that_asks_much_does_not_make_others_wait_for_all_of_it() -> None:
    one = paced(1.0)
    told = [one.make(key(number), A, 1.0, 0.0) for number in range(100)]
    assert told[-1] > 100.0
    assert one.make(b"of b", B, 1.0, 0.0) < 5.0
    one.check_invariants()


def test_a_client_that_asks_much_leaves_retry_times_to_others() -> None:
    one = paced(1.0)
    for number in range(2 * MAX_RETRY_TIMES):
        one.make(key(number), A, 1.0, 0.0)
    told_s = one.make(b"of b", B, 1.0, 0.0)
    assert one.wait_s(b"of b", told_s) == 0.0


def test_who_is_held_has_its_turn_after_one_of_every_other_client() -> None:
    one = RetryTimes()
    for number in range(MAX_HELD):
        if one.has_room(A):
            one.held.add(key(number), A, is_next=False)
    assert one.has_room(B)
    one.held.add(b"of b", B, is_next=False)
    assert list(one.held)[:3] == [key(0), b"of b", key(1)]
    assert one.held.discard(key(0)) and not one.held.discard(key(0))
    assert list(one.held)[:3] == [b"of b", key(1), key(2)]
    one.held.add(key(0), A, is_next=True)
    assert list(one.held)[:3] == [key(0), b"of b", key(1)], "it had its turn in vain"
    one.check_invariants()


# --- at an entry ----------------------------------------------------------------------------------------------------


def busy_world() -> World:
    """Two nodes, both full."""
    world = World(2)
    world.deliver_all()
    world.advance(20)
    tell_load(world, FULL)
    return world


def tell_load(world: World, own: Vitals, peers: Vitals | None = None) -> None:
    """The reports of this node and of its peer, if it has one; peers: None: the same."""
    world.handle(ME, VitalsChanged(NAMESPACE, own))
    if PEER in world.nodes:
        world.handle(ME, Received(PEER, VitalsUpdate(namespace=NAMESPACE, vitals=peers or own)))


def ask(world: World, number: int, request_id: bytes | None = None, num_tokens: int = 70) -> bytes:
    request_id = request_id or b"request %d" % number
    prompt = [number] * num_tokens
    world.handle(ME, RequestSubmitted(request_id.ljust(16), NAMESPACE, prompt, Sampling(max_tokens=8)))
    return request_id.ljust(16)


def dispatches(world: World) -> list[Dispatch]:
    return [effect for effect in world.nodes[ME].take(Dispatch) if isinstance(effect, Dispatch)]


def refused(world: World) -> Fail:
    (fail,) = world.nodes[ME].take(Fail)
    assert isinstance(fail, Fail) and fail.code == "overloaded" and fail.retryable
    assert not world.nodes[ME].take(Dispatch), "no node was asked"
    return fail


def test_nothing_is_sent_where_the_queue_is_full() -> None:
    world = busy_world()
    told = []
    for number in range(3):
        ask(world, number)
        told.append(refused(world).retry_after_ms)
    assert told[0] < told[1] < told[2]
    world.nodes[ME].overlay.check_invariants()


def test_who_comes_early_hears_the_same_again_and_who_comes_when_told_is_held_until_there_is_a_place() -> None:
    world = busy_world()
    ask(world, 1)
    told_s = refused(world).retry_after_ms / 1000
    world.advance(told_s / 2, deliver=False)
    ask(world, 1, b"early")
    assert refused(world).retry_after_ms / 1000 == pytest.approx(told_s / 2, abs=0.01)
    world.advance(told_s / 2, deliver=False)
    request_id = ask(world, 1, b"on time")
    assert not world.nodes[ME].take(Fail) and not world.nodes[ME].take(Dispatch)
    world.nodes[ME].overlay.check_invariants()
    tell_load(world, IDLE)
    world.advance(2, deliver=False)
    (dispatch,) = dispatches(world)
    assert dispatch.request_id == request_id
    world.nodes[ME].overlay.check_invariants()


def test_who_came_when_told_and_left_before_a_node_began_leaves_no_hour_behind() -> None:
    world = busy_world()
    ask(world, 1)
    world.advance(refused(world).retry_after_ms / 1000, deliver=False)
    tell_load(world, IDLE)
    world.handle(ME, RequestCancelled(ask(world, 1, b"on time")))
    world.advance(3_600, deliver=False)
    request_id = ask(world, 2)
    *_, dispatch = dispatches(world)
    assert dispatch.request_id == request_id
    world.handle(ME, FrameReceived(request_id, 1, Accepted(cached_tokens=0, vitals=IDLE)))
    tell_load(world, FULL)
    ask(world, 3)
    assert refused(world).retry_after_ms < 5_000


def test_who_is_held_is_not_sent_again_and_again_to_a_node_that_breaks() -> None:
    world = busy_world()
    ask(world, 1)
    told_s = refused(world).retry_after_ms / 1000
    world.advance(told_s, deliver=False)
    tell_load(world, FULL)
    request_id = ask(world, 1, b"on time")
    tell_load(world, IDLE)
    busy = Failed(code="overloaded", message="full", retryable=True, retry_after_ms=40_000)
    broken = Failed(code="internal", message="broken", retryable=True)
    asked = []
    for _ in range(1_000):
        world.advance(0.02, deliver=False)
        for dispatch in dispatches(world):
            asked.append(dispatch.peer)
            frame = busy if dispatch.peer == ME else broken
            world.handle(ME, FrameReceived(request_id, dispatch.attempt, frame))
    assert asked.count(PEER) == 1, "and not once each hundredth of a second"


def test_a_node_that_serves_alone_takes_what_its_engine_does() -> None:
    world = World(1)
    world.handle(ME, VitalsChanged(NAMESPACE, Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=1)))
    for number in range(20):
        ask(world, number)
    assert len(world.nodes[ME].take(Dispatch)) == 20 and not world.nodes[ME].take(Fail)


def test_what_a_node_took_before_it_was_leaving_is_not_refused() -> None:
    world = World(2)
    world.deliver_all()
    world.advance(20)
    tell_load(world, IDLE, peers=FULL)
    request_id = ask(world, 1)
    assert [dispatch.peer for dispatch in dispatches(world)] == [ME]
    world.handle(ME, Leaving())
    lost = Failed(code="engine_lost", message="killed", retryable=True)
    world.handle(ME, FrameReceived(request_id, 1, lost))
    world.advance(5, deliver=False)
    assert len(dispatches(world)) == 1 and not world.nodes[ME].take(Fail), "though both say that they are full"


def test_before_any_place_was_seen_what_is_told_goes_by_how_long_answers_take() -> None:
    world = busy_world()
    slow = msgspec.structs.replace(FULL, hold_ms=80_000)
    tell_load(world, slow)
    ask(world, 1)
    assert refused(world).retry_after_ms == 20_000, "four slots"
    world = busy_world()
    tell_load(world, slow, peers=msgspec.structs.replace(FULL, hold_ms=8_000))
    ask(world, 1)
    assert refused(world).retry_after_ms == 2_000


def test_all_choices_of_a_prompt_that_were_refused_in_one_moment_may_come_when_told() -> None:
    world = busy_world()
    told = []
    for choice in (b"choice 0", b"choice 1"):
        ask(world, 1, choice)
        told.append(refused(world).retry_after_ms)
    assert told[0] == told[1]
    world.advance(told[0] / 1000, deliver=False)
    tell_load(world, FULL)
    for choice in (b"again 0", b"again 1"):
        ask(world, 1, choice)
        assert not world.nodes[ME].take(Fail), "it is held"
    ask(world, 1, b"again 2")
    assert refused(world)


def test_a_choice_given_up_because_the_one_beside_it_was_refused_may_come_when_that_was_told() -> None:
    world = busy_world()
    tell_load(world, IDLE)
    runs = ask(world, 1, b"choice 0")
    world.nodes[ME].take(Dispatch)
    tell_load(world, FULL)
    ask(world, 1, b"choice 1")
    told_s = refused(world).retry_after_ms / 1000
    world.handle(ME, RequestCancelled(runs))
    world.advance(told_s, deliver=False)
    tell_load(world, FULL)
    for choice in (b"again 0", b"again 1"):
        ask(world, 1, choice)
        assert not world.nodes[ME].take(Fail), "it is held"


def test_who_knocks_gains_no_places() -> None:
    world = busy_world()
    ask(world, 1)
    told_s = refused(world).retry_after_ms / 1000
    for number in range(3):
        world.advance(told_s / 2 if not number else 0.1, deliver=False)
        tell_load(world, FULL)
        ask(world, 1, b"knock %d" % number)
        refused(world)
    assert world.nodes[ME].overlay.requests.admission.num_retry_times == 1


def held_world(num_tokens: list[int]) -> tuple[World, list[bytes]]:
    """This node and one with a context of 1,000 tokens, both full, and the held requests: prompts of these lengths."""
    world = World(2)
    world.deliver_all()
    served = Served(namespace=NAMESPACE, model="model", context_tokens=1_000, vitals=FULL)
    world.handle(ME, Received(PEER, Hello(wire_version=1, agent="", served=(served,))))
    world.advance(20)
    tell_load(world, FULL)
    due = []
    for number, num in enumerate(num_tokens):
        ask(world, number, num_tokens=num)
        due.append(world.now + refused(world).retry_after_ms / 1000)
    held = []
    for number, num in enumerate(num_tokens):
        world.advance(due[number] - world.now, deliver=False)
        tell_load(world, FULL)
        held.append(ask(world, number, b"held %d" % number, num))
        assert not world.nodes[ME].take(Dispatch) and not world.nodes[ME].take(Fail)
    return world, held


def test_who_is_held_for_a_full_node_keeps_nobody_from_another_one() -> None:
    world, (_, short) = held_world([1_500, 70])
    tell_load(world, FULL, peers=IDLE)
    world.advance(0.1, deliver=False)
    (dispatch,) = dispatches(world)
    assert (dispatch.request_id, dispatch.peer) == (short, PEER)


def test_who_comes_when_told_does_not_overtake_who_is_held() -> None:
    world, (first, second) = held_world([70, 70])
    ask(world, 9)
    told_s = refused(world).retry_after_ms / 1000
    world.advance(told_s, deliver=False)
    one_place = Vitals(queued_tokens=900, active_requests=4, waiting_requests=15, slots=4)
    tell_load(world, one_place, peers=FULL)
    third = ask(world, 9, b"third")
    order = []
    for _ in range(3):
        world.advance(1, deliver=False)
        order += [dispatch.request_id for dispatch in dispatches(world)]
        tell_load(world, one_place, peers=FULL)
    assert order == [first, second, third]


def test_those_who_come_do_not_put_off_the_look_for_a_place() -> None:
    world, _ = held_world([70])
    ask(world, 9)
    world.advance(refused(world).retry_after_ms / 1000, deliver=False)
    tell_load(world, FULL)
    (look_at,) = [at for timer, at in world.nodes[ME].timers.items() if timer.kind == "place"]
    world.now = look_at - 0.001
    ask(world, 9, b"second")
    assert [at for timer, at in world.nodes[ME].timers.items() if timer.kind == "place"] == [look_at]


def test_who_is_held_is_not_held_for_ever_and_may_leave() -> None:
    world = busy_world()
    for number in (1, 2):
        ask(world, number)
        told_s = refused(world).retry_after_ms / 1000
    world.advance(told_s, deliver=False)
    stays, leaves = ask(world, 1, b"stays"), ask(world, 2, b"leaves")
    world.handle(ME, RequestCancelled(leaves))
    world.nodes[ME].overlay.check_invariants()
    for _ in range(40):
        tell_load(world, FULL)
        world.advance(1, deliver=False)
    (fail,) = world.nodes[ME].take(Fail)
    assert isinstance(fail, Fail) and fail.request_id == stays and fail.code == "overloaded"


def test_those_whom_a_node_sends_away_all_at_once_are_not_all_held() -> None:
    world = World(1)
    full = Failed(code="overloaded", message="full", retryable=True, retry_after_ms=1_000)
    world.handle(ME, FrameReceived(ask(world, 0), 1, full))
    dispatches(world)
    for number in range(1, 220):
        refused(world)
        ask(world, number)
    world.advance(refused(world).retry_after_ms / 1000, deliver=False)
    on_time = [ask(world, number, b"on time %d" % number) for number in range(180, 220)]
    assert len(dispatches(world)) == 40, "a fifth comes when the last one was told, and is not too late"
    for request_id in on_time:
        world.handle(ME, FrameReceived(request_id, 1, full))
    assert len(world.nodes[ME].take(Fail)) == 40 - MAX_HELD // 2


def test_a_node_that_refuses_who_is_held_is_asked_again_later() -> None:
    world = World(1, config=OverlayConfig(request=RequestConfig(max_waiting_per_slot=1e6)))
    world.deliver_all()
    busy = Failed(code="overloaded", message="full", retryable=True, retry_after_ms=2_000)
    request_id = ask(world, 1)
    world.handle(ME, FrameReceived(request_id, 1, busy))
    world.nodes[ME].take(Dispatch)
    told_s = refused(world).retry_after_ms / 1000
    world.advance(told_s, deliver=False)
    request_id = ask(world, 1, b"again")
    for attempt in range(1, 12):
        (dispatch,) = dispatches(world)
        assert dispatch.attempt == attempt
        world.handle(ME, FrameReceived(request_id, attempt, busy))
        assert not world.nodes[ME].take(Fail)
        world.nodes[ME].overlay.check_invariants()
        world.advance(2.1, deliver=False)
    world.handle(ME, FrameReceived(request_id, 12, Accepted(cached_tokens=0, vitals=IDLE)))
    world.nodes[ME].overlay.check_invariants()

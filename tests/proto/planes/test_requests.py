"""Requests through the overlay: routing, streaming, failing over, resuming, each token exactly once."""

import math

import msgspec
import pytest

from mycelia.proto.config import OverlayConfig, RequestConfig, RoutingConfig
from mycelia.proto.effects import Abandon, Begin, Deliver, Disconnect, Dispatch, Effect, Emit, Fail, Finish
from mycelia.proto.events import (
    Disconnected,
    FrameReceived,
    Leaving,
    Paused,
    Received,
    RequestCancelled,
    RequestSubmitted,
    RoundTripMeasured,
    StreamLost,
    Timer,
    TimerFired,
    VitalsChanged,
)
from mycelia.proto.planes.attempt import Attempt
from mycelia.proto.planes.request import Request
from mycelia.proto.routing.candidates import Candidate, Candidates
from mycelia.proto.routing.choose import choose
from mycelia.proto.wire.blocks import STRIDE, pack_tokens, unpack_tokens
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import (
    Accepted,
    Bounced,
    Failed,
    Final,
    Generate,
    Logprob,
    Sampling,
    TokenLogprobs,
    Tokens,
    Usage,
    Vitals,
    VitalsUpdate,
)
from mycelia.proto.wire.refusals import Refusal
from tests.proto.playbook import IDLE, NAMESPACE, Node, World, peer_id

ME, HOLDER, OTHER = peer_id(0), peer_id(1), peer_id(2)
PROMPT = [7] * (STRIDE * 3 + 5)
REQUEST = b"r" * 16
USAGE = Usage(prompt_tokens=1, cached_tokens=2, completion_tokens=3, queue_ms=4, prefill_ms=5, decode_ms=6)


def quiet_world(num_nodes: int = 3, config: RequestConfig = RequestConfig()) -> World:
    world = World(num_nodes, config=OverlayConfig(request=config))
    world.deliver_all()
    world.advance(20)
    return world


def submit(
    world: World, prompt: list[int] = PROMPT, max_tokens: int = 8, request_id: bytes = REQUEST, client: bytes = b""
) -> None:
    world.handle(ME, RequestSubmitted(request_id, NAMESPACE, prompt, Sampling(max_tokens=max_tokens), client))


def the(node: Node, kind: type) -> object:
    """The only effect of ``kind`` since the last look."""
    (effect,) = node.take(kind)
    return effect


def dispatched(world: World) -> Dispatch:
    effect = the(world.nodes[ME], Dispatch)
    assert isinstance(effect, Dispatch)
    return effect


def offences(world: World, peer: bytes) -> float:
    return sum(one.offences for one in world.nodes[ME].overlay.offenders(world.now) if one.peer == peer)


def tokens(position: int, *values: int) -> Tokens:
    return Tokens(position=position, tokens=pack_tokens(values), text=b"." * len(values))


def frame(world: World, attempt: int, message: Accepted | Tokens | Final | Failed) -> None:
    world.handle(ME, FrameReceived(REQUEST, attempt, message))


def delivered(world: World) -> list[int]:
    effects = world.nodes[ME].take(Deliver)
    return [token for effect in effects if isinstance(effect, Deliver) for token in effect.tokens]


def test_a_prompt_goes_where_it_is_held_unless_that_node_is_busier_than_it_is_worth() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world)
    dispatch = dispatched(world)
    assert dispatch.peer == HOLDER
    assert dispatch.generate.promised_tokens == 3 * STRIDE
    assert [r.candidate.peer for r in dispatch.decision.rated] == [HOLDER, ME, OTHER]
    world.handle(ME, RequestCancelled(REQUEST))
    busy = Vitals(queued_tokens=900, active_requests=4, waiting_requests=9, slots=4)
    world.handle(ME, Received(HOLDER, VitalsUpdate(namespace=NAMESPACE, vitals=busy)))
    submit(world, request_id=b"s" * 16)
    dispatch = dispatched(world)
    assert dispatch.peer == ME and dispatch.generate.promised_tokens == 0
    assert "slower, farther or busier" in dispatch.decision.reason


def test_who_takes_prompts_and_answers_none_is_avoided() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    chosen = []
    for number in range(12):
        request_id = bytes([number]) * 16
        submit(world, request_id=request_id)
        chosen.append(dispatched(world).peer)
        world.handle(ME, StreamLost(request_id, 1, "silent"))
        world.nodes[ME].take(Dispatch)
        world.handle(ME, RequestCancelled(request_id))
    assert chosen[0] == HOLDER and chosen[-1] != HOLDER


def test_what_a_round_trip_costs_decides_between_two_that_hold_the_prompt() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.store(OTHER, 1, PROMPT)
    world.advance(2)
    for near, far in ((HOLDER, OTHER), (OTHER, HOLDER)):
        world.handle(ME, RoundTripMeasured(near, 0.01))
        world.handle(ME, RoundTripMeasured(far, 0.3))
        submit(world)
        assert dispatched(world).peer == near
        world.handle(ME, RequestCancelled(REQUEST))
        world.advance(70)  # (by then the prompt no longer counts as held there)


def test_a_node_that_exaggerates_is_believed_less_and_one_that_is_slow_is_avoided() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    nothing = Usage(prompt_tokens=197, cached_tokens=0, completion_tokens=1, queue_ms=0, prefill_ms=5, decode_ms=6)
    chosen = []
    for number in range(12):
        request_id = bytes([number]) * 16
        submit(world, max_tokens=1, request_id=request_id)
        dispatch = dispatched(world)
        chosen.append(dispatch.peer)
        if dispatch.peer == HOLDER:
            world.now += 4.0
        world.handle(ME, FrameReceived(request_id, 1, tokens(0, 11)))
        world.handle(ME, FrameReceived(request_id, 1, Final(reason="stop", usage=nothing, vitals=IDLE)))
    assert chosen[0] == HOLDER and chosen[-1] != HOLDER


def test_a_first_answer_tells_the_rate_of_a_node_and_not_that_it_is_busy() -> None:
    """Nothing is known of the rates before. The same prompt goes where it was answered, though that took long."""
    world = quiet_world()
    submit(world, max_tokens=1)
    first = dispatched(world).peer
    world.now += 4.0
    frame(world, 1, Accepted(cached_tokens=0, vitals=IDLE))
    frame(world, 1, tokens(0, 11))
    assert world.nodes[ME].overlay.members.observed.lateness_s(first, world.now) == 0
    frame(world, 1, Final(reason="stop", usage=USAGE, vitals=IDLE))
    second = b"s" * 16
    submit(world, max_tokens=1, request_id=second)
    assert dispatched(world).peer == first
    world.now += 4.0
    world.handle(ME, FrameReceived(second, 1, Accepted(cached_tokens=3 * STRIDE, vitals=IDLE)))
    world.handle(ME, FrameReceived(second, 1, tokens(0, 11)))
    late_s = world.nodes[ME].overlay.members.observed.lateness_s(first, world.now)
    assert late_s > 1, "now its rate is known"


def test_a_miss_goes_to_the_least_loaded() -> None:
    world = quiet_world()
    loaded = Vitals(queued_tokens=9, active_requests=4, waiting_requests=0, slots=4, hold_ms=900)
    world.handle(ME, VitalsChanged(NAMESPACE, loaded))
    world.handle(ME, Received(HOLDER, VitalsUpdate(namespace=NAMESPACE, vitals=loaded)))
    submit(world)
    assert dispatched(world).peer == OTHER


def test_idle_nodes_without_the_prompt_keep_it_local() -> None:
    world = quiet_world()
    submit(world)
    dispatch = dispatched(world)
    assert dispatch.peer == ME
    assert "0 of 197 tokens cached" in dispatch.decision.reason


def test_own_dispatches_count_before_any_digest_or_report_tells() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT[: STRIDE * 2])
    world.advance(2)
    submit(world)
    assert dispatched(world).peer == HOLDER
    submit(world, request_id=b"s" * 16)
    again = dispatched(world)
    assert again.peer == HOLDER
    assert again.generate.promised_tokens == 3 * STRIDE, "the whole prompt was just sent there"
    assert again.decision.rated[0].candidate.num_requests == 1


def test_tokens_are_delivered_once_and_the_answer_is_finished() -> None:
    world = quiet_world()
    submit(world)
    dispatched(world)
    frame(world, 1, Accepted(cached_tokens=0, vitals=IDLE))
    frame(world, 1, tokens(0, 11, 12))
    frame(world, 1, tokens(2, 13))
    frame(world, 1, Final(reason="stop", usage=USAGE, vitals=IDLE))
    assert delivered(world) == [11, 12, 13]
    finish = the(world.nodes[ME], Finish)
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.resumed, finish.usage.completion_tokens) == ("stop", 0, 3)
    frame(world, 1, tokens(3, 14))
    assert delivered(world) == [], "frames after the end are ignored"


def test_a_lost_stream_resumes_elsewhere_with_the_tokens_so_far() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world, max_tokens=8)
    assert dispatched(world).peer == HOLDER
    frame(world, 1, tokens(0, 11, 12))
    world.handle(ME, StreamLost(REQUEST, 1, "reset"))
    second = dispatched(world)
    assert second.peer != HOLDER and second.attempt == 2
    assert unpack_tokens(second.generate.prompt) == [*PROMPT, 11, 12]
    assert (second.generate.resumed_tokens, second.generate.sampling.max_tokens) == (2, 6)
    frame(world, 1, tokens(2, 99))
    frame(world, 2, tokens(0, 13))
    frame(world, 2, Final(reason="stop", usage=USAGE, vitals=IDLE))
    assert delivered(world) == [11, 12, 13]
    finish = the(world.nodes[ME], Finish)
    assert isinstance(finish, Finish) and finish.resumed == 1


def test_a_lost_connection_moves_its_requests_at_once() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world)
    assert dispatched(world).peer == HOLDER
    world.handle(ME, Disconnected(HOLDER))
    assert dispatched(world).peer != HOLDER
    assert isinstance(the(world.nodes[ME], Abandon), Abandon)
    world.handle(ME, StreamLost(REQUEST, 1, "the stream noticed too"))
    assert not world.nodes[ME].take(Dispatch)


def test_losing_only_the_final_frame_finishes_by_length() -> None:
    world = quiet_world()
    submit(world, max_tokens=2)
    dispatched(world)
    frame(world, 1, tokens(0, 11, 12))
    world.handle(ME, StreamLost(REQUEST, 1, "reset"))
    finish = the(world.nodes[ME], Finish)
    assert isinstance(finish, Finish) and finish.reason == "length"


def test_every_node_failing_is_one_clear_failure() -> None:
    world = quiet_world()
    submit(world)
    tried = []
    for attempt in range(1, 4):
        tried.append(dispatched(world).peer)
        frame(world, attempt, Failed(code="internal", message="the engine died", retryable=True))
    assert sorted(tried) == [ME, HOLDER, OTHER]
    fail = the(world.nodes[ME], Fail)
    assert isinstance(fail, Fail) and fail.code == "no_peer" and "the engine died" in fail.message and fail.retryable


def test_a_request_that_kills_engines_does_not_walk_through_the_swarm() -> None:
    world = quiet_world(5)
    for holder in (1, 2, 3, 4):
        world.store(peer_id(holder), 1, PROMPT)
    world.advance(2)
    submit(world)
    tried = []
    for attempt in (1, 2, 3):
        tried.append(dispatched(world).peer)
        frame(world, attempt, Failed(code="engine_lost", message="the engine died", retryable=True))
    assert tried[2] == ME and ME not in tried[:2]
    fail = the(world.nodes[ME], Fail)
    assert isinstance(fail, Fail) and "the engine died" in fail.message


def test_a_peers_word_that_a_request_is_impossible_costs_one_attempt_only() -> None:
    """An impossible request, such as a grammar that takes seconds to refuse, does not go through the swarm either."""
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.store(OTHER, 1, PROMPT)
    world.advance(2)
    submit(world)
    assert dispatched(world).peer == HOLDER
    frame(world, 1, Failed(code="too_long", message="I say so", retryable=False))
    assert dispatched(world).peer == ME
    frame(world, 2, Failed(code="too_long", message="over the context", retryable=False))
    fail = the(world.nodes[ME], Fail)
    assert isinstance(fail, Fail) and fail.code == "too_long"


@pytest.mark.parametrize("bad", [tokens(1, 11), tokens(0, *range(9)), Tokens(position=0, tokens=b"123", text=b"")])
def test_frames_out_of_place_cost_the_peer_and_move_the_request(bad: Tokens) -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world, max_tokens=8)
    assert dispatched(world).peer == HOLDER
    frame(world, 1, bad)
    assert delivered(world) == []
    assert dispatched(world).peer != HOLDER
    assert offences(world, HOLDER) == 1
    assert not world.nodes[ME].take(Disconnect)


@pytest.mark.parametrize("reason", ["length", "cancelled"])
def test_an_answer_that_ends_before_its_length_goes_on_elsewhere(reason: str) -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world, max_tokens=8)
    assert dispatched(world).peer == HOLDER
    frame(world, 1, tokens(0, 11, 12))
    frame(world, 1, Final(reason=reason, usage=USAGE, vitals=IDLE))
    assert unpack_tokens(dispatched(world).generate.prompt) == [*PROMPT, 11, 12]
    assert offences(world, HOLDER) == (reason == "length")


def test_an_answer_ends_by_length_where_no_context_holds_more() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    room = 2048 - len(PROMPT)
    submit(world, max_tokens=room + 8)
    assert dispatched(world).peer == HOLDER
    for position in range(0, room, 8):
        frame(world, 1, tokens(position, *range(min(8, room - position))))
    frame(world, 1, Final(reason="length", usage=USAGE, vitals=IDLE))
    assert dispatched(world).peer == ME, "whose engine knows best what is too long"
    frame(world, 2, Final(reason="length", usage=USAGE, vitals=IDLE))
    finish = the(world.nodes[ME], Finish)
    assert isinstance(finish, Finish) and finish.reason == "length"
    assert not world.nodes[ME].overlay.refusals


def test_a_cancelled_request_is_abandoned_and_forgotten() -> None:
    world = quiet_world()
    submit(world)
    dispatched(world)
    world.handle(ME, RequestCancelled(REQUEST))
    assert isinstance(the(world.nodes[ME], Abandon), Abandon)
    frame(world, 1, tokens(0, 11))
    assert delivered(world) == []
    assert world.nodes[ME].overlay.requests.num_at(ME) == 0


def test_too_many_requests_in_flight_are_refused() -> None:
    world = quiet_world(1, RequestConfig(max_waiting_per_slot=math.inf))
    limit = world.config.request.max_in_flight
    for number in range(limit // 2):
        submit(world, [1], request_id=number.to_bytes(16, "big"))
    world.nodes[ME].take(Dispatch)
    submit(world, [1])
    fail = the(world.nodes[ME], Fail)
    assert isinstance(fail, Fail) and fail.code == "overloaded" and fail.retryable and fail.retry_after_ms > 0
    submit(world, [1], client=b"a light client")
    assert dispatched(world).peer == ME, "what one client may not have is there for another"
    world.advance(fail.retry_after_ms / 1000)
    submit(world, [1], request_id=b"again".ljust(16))
    assert dispatched(world).peer == ME, "who comes when told finds a place"


def test_a_busy_peer_is_left_alone_for_as_long_as_it_said() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world)
    assert dispatched(world).peer == HOLDER
    world.handle(HOLDER, VitalsChanged(NAMESPACE, msgspec.structs.replace(IDLE, waiting_requests=1)))
    world.deliver_all()
    full = Failed(code="overloaded", message="full", retryable=True, retry_after_ms=4_000)
    frame(world, 1, full)
    assert dispatched(world).peer != HOLDER
    observed = world.nodes[ME].overlay.members.observed
    assert observed.lateness_s(HOLDER, world.now) == 0.0, "to refuse is no fault"
    world.advance(3.9)
    submit(world, request_id=b"early".ljust(16))
    assert dispatched(world).peer != HOLDER
    world.advance(0.2)
    submit(world, request_id=b"then".ljust(16))
    assert dispatched(world).peer == HOLDER


def test_a_busy_peer_at_which_nobody_waits_any_more_is_asked_again() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world)
    assert dispatched(world).peer == HOLDER
    waiting = msgspec.structs.replace(IDLE, waiting_requests=3)
    world.handle(ME, Received(HOLDER, VitalsUpdate(namespace=NAMESPACE, vitals=waiting)))
    frame(world, 1, Failed(code="overloaded", message="full", retryable=True, retry_after_ms=100_000))
    assert dispatched(world).peer != HOLDER
    for num_waiting, request_id in ((3, b"full"), (0, b"empty")):
        vitals = msgspec.structs.replace(IDLE, waiting_requests=num_waiting)
        world.handle(ME, Received(HOLDER, VitalsUpdate(namespace=NAMESPACE, vitals=vitals)))
        submit(world, request_id=request_id.ljust(16))
        assert (dispatched(world).peer == HOLDER) == (num_waiting == 0)


def test_a_peer_whose_engine_was_lost_gets_nothing_new_until_it_is_back_or_silent_for_long() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    number = 0

    def goes_to() -> bytes:
        nonlocal number
        number += 1
        submit(world, request_id=bytes([number]) * 16)
        peer = dispatched(world).peer
        world.handle(ME, RequestCancelled(bytes([number]) * 16))
        return peer

    def tell(vitals: Vitals) -> None:
        world.handle(ME, Received(HOLDER, VitalsUpdate(namespace=NAMESPACE, vitals=vitals)))

    lost = msgspec.structs.replace(IDLE, slots=0)
    assert goes_to() == HOLDER
    tell(lost)
    assert goes_to() != HOLDER
    tell(IDLE)
    assert goes_to() == HOLDER
    tell(lost)
    world.advance(world.config.routing.told_half_life_s + 1)  # (the report of its new engine may be lost)
    assert goes_to() == HOLDER


def test_prompts_that_enter_while_the_engine_here_is_lost_go_elsewhere() -> None:
    world = quiet_world(2)
    world.handle(ME, VitalsChanged(NAMESPACE, msgspec.structs.replace(IDLE, slots=0)))
    submit(world)
    assert dispatched(world).peer == HOLDER
    world.handle(ME, RequestCancelled(REQUEST))
    world.advance(5 * world.config.routing.told_half_life_s)  # (loading a large model takes minutes)
    submit(world)
    assert dispatched(world).peer == HOLDER


def test_a_node_alone_asks_its_engine_also_while_that_starts_again() -> None:
    world = quiet_world(1)
    world.handle(ME, VitalsChanged(NAMESPACE, msgspec.structs.replace(IDLE, slots=0)))
    submit(world)
    assert dispatched(world).peer == ME


def test_when_everybody_is_busy_the_client_hears_the_least_of_what_they_said() -> None:
    world = quiet_world()
    for request_id in (REQUEST, b"next".ljust(16)):
        submit(world, request_id=request_id)
        for attempt, retry_after_ms in ((1, 9_000), (2, 7_000), (3, 2**31 - 1)):
            if request_id == REQUEST:
                dispatched(world)
                busy = Failed(code="overloaded", message="full", retryable=True, retry_after_ms=retry_after_ms)
                frame(world, attempt, busy)
        fail = the(world.nodes[ME], Fail)
        assert isinstance(fail, Fail) and fail.code == "overloaded" and fail.retry_after_ms == 7_000
    world.nodes[ME].overlay.check_invariants()


def test_an_engine_that_refuses_one_client_may_still_serve_another() -> None:
    world = quiet_world(1)
    submit(world)
    dispatched(world)
    frame(world, 1, Failed(code="overloaded", message="full", retryable=True, retry_after_ms=5_000))
    assert isinstance(the(world.nodes[ME], Fail), Fail)
    submit(world, client=b"a light client")
    assert dispatched(world).peer == ME


def test_choosing_among_nobody_is_the_callers_error() -> None:
    with pytest.raises(LocalError):
        choose(Candidates.of([]), 10, RoutingConfig())


def test_matches_within_one_block_are_ties_for_load() -> None:
    local = Candidate(ME, STRIDE + 40, num_requests=2, is_local=True)
    remote = Candidate(HOLDER, STRIDE, num_requests=1, is_local=False)
    assert choose(Candidates.of([local, remote]), 500, RoutingConfig()).chosen == HOLDER


def test_all_sampling_options_go_along_and_only_the_budget_shrinks() -> None:
    world = quiet_world()
    wanted = Sampling(max_tokens=8, temperature=0.5, top_k=3, stop=("x",), repeat_penalty=1.5, grammar="root ::= [a]")
    world.handle(ME, RequestSubmitted(REQUEST, NAMESPACE, PROMPT, wanted))
    assert dispatched(world).generate.sampling == wanted
    frame(world, 1, tokens(0, 11, 12))
    world.handle(ME, StreamLost(REQUEST, 1, "reset"))
    assert dispatched(world).generate.sampling == msgspec.structs.replace(wanted, max_tokens=6)


def sent(request: Request) -> Request:
    request.begin_attempt(Attempt(1, HOLDER, request.num_tokens, sent_at=0.0))
    return request


def logprobs(*values: int, top: int = 0) -> tuple[TokenLogprobs, ...]:
    entries = [Logprob(token=value, text=b".", logprob=-1.0) for value in values]
    return tuple(TokenLogprobs(chosen=entry, top=(entry,) * top) for entry in entries)


def test_logprobs_are_delivered_with_their_tokens_and_only_when_asked_for() -> None:
    world = quiet_world()
    world.handle(ME, RequestSubmitted(REQUEST, NAMESPACE, PROMPT, Sampling(max_tokens=8, logprobs=1)))
    good = Tokens(position=0, tokens=pack_tokens([11, 12]), text=b"..", logprobs=logprobs(11, 12, top=1))
    frame(world, 1, good)
    (effect,) = world.nodes[ME].take(Deliver)
    assert isinstance(effect, Deliver) and effect.logprobs == good.logprobs
    request = sent(Request(REQUEST, NAMESPACE, PROMPT, Sampling(max_tokens=8, logprobs=1)))
    for wrong in ((), logprobs(11), logprobs(12, 11), logprobs(11, 12, 13), logprobs(11, 12, top=2)):
        with pytest.raises(RemoteError):
            request.on_tokens(msgspec.structs.replace(good, logprobs=wrong))
    with pytest.raises(RemoteError):
        sent(Request(REQUEST, NAMESPACE, PROMPT, Sampling(max_tokens=8))).on_tokens(good)


def test_nodes_that_claim_to_be_idle_and_refuse_keep_no_prompt_from_an_idle_engine_here() -> None:
    world = quiet_world(10)
    for number in range(1, 10):
        world.store(peer_id(number), 1, PROMPT)
    world.advance(2)
    submit(world)
    dispatch, tried = dispatched(world), []
    while dispatch.peer != ME:
        tried.append(dispatch.peer)
        refusal = Failed(code="overloaded", message="full", retryable=True, retry_after_ms=1)
        frame(world, dispatch.attempt, refusal)
        idle = VitalsUpdate(namespace=NAMESPACE, vitals=IDLE)
        world.handle(ME, Received(dispatch.peer, idle))
        dispatch = dispatched(world)
    assert len(tried) < world.config.request.max_attempts
    observed = world.nodes[ME].overlay.members.observed
    assert all(observed.lateness_s(peer, world.now) > 0 for peer in tried)


# --- handed back ---------------------------------------------------------------------------------------------------


def loaded(queued_tokens: int) -> Vitals:
    return Vitals(queued_tokens=queued_tokens, active_requests=1, waiting_requests=0, slots=4, prefill_rate=500)


def bounce(world: World, attempt: int, queued_tokens: int, cached_tokens: int = 0) -> list[Effect]:
    frame = Bounced(cached_tokens=cached_tokens, vitals=loaded(queued_tokens))
    return world.handle(ME, FrameReceived(REQUEST, attempt, frame))


def of_a_second(promised_tokens: int) -> Generate:
    """A request with a second of patience."""
    return Generate(
        request_id=REQUEST,
        namespace=NAMESPACE,
        prompt=pack_tokens(PROMPT),
        sampling=Sampling(max_tokens=1),
        promised_tokens=promised_tokens,
        patience_ms=1_000,
    )


def sent_to_the_holder() -> tuple[World, Dispatch]:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    world.advance(2)
    submit(world)
    first = dispatched(world)
    assert first.peer == HOLDER
    return world, first


def test_a_request_handed_back_goes_where_it_is_best_with_what_was_told() -> None:
    world, first = sent_to_the_holder()
    assert first.generate.patience_ms > 0
    bounce(world, 1, queued_tokens=10_000, cached_tokens=STRIDE)
    second = dispatched(world)
    assert second.peer == ME and second.attempt == 2 and second.generate.patience_ms == 0
    (holder,) = [rated for rated in second.decision.rated if rated.candidate.peer == HOLDER]
    assert holder.candidate.matched_tokens == STRIDE and holder.candidate.queued_tokens == 10_000
    assert holder.candidate.precision < 1 and holder.candidate.lateness_s > 10


def test_whoever_hands_back_may_still_be_the_best_and_after_two_bounces_serves() -> None:
    world = quiet_world(4)
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    submit(world)
    tried, patience = [], []
    for attempt in (1, 2, 3):
        dispatch = dispatched(world)
        tried.append(dispatch.peer)
        patience.append(dispatch.generate.patience_ms)
        if patience[-1]:
            bounce(world, attempt, queued_tokens=patience[-1] + 100)
    assert ME not in tried and len(set(tried[:2])) == 2
    assert patience[0] and patience[1] and not patience[2]
    world.handle(ME, FrameReceived(REQUEST, 3, tokens(0, 1)))
    assert delivered(world) == [1]


@pytest.mark.parametrize("queued_tokens", [0, 10])
def test_a_bounce_without_a_reason_is_an_offence_and_an_attempt_that_failed(queued_tokens: int) -> None:
    world, _ = sent_to_the_holder()
    world.nodes[ME].take(Emit)
    bounce(world, 1, queued_tokens, cached_tokens=3 * STRIDE)
    assert world.nodes[ME].overlay.refusals[Refusal.WRONG_FRAME] == 1
    again = dispatched(world)
    assert again.peer != HOLDER and HOLDER not in [rated.candidate.peer for rated in again.decision.rated]


def test_a_node_hands_back_only_what_it_would_answer_late() -> None:
    world = quiet_world()
    world.store(HOLDER, 1, PROMPT)
    holder = world.nodes[HOLDER].overlay
    generate = of_a_second(promised_tokens=3 * STRIDE)
    assert holder.turned_away(generate) is None, "its speed is not known"
    world.handle(HOLDER, VitalsChanged(NAMESPACE, loaded(400)))
    assert holder.turned_away(generate) is None
    world.handle(HOLDER, VitalsChanged(NAMESPACE, loaded(500)))
    assert holder.turned_away(generate) == Bounced(cached_tokens=3 * STRIDE, vitals=loaded(500))
    for patient in ({"patience_ms": 0}, {"patience_ms": 1_100}, {"namespace": b"o" * 16}, {"prompt": b"12345"}):
        assert holder.turned_away(msgspec.structs.replace(generate, **patient)) is None


def test_a_node_hands_back_what_would_wait_for_a_slot() -> None:
    world = quiet_world()
    holder = world.nodes[HOLDER].overlay
    generate = of_a_second(promised_tokens=0)
    full = msgspec.structs.replace(loaded(0), active_requests=4, hold_ms=2_000)
    world.handle(HOLDER, VitalsChanged(NAMESPACE, full))
    assert holder.turned_away(generate) is None, "a slot is free after 0.5 s, and 0.4 s later the first token is there"
    behind = msgspec.structs.replace(full, waiting_requests=1)
    world.handle(HOLDER, VitalsChanged(NAMESPACE, behind))
    assert holder.turned_away(generate) == Bounced(cached_tokens=0, vitals=behind)


def test_a_node_that_leaves_turns_everybody_away_and_is_avoided() -> None:
    world, first = sent_to_the_holder()
    world.handle(HOLDER, Leaving())
    world.deliver_all()
    refusal = world.nodes[HOLDER].overlay.turned_away(first.generate)
    assert isinstance(refusal, Failed) and refusal.code == "leaving" and refusal.retryable
    frame(world, 1, refusal)
    assert dispatched(world).peer != HOLDER
    assert not world.nodes[ME].overlay.members.observed.lateness_s(HOLDER, world.now), "it is no fault"
    submit(world, request_id=b"s" * 16)
    assert dispatched(world).peer != HOLDER
    world.handle(HOLDER, VitalsChanged(NAMESPACE, loaded(0)))
    world.advance(10)
    submit(world, request_id=b"t" * 16)
    assert dispatched(world).peer != HOLDER


def test_a_paused_node_turns_others_away_is_avoided_and_answers_its_own() -> None:
    world, first = sent_to_the_holder()
    world.handle(HOLDER, Paused(True))
    world.deliver_all()
    refusal = world.nodes[HOLDER].overlay.turned_away(first.generate)
    assert isinstance(refusal, Failed) and refusal.code == "leaving" and "paused" in refusal.message
    frame(world, 1, refusal)
    assert dispatched(world).peer != HOLDER
    world.handle(HOLDER, VitalsChanged(NAMESPACE, loaded(0)))
    world.advance(10)
    submit(world, request_id=b"t" * 16)
    assert dispatched(world).peer != HOLDER
    world.handle(HOLDER, RequestSubmitted(b"o" * 16, NAMESPACE, PROMPT, Sampling(max_tokens=8)))
    own = the(world.nodes[HOLDER], Dispatch)
    assert isinstance(own, Dispatch) and own.peer == HOLDER
    world.handle(HOLDER, Paused(False))
    world.deliver_all()
    assert world.nodes[HOLDER].overlay.turned_away(first.generate) is None
    submit(world, request_id=b"u" * 16)
    assert dispatched(world).peer == HOLDER


def test_who_leaves_goes_on_with_what_entered_there_and_takes_nothing_new() -> None:
    world = quiet_world(1)
    submit(world)
    dispatched(world)
    world.handle(ME, Leaving())
    submit(world, request_id=b"s" * 16)
    refused = the(world.nodes[ME], Fail)
    assert isinstance(refused, Fail) and refused.code == "leaving" and refused.retryable
    frame(world, 1, tokens(0, 5))
    frame(world, 1, Final(reason="stop", usage=USAGE, vitals=IDLE))
    assert delivered(world) == [5] and world.nodes[ME].take(Finish)


def test_what_does_not_begin_in_time_starts_anew_elsewhere() -> None:
    world, _ = sent_to_the_holder()
    world.advance(0.3)
    assert not world.nodes[ME].take(Dispatch), "starting anew would take longer than it is overdue"
    world.advance(1.5)
    (abandon,) = world.nodes[ME].take(Abandon)
    assert abandon == Abandon(REQUEST, 1)
    second = dispatched(world)
    assert second.peer != HOLDER and second.attempt == 2
    late_s = world.nodes[ME].overlay.members.observed.lateness_s(HOLDER, world.now)
    assert 0.3 < late_s < 1.8, "as late as it was, no more"
    world.handle(ME, FrameReceived(REQUEST, 1, tokens(0, 1)))
    assert not delivered(world), "what the first one says now is of no interest"
    world.handle(ME, FrameReceived(REQUEST, 2, tokens(0, 1)))
    assert delivered(world) == [1]


def test_what_has_begun_is_told_and_left_where_it_is() -> None:
    world, _ = sent_to_the_holder()
    world.handle(ME, FrameReceived(REQUEST, 1, Accepted(cached_tokens=STRIDE, vitals=loaded(0))))
    assert world.nodes[ME].take(Begin) == [Begin(REQUEST, HOLDER, STRIDE)]
    world.advance(30)
    assert not world.nodes[ME].take(Abandon) and not world.nodes[ME].take(Dispatch)


def test_a_request_is_taken_away_twice_at_most() -> None:
    world = quiet_world(6)
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    submit(world)
    world.advance(60)
    tried = [effect.peer for effect in world.nodes[ME].take(Dispatch) if isinstance(effect, Dispatch)]
    assert len(tried) == 3 == len(set(tried))


def test_nobody_else_is_no_reason_to_move() -> None:
    world = quiet_world(2)
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    submit(world)
    world.handle(ME, Disconnected(OTHER) if dispatched(world).peer == HOLDER else Disconnected(HOLDER))
    world.advance(60)
    assert not world.nodes[ME].take(Abandon)


def test_the_last_attempt_is_left_where_it_is() -> None:
    world = World(3, config=OverlayConfig(request=RequestConfig(max_attempts=1)))
    world.deliver_all()
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    submit(world)
    world.advance(60)
    assert not world.nodes[ME].take(Abandon) and not world.nodes[ME].take(Fail)


def test_what_is_overdue_moves_when_others_are_free_again() -> None:
    world = quiet_world()
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    submit(world)
    first = dispatched(world).peer
    busy = Failed(code="overloaded", message="busy", retryable=True, retry_after_ms=5_000)
    second = b"s" * 16
    submit(world, request_id=second)
    for attempt in (1, 2, 3):  # (all nodes refuse it)
        world.handle(ME, FrameReceived(second, attempt, busy))
    asked = [effect for effect in world.nodes[ME].take(Dispatch) if isinstance(effect, Dispatch)]
    assert {dispatch.peer for dispatch in asked} == {ME, HOLDER, OTHER}
    world.advance(4, deliver=False)
    assert not world.nodes[ME].take(Dispatch)
    world.advance(10, deliver=False)
    assert world.nodes[ME].take(Abandon) == [Abandon(REQUEST, 1)] and dispatched(world).peer != first


@pytest.mark.parametrize(
    ("num_prompt", "told", "chosen_on_s", "position", "stop", "expected_s"),
    [
        (200, None, 1.0, 0, (), 120.0),
        (200, None, 1e9, 0, (), 120.0),
        (4_000, None, 1.0, 0, (), 120.0),
        (4_000, None, 100.0, 0, (), 5 + 3 * 100.0),
        (4_000, None, 1e9, 0, (), 5 + 3 * 200.0),
        (10**6, None, 1e9, 0, (), 3_600.0),
        (200, {}, 1.0, 0, (), 120.0),
        (200, {"prefill_rate": 100}, 1.0, 0, (), 5 + 3 * 2 * 1.0),
        (4_000, {"prefill_rate": 100}, 100.0, 0, (), 5 + 3 * 2 * 1.0),
        (200, {"prefill_rate": 100, "active_requests": 8}, 1.0, 0, (), 5 + 3 * 8 * 1.0),
        (200, {"prefill_rate": 1}, 1e9, 0, (), 120.0),
        (4_000, {"prefill_rate": 1}, 1.0, 0, (), 5 + 3 * 200.0),
        (4_000, {"prefill_rate": 100}, 100.0, 3, (), 120.0),
        (4_000, {"decode_rate": 10}, 1.0, 3, (), 5 + 3 * 2 * 0.1),
        (4_000, {"decode_rate": 10}, 1.0, 3, ("€", "###"), 5 + 3 * 2 * 0.4),
    ],
)
def test_silence_is_borne_as_long_as_the_nodes_own_rates_say_and_the_prompt_explains(
    num_prompt: int,
    told: dict[str, int] | None,
    chosen_on_s: float,
    position: int,
    stop: tuple[str, ...],
    expected_s: float,
) -> None:
    withheld = Request(REQUEST, NAMESPACE, [], Sampling(max_tokens=8, stop=stop)).max_withheld
    attempt = Attempt(1, HOLDER, num_prompt, sent_at=0.0, expected_s=chosen_on_s, max_withheld=withheld)
    if told is not None:
        vitals = msgspec.structs.replace(IDLE, **({"slots": 2, "active_requests": 0, "prefill_rate": 0} | told))
        attempt.on_accepted(Accepted(cached_tokens=num_prompt - 100, vitals=vitals))
    attempt.position = position
    assert attempt.silence_s(RequestConfig()) == pytest.approx(expected_s)


def lose(world: World, reason: str = "reset") -> None:
    attempt = world.nodes[ME].overlay.requests.in_flight[REQUEST].num_attempts
    world.handle(ME, StreamLost(REQUEST, attempt, reason))


def test_a_request_whose_nodes_were_all_lost_rests_and_is_tried_again() -> None:
    world = quiet_world(2)
    submit(world)
    peers = {dispatched(world).peer}
    lose(world)
    peers.add(dispatched(world).peer)
    lose(world)
    assert peers == {ME, HOLDER} and not world.nodes[ME].take(Dispatch) and not world.nodes[ME].take(Fail)
    world.handle(ME, FrameReceived(REQUEST, 2, tokens(0, 1)))
    assert not world.nodes[ME].take(Deliver), "nobody works on it"
    world.advance(1.1, deliver=False)
    assert dispatched(world).attempt == 3


def test_resting_ends() -> None:
    world = quiet_world(2)
    submit(world)
    for _ in range(2 * (len(RequestConfig().rest_s) + 1)):
        assert not world.nodes[ME].take(Fail)
        lose(world)
        world.advance(10, deliver=False)
    (fail,) = world.nodes[ME].take(Fail)
    assert isinstance(fail, Fail) and fail.code == "no_peer" and "10 attempts" in fail.message


def test_an_answer_that_has_begun_waits_for_a_place_where_it_can_go_on() -> None:
    """Its client already waited for a place before it began."""
    world = quiet_world(1)
    submit(world)
    frame(world, 1, tokens(0, 5))
    lose(world)
    busy = Failed(code="overloaded", message="the engine is restarting", retryable=True)
    for attempt in range(2, 8):
        world.nodes[ME].effects.clear()
        world.advance(8.1, deliver=False)
        assert dispatched(world).attempt == attempt
        frame(world, attempt, busy)
    world.advance(8.1, deliver=False)
    frame(world, 8, tokens(0, 6))
    assert delivered(world) == [6]


def test_an_answer_that_has_begun_waits_two_minutes_at_most() -> None:
    world = quiet_world(1)
    submit(world)
    frame(world, 1, tokens(0, 5))
    busy = Failed(code="overloaded", message="busy", retryable=True)
    began = world.now
    while not world.nodes[ME].take(Fail):
        attempt = world.nodes[ME].overlay.requests.in_flight[REQUEST].num_attempts
        world.handle(ME, FrameReceived(REQUEST, attempt, busy))
        world.advance(1, deliver=False)
        assert world.now < began + 150
    assert world.now > began + 90


def test_who_rests_is_overdue_nowhere() -> None:
    world = quiet_world(2)
    world.handle(ME, VitalsChanged(NAMESPACE, loaded(10**6)))
    submit(world)
    lose(world)
    lose(world)
    world.nodes[ME].effects.clear()
    world.advance(0.9, deliver=False)
    assert not world.nodes[ME].take(Dispatch)
    world.advance(0.2, deliver=False)
    assert len(world.nodes[ME].take(Dispatch)) == 1


def test_the_timer_of_a_lookup_that_is_long_over_ends_no_rest() -> None:
    world = quiet_world(1)
    submit(world)
    lose(world)
    world.nodes[ME].take(Dispatch)
    world.handle(ME, TimerFired(Timer("lookup", REQUEST, NAMESPACE)))
    assert not world.nodes[ME].take(Dispatch)
    world.advance(60, deliver=False)
    assert len(world.nodes[ME].take(Dispatch)) == 1


def test_who_rests_can_be_cancelled() -> None:
    world = quiet_world(1)
    submit(world)
    lose(world)
    assert world.handle(ME, RequestCancelled(REQUEST)) == []
    world.advance(60, deliver=False)
    assert not world.nodes[ME].take(Fail) and not world.nodes[ME].overlay.requests.in_flight


def test_a_token_clears_what_was_counted_against_nodes_and_request() -> None:
    """A request that kills engines brings no token, so it is not passed around for ever."""
    world = quiet_world(3)
    submit(world)
    for round_ in range(6):
        world.handle(ME, FrameReceived(REQUEST, round_ + 1, tokens(0, 1)))
        world.handle(ME, FrameReceived(REQUEST, round_ + 1, Failed(code="engine_lost", message="x", retryable=True)))
        assert not world.nodes[ME].take(Fail)
    request = world.nodes[ME].overlay.requests.in_flight[REQUEST]
    assert (
        len(request.generated) == 6
        and len(request.setbacks.failed_peers) == 1
        and request.setbacks.num_engine_losses == 0
    )
    for _ in range(3):
        attempt = request.num_attempts
        world.handle(ME, FrameReceived(REQUEST, attempt, Failed(code="engine_lost", message="x", retryable=True)))
    world.advance(60, deliver=False)
    assert world.nodes[ME].take(Fail), "three engines without a token"

"""Logprobs of a prompt through the overlay: what a serving node may send, and what the next one is asked for."""

import msgspec
import pytest

from mycelia.proto.config import RequestConfig
from mycelia.proto.effects import Begin, DeliverPromptLogprobs, Dispatch, Finish
from mycelia.proto.events import FrameReceived, Received, RequestSubmitted, StreamLost
from mycelia.proto.planes.request import Request
from mycelia.proto.wire.biases import pack_biases
from mycelia.proto.wire.blocks import STRIDE, pack_tokens
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    Accepted,
    Final,
    Hello,
    Logprob,
    PromptLogprobs,
    Sampling,
    Served,
    TokenLogprobs,
    Tokens,
)
from mycelia.proto.wire.versions import version_of
from tests.proto.planes.test_requests import ME, REQUEST, USAGE, dispatched, quiet_world, sent, tokens
from tests.proto.playbook import IDLE, NAMESPACE, World, peer_id

HOLDER = peer_id(1)
PROMPT = list(range(7, 7 + 3 * STRIDE))


def entries(values: list[int], num_top: int = 1) -> tuple[TokenLogprobs, ...]:
    top = tuple(Logprob(token=1, text=b"", logprob=-1.0) for _ in range(num_top))
    return tuple(TokenLogprobs(chosen=Logprob(token=value, text=b"", logprob=-2.0), top=top) for value in values)


def report(start: int, end: int, num_top: int = 1) -> PromptLogprobs:
    return PromptLogprobs(position=start, logprobs=entries(PROMPT[start:end], num_top))


def submitted(world: World, start: int = 0, max_tokens: int = 8) -> Dispatch:
    sampling = Sampling(max_tokens=max_tokens, prompt_logprobs=1, logprobs_from=start)
    world.handle(ME, RequestSubmitted(REQUEST, NAMESPACE, PROMPT, sampling))
    return dispatched(world)


def frame(world: World, attempt: int, message: Accepted | PromptLogprobs | Tokens | Final) -> None:
    world.handle(ME, FrameReceived(REQUEST, attempt, message))


def reported(world: World) -> list[int]:
    effects = world.nodes[ME].take(DeliverPromptLogprobs)
    return [
        entry.chosen.token
        for effect in effects
        if isinstance(effect, DeliverPromptLogprobs)
        for entry in effect.logprobs
    ]


def test_each_token_is_reported_once_over_several_nodes() -> None:
    world = quiet_world()
    first = submitted(world)
    assert first.generate.sampling.logprobs_from == 1
    frame(world, 1, Accepted(cached_tokens=0, vitals=IDLE))
    frame(world, 1, report(1, 33))
    frame(world, 1, report(33, 50))
    world.handle(ME, StreamLost(REQUEST, 1, "lost"))
    second = dispatched(world)
    assert second.peer != first.peer and second.generate.sampling.logprobs_from == 50
    frame(world, 2, report(50, len(PROMPT)))
    frame(world, 2, tokens(0, 1, 2))
    world.handle(ME, StreamLost(REQUEST, 2, "lost"))
    third = dispatched(world)
    assert third.generate.sampling.logprobs_from == len(PROMPT) and third.generate.resumed_tokens == 2
    frame(world, 3, tokens(0, *range(3, 9)))
    frame(world, 3, Final(reason="length", usage=USAGE, vitals=IDLE))
    assert reported(world) == PROMPT[1:] and len(world.nodes[ME].take(Finish)) == 1


WRONG: dict[str, list[PromptLogprobs | Tokens | Final]] = {
    "a gap": [report(2, 5)],
    "again": [report(1, 5), report(1, 5)],
    "other tokens": [PromptLogprobs(position=1, logprobs=entries([1]))],
    "too many": [PromptLogprobs(position=1, logprobs=entries([*PROMPT[1:], 5]))],
    "too many alternatives": [report(1, 5, num_top=2)],
    "a token before": [report(1, 5), tokens(0, 1)],
    "an end before": [report(1, 5), Final(reason="stop", usage=USAGE, vitals=IDLE)],
    "after all": [report(1, len(PROMPT)), report(len(PROMPT) - 1, len(PROMPT))],
    "after a token": [report(1, len(PROMPT)), tokens(0, 1), report(1, 2)],
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_honest_node_sends(case: str) -> None:
    request = sent(Request(REQUEST, NAMESPACE, PROMPT, Sampling(max_tokens=8, prompt_logprobs=1)))
    *good, bad = WRONG[case]
    for one in good:
        take(request, one)
    with pytest.raises(RemoteError):
        take(request, bad)


def take(request: Request, message: PromptLogprobs | Tokens | Final) -> None:
    match message:
        case PromptLogprobs():
            request.on_prompt_logprobs(message)
        case Tokens():
            request.on_tokens(message)
        case Final():
            request.ends_short(message.reason, 8_192)


def test_logprobs_that_nobody_asked_for() -> None:
    with pytest.raises(RemoteError, match="not asked for"):
        take(sent(Request(REQUEST, NAMESPACE, PROMPT, Sampling(max_tokens=8))), report(1, 5))


def test_a_node_promises_only_cells_that_may_be_reused() -> None:
    for start, promised in ((0, 0), (STRIDE + 9, STRIDE + 8), (len(PROMPT) - 1, 2 * STRIDE), (len(PROMPT), 3 * STRIDE)):
        world = quiet_world()
        world.store(HOLDER, 1, PROMPT + [5] * STRIDE)
        world.advance(2)
        dispatch = submitted(world, start)
        assert dispatch.generate.promised_tokens <= promised
        assert (dispatch.peer == HOLDER) or not promised


def test_no_token_is_no_complete_answer_until_its_end_comes() -> None:
    world = quiet_world(config=RequestConfig())
    submitted(world, max_tokens=0)
    frame(world, 1, Accepted(cached_tokens=0, vitals=IDLE))
    frame(world, 1, report(1, len(PROMPT)))
    world.handle(ME, StreamLost(REQUEST, 1, "lost"))
    assert dispatched(world).generate.sampling.max_tokens == 0
    frame(world, 2, Final(reason="length", usage=USAGE, vitals=IDLE))
    (finish,) = world.nodes[ME].take(Finish)
    assert isinstance(finish, Finish) and finish.reason == "length" and finish.usage.completion_tokens == 0
    assert world.nodes[ME].take(Begin)


@pytest.mark.parametrize(
    ("sampling", "version"),
    [
        (Sampling(max_tokens=1), 1),
        (Sampling(max_tokens=0), 2),
        (Sampling(max_tokens=1, prompt_logprobs=1), 2),
        (Sampling(max_tokens=1, grammar="a", grammar_kind="regex"), 2),
        (Sampling(max_tokens=1, grammar="start: /a/", grammar_kind="lark"), 2),
        (Sampling(max_tokens=1, grammar="{}", grammar_kind="json_schema"), 1),
        (Sampling(max_tokens=1, logit_bias=pack_biases({1: 1.0})), 2),
        (Sampling(max_tokens=1, stop=("x" * 256,)), 1),
        (Sampling(max_tokens=1, stop=("x" * 257,)), 2),
    ],
    ids=["plain", "no token", "logprobs", "regex", "lark", "schema", "bias", "stop", "long stop"],
)
def test_an_older_node_is_not_asked_for_what_it_does_not_know(sampling: Sampling, version: int) -> None:
    assert version_of(sampling) == version
    world = quiet_world(2)
    world.store(HOLDER, 1, PROMPT + [5] * STRIDE)
    served = (Served(namespace=NAMESPACE, model="m", context_tokens=8_192, vitals=IDLE),)
    world.advance(2)
    world.handle(ME, Received(HOLDER, Hello(wire_version=1, agent="old", served=served)))
    sampling = msgspec.structs.replace(sampling, logprobs_from=len(PROMPT) if sampling.prompt_logprobs else 0)
    world.handle(ME, RequestSubmitted(REQUEST, NAMESPACE, PROMPT, sampling))
    dispatch = dispatched(world)
    assert (dispatch.peer == HOLDER) is (version == 1) and dispatch.generate.prompt == pack_tokens(PROMPT)

"""Requests under any order of peers', streams' and clients' actions: each token comes once, and nothing leaks."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mycelia.proto.config import OverlayConfig, RequestConfig
from mycelia.proto.effects import Abandon, Deliver, Dispatch, Effect, Fail, Finish
from mycelia.proto.events import (
    Connected,
    Disconnected,
    Event,
    FrameReceived,
    Received,
    RequestCancelled,
    RequestSubmitted,
    StreamLost,
)
from mycelia.proto.planes import attempt as one_try
from mycelia.proto.planes.failure import Failure
from mycelia.proto.planes.request import RUNNING, TRANSITIONS, Request, State, Step
from mycelia.proto.wire.blocks import STRIDE, pack_tokens, unpack_tokens
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Accepted, Bounced, Failed, Final, Hello, Sampling, Served, Tokens, Usage
from tests.profiles import examples
from tests.proto.playbook import IDLE, NAMESPACE, World, peer_id

ME = peer_id(0)
PEERS = [peer_id(number) for number in (1, 2, 3)]
FIRST_TOKEN = 1_000
"""The true answer to every prompt counts up from here."""
CONFIG = OverlayConfig(request=RequestConfig(max_in_flight=4, max_attempts=3, begun_rests=6))
MOST_ATTEMPTS = CONFIG.request.max_attempts * (CONFIG.request.begun_rests + 1)
"""Attempts without a token."""


# --- one request: all states and all steps --------------------------------------------------------------------------

STEPS: dict[Step, Callable[[Request], object]] = {
    Step.LOOK_UP: Request.look_up,
    Step.HOLD: Request.hold,
    Step.REST: Request.rest,
    Step.WAKE: Request.wake,
    Step.SEND: lambda request: request.begin_attempt(
        one_try.Attempt(request.num_attempts + 1, PEERS[0], request.num_tokens, sent_at=0.0, patience_s=1.0)
    ),
    Step.ACCEPT: lambda request: request.on_accepted(Accepted(cached_tokens=0, vitals=IDLE)),
    Step.TOKENS: lambda request: request.on_tokens(
        Tokens(position=request.attempt.position, tokens=pack_tokens([1]), text=b".")
    ),
    Step.HAND_BACK: lambda request: request.on_bounced(Bounced(cached_tokens=0, vitals=IDLE), wait_s=2.0),
    Step.FAIL: lambda request: request.fail_attempt(Failure.LOST, "lost"),
    Step.END: Request.end,
}
WAYS: dict[State, tuple[Step, ...]] = {
    State.ROUTING: (),
    State.LOOKING: (Step.LOOK_UP,),
    State.HELD: (Step.HOLD,),
    State.RESTING: (Step.REST,),
    State.SENT: (Step.SEND,),
    State.COMPUTING: (Step.SEND, Step.ACCEPT),
    State.STREAMING: (Step.SEND, Step.TOKENS),
    State.OVER: (Step.END,),
}
"""State -> the steps to it from the first state."""


def request_in(state: State) -> Request:
    request = Request(b"r" * 16, NAMESPACE, [1, 2, 3], Sampling(max_tokens=9))
    for step in WAYS[state]:
        STEPS[step](request)
    assert request.state is state
    return request


@pytest.mark.parametrize("step", Step, ids=lambda step: step.name)
@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_every_step_in_every_state_is_that_of_the_table_or_an_error_that_changes_nothing(
    state: State, step: Step
) -> None:
    request, after = request_in(state), TRANSITIONS[state].get(step)
    if after is not None:
        STEPS[step](request)
        assert request.state is after
    else:
        before = vars(request_in(state))
        blame = RemoteError if state in RUNNING and step in (Step.ACCEPT, Step.HAND_BACK) else LocalError
        with pytest.raises(blame):
            STEPS[step](request)
        assert vars(request) == before | {"_attempt": vars(request)["_attempt"]} and request.state is state
    assert request.is_running == bool(request.peer)
    if request.is_running or request.is_waiting:
        request.check_invariants()


# --- all requests of an entry node ----------------------------------------------------------------------------------


@dataclass
class Attempt:
    """A node at work on a request; it follows the protocol until a rule of the machine changes that."""

    dispatch: Dispatch
    is_accepted: bool = False
    position: int = 0
    is_abandoned: bool = False
    is_bounced: bool = False
    num_delivered: int = 0

    def tokens(self, count: int) -> Tokens:
        first = FIRST_TOKEN + self.dispatch.generate.resumed_tokens + self.position
        values = range(first, first + count)
        return Tokens(position=self.position, tokens=pack_tokens(values), text=b"." * count)


@dataclass
class Client:
    prompt: list[int]
    max_tokens: int
    delivered: list[int] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    tried: list[Attempt] = field(default_factory=list)
    """The attempts since a token came or the request rested; the one that brought the token is the first."""
    ends: list[Finish | Fail] = field(default_factory=list)
    is_cancelled: bool = False

    @property
    def is_running(self) -> bool:
        return not self.ends and not self.is_cancelled


class Requests(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(1, config=CONFIG)
        self.overlay = self.world.nodes[ME].overlay
        self.clients: dict[bytes, Client] = {}
        self.connected: set[bytes] = set()
        self.rested: set[bytes] = set()
        """Requests that may begin anew now."""
        for peer in PEERS:
            self.join(peer)

    @property
    def resting(self) -> set[bytes]:
        return {key for key, request in self.overlay.requests.in_flight.items() if request.is_waiting}

    def handle(self, event: Event) -> None:
        for effect in self.world.handle(ME, event):
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case Dispatch():
                client = self.clients[effect.request_id]
                assert client.is_running
                assert effect.attempt == len(client.attempts) + 1 <= MOST_ATTEMPTS * (len(client.delivered) + 1)
                assert effect.peer == ME or effect.peer in self.connected
                if client.attempts and client.attempts[-1].num_delivered:
                    client.tried = client.attempts[-1:]
                if effect.request_id in self.rested:
                    client.tried = []
                assert effect.peer not in [a.dispatch.peer for a in client.tried if not a.is_bounced], "tried twice"
                generate = effect.generate
                bounces = sum(a.is_bounced for a in client.attempts)
                assert not generate.patience_ms or (effect.peer != ME and bounces < CONFIG.routing.max_bounces)
                assert unpack_tokens(generate.prompt) == client.prompt + client.delivered
                assert generate.resumed_tokens == len(client.delivered)
                assert generate.sampling.max_tokens == client.max_tokens - len(client.delivered)
                assert decode(encode(generate)) == generate
                client.attempts.append(Attempt(effect))
                client.tried.append(client.attempts[-1])
                assert len(client.tried) <= CONFIG.request.max_attempts + 1
            case Deliver():
                client = self.clients[effect.request_id]
                assert client.is_running, "tokens after the end"
                client.delivered.extend(effect.tokens)
                client.attempts[-1].num_delivered += len(effect.tokens)
            case Finish() | Fail():
                self.clients[effect.request_id].ends.append(effect)
            case Abandon():
                self.clients[effect.request_id].attempts[effect.attempt - 1].is_abandoned = True
            case _:
                pass

    def any_attempt(self, data: st.DataObject) -> tuple[bytes, Attempt]:
        """An attempt of any request, running or long over."""
        tried = sorted(request_id for request_id, client in self.clients.items() if client.attempts)
        request_id = data.draw(st.sampled_from(tried))
        return request_id, data.draw(st.sampled_from(self.clients[request_id].attempts[::-1]))

    @rule(blocks=st.integers(0, 2), first=st.integers(0, 1), max_tokens=st.integers(1, 6))
    def submit(self, blocks: int, first: int, max_tokens: int) -> None:
        request_id = len(self.clients).to_bytes(16, "big")
        prompt = [first] * (STRIDE * blocks + 1)
        self.clients[request_id] = Client(prompt, max_tokens)
        self.handle(RequestSubmitted(request_id, NAMESPACE, prompt, Sampling(max_tokens=max_tokens)))

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(data=st.data(), count=st.integers(1, 3))
    def serve(self, data: st.DataObject, count: int) -> None:
        """The node of an attempt does the next step in order, also when no client waits any more."""
        request_id, attempt = self.any_attempt(data)
        limit = attempt.dispatch.generate.sampling.max_tokens
        frame: Accepted | Tokens | Final
        if not attempt.is_accepted:
            attempt.is_accepted = True
            frame = Accepted(cached_tokens=0, vitals=IDLE)
        elif attempt.position < limit:
            frame = attempt.tokens(min(count, limit - attempt.position))
        else:
            frame = self.final(attempt, "length")
        self.handle(FrameReceived(request_id, attempt.dispatch.attempt, frame))
        if isinstance(frame, Tokens):
            attempt.position += len(frame.tokens) // 4

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(data=st.data(), reason=st.sampled_from(["stop", "cancelled"]))
    def finish_early(self, data: st.DataObject, reason: str) -> None:
        request_id, attempt = self.any_attempt(data)
        self.handle(FrameReceived(request_id, attempt.dispatch.attempt, self.final(attempt, reason)))

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(data=st.data(), queued=st.sampled_from([0, 1_000, 10**6]), rate=st.sampled_from([0, 1_000]))
    def bounce(self, data: st.DataObject, queued: int, rate: int) -> None:
        """Hand a request back, with or without a reason."""
        request_id, attempt = self.any_attempt(data)
        client = self.clients[request_id]
        vitals = msgspec.structs.replace(IDLE, queued_tokens=queued, prefill_rate=rate)
        is_running = client.is_running and client.attempts[-1] is attempt and request_id not in self.resting
        patience_ms = attempt.dispatch.generate.patience_ms
        is_fair = not attempt.is_accepted and not attempt.position and 0 < patience_ms < queued * rate / 1_000
        attempt.is_bounced = attempt.is_bounced or (is_running and is_fair)
        self.handle(FrameReceived(request_id, attempt.dispatch.attempt, Bounced(cached_tokens=0, vitals=vitals)))

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(
        data=st.data(),
        code=st.sampled_from(["overloaded", "engine_lost", "too_long"]),
        retryable=st.booleans(),
    )
    def refuse(self, data: st.DataObject, code: str, retryable: bool) -> None:
        request_id, attempt = self.any_attempt(data)
        frame = Failed(code=code, message="no", retryable=retryable)
        self.handle(FrameReceived(request_id, attempt.dispatch.attempt, frame))

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(data=st.data(), shift=st.sampled_from([-1, 1, 5]), count=st.integers(1, 9))
    def speak_out_of_place(self, data: st.DataObject, shift: int, count: int) -> None:
        """Repeat a frame, or send one ahead of its place."""
        request_id, attempt = self.any_attempt(data)
        position = max(0, attempt.position + shift)
        if position == attempt.position:
            position += 1
        frame = Tokens(position=position, tokens=pack_tokens([7] * count), text=b"x")
        self.handle(FrameReceived(request_id, attempt.dispatch.attempt, frame))

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(data=st.data())
    def say_too_much(self, data: st.DataObject) -> None:
        request_id, attempt = self.any_attempt(data)
        count = attempt.dispatch.generate.sampling.max_tokens - attempt.position + 1
        frame = Tokens(position=attempt.position, tokens=pack_tokens([7] * count), text=b"")
        self.handle(FrameReceived(request_id, attempt.dispatch.attempt, frame))

    @precondition(lambda self: any(client.attempts for client in self.clients.values()))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        request_id, attempt = self.any_attempt(data)
        self.handle(StreamLost(request_id, attempt.dispatch.attempt, "reset"))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.clients)))
        was_running, was_resting = self.clients[request_id].is_running, request_id in self.resting
        self.handle(RequestCancelled(request_id))
        if was_running:
            self.clients[request_id].is_cancelled = True
            assert was_resting or self.clients[request_id].attempts[-1].is_abandoned

    @rule(peer=st.sampled_from(PEERS))
    def join(self, peer: bytes) -> None:
        self.connected.add(peer)
        served = Served(namespace=NAMESPACE, model="model", context_tokens=STRIDE * 2 + 3, vitals=IDLE)
        self.handle(Connected(peer, "/memory"))
        self.handle(Received(peer, Hello(wire_version=1, agent="", served=(served,))))

    @rule(peer=st.sampled_from(PEERS))
    def leave(self, peer: bytes) -> None:
        self.connected.discard(peer)
        self.handle(Disconnected(peer))

    @rule(seconds=st.sampled_from([0.1, 30.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        node = self.world.nodes[ME]
        node.effects.clear()
        self.rested = self.resting
        self.world.advance(seconds, deliver=False)
        self.world.in_flight.clear()
        for effect in list(node.effects):
            self.perform(effect)
        self.rested = set()

    @invariant()
    def every_token_once(self) -> None:
        for client in self.clients.values():
            assert client.delivered == list(range(FIRST_TOKEN, FIRST_TOKEN + len(client.delivered)))
            assert len(client.delivered) <= client.max_tokens
            assert len(client.ends) <= 1
            for end in client.ends:
                if isinstance(end, Finish):
                    assert end.usage.completion_tokens == len(client.delivered)
                    assert end.reason == "stop" or len(client.delivered) == client.max_tokens
                    assert end.resumed < len(client.attempts)

    @invariant()
    def one_attempt_runs(self) -> None:
        running = {request_id: client for request_id, client in self.clients.items() if client.is_running}
        assert self.overlay.requests.in_flight.keys() == running.keys()
        for peer in (ME, *PEERS):
            served = [client for request_id, client in running.items() if request_id not in self.resting]
            at_peer = [client for client in served if client.attempts[-1].dispatch.peer == peer]
            assert self.overlay.requests.num_at(peer) == len(at_peer)

    def final(self, attempt: Attempt, reason: str) -> Final:
        usage = Usage(
            prompt_tokens=2**31 - 1,
            cached_tokens=2**31 - 1,
            completion_tokens=attempt.position,
            queue_ms=0,
            prefill_ms=0,
            decode_ms=0,
        )
        return Final(reason=reason, usage=usage, vitals=IDLE)

    def teardown(self) -> None:
        """All running attempts are lost, again and again: every request ends, and nothing of it is left."""
        for _ in range(MOST_ATTEMPTS + CONFIG.request.max_attempts):  # (the running attempt may have brought a token)
            for request_id, client in list(self.clients.items()):
                if client.is_running:
                    self.handle(StreamLost(request_id, len(client.attempts), "the end"))
            if self.resting:
                self.pass_time(10.0)
        assert not any(client.is_running for client in self.clients.values())
        self.one_attempt_runs()
        self.overlay.check_invariants()


TestRequests = pytest.mark.properties(Requests.TestCase)
TestRequests.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)

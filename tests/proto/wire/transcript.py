"""One whole exchange between two nodes, byte by byte: two real overlays, with real keys and the test's own clock.

*Client*, a light client, asks *entry*. *Server* holds the first block of that prompt and so answers it. The frames of
the answer are invented; all other bytes are what the nodes send.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from mycelia import proto
from mycelia.node.requests.entry import ASK
from mycelia.node.requests.told import answered_frame, route_frame
from mycelia.proto.cache.sharing import SALTED, TAG_BYTES, Salt
from mycelia.proto.config import OverlayConfig
from mycelia.proto.effects import Begin, Deliver, Dispatch, Effect, Finish, Publish, Send, SetTimer
from mycelia.proto.events import (
    CacheChanged,
    Connected,
    Event,
    FrameReceived,
    Gossiped,
    ModelServed,
    Received,
    RequestSubmitted,
    RoundTripMeasured,
    TimerFired,
)
from mycelia.proto.overlay import Overlay
from mycelia.proto.wire.blocks import STRIDE, namespace_key, pack_tokens
from mycelia.proto.wire.codec import LENGTH_PREFIX, encode
from mycelia.proto.wire.messages import Accepted, Ask, Begun, Final, Message, Sampling, Text, Tokens, Usage, Vitals
from tests.interop.by_hand import rpc
from tests.proto.documents import rule_name

START_S = 1_800_000_000.0
SERVER_SEED, ENTRY_SEED = bytes(range(32)), bytes(range(32, 64))
NAMESPACE = namespace_key(bytes(32), "f16", b"")
PROMPT = list(range(1, STRIDE + 3))
ANSWER, TEXT = [7, 8], b"Hi!"
TTFT_S = 0.03
REQUEST_ID = bytes(range(16))
CONTROL, GENERATE, GOSSIP = "/mycelia/control/1", "/mycelia/generate/1", "/meshsub/1.1.0"
TOPIC = f"mycelia/1/{NAMESPACE.hex()}"
FIRST_SEQNO = int(START_S * 1e9)
VITALS = Vitals(
    queued_tokens=0, active_requests=0, waiting_requests=0, slots=4, prefill_rate=300, decode_rate=60, hold_ms=0
)


@dataclass(frozen=True)
class Step:
    sender: str
    over: str
    what: str
    data: bytes


@dataclass
class _Node:
    name: str
    key: SigningKey
    overlay: Overlay = field(init=False)
    timers: dict[str, TimerFired] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = OverlayConfig(agent=self.name)
        self.overlay = Overlay(self.peer, config, random.Random(1), self.sign, _verify)

    @property
    def peer(self) -> bytes:
        return bytes.fromhex("002408011220") + bytes(self.key.verify_key)

    def sign(self, payload: bytes) -> bytes:
        return bytes(self.key.sign(payload).signature)


def _verify(owner: bytes, payload: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(owner[-32:]).verify(payload, signature)
    except BadSignatureError:
        return False
    return True


class Exchange:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.finished: list[Finish] = []
        self._now = START_S
        self._server = _Node("server", SigningKey(SERVER_SEED))
        self._entry = _Node("entry", SigningKey(ENTRY_SEED))
        self._dispatch: Dispatch | None = None

    def run(self) -> None:
        """Raises AssertionError when a side refuses a message of the other one."""
        server, entry = self._server, self._entry
        epoch = int(self._now * 1000)
        for one in (server, entry):
            self._handle(one, ModelServed(NAMESPACE, "m", 2048, VITALS, epoch))
        self._handle(server, CacheChanged(NAMESPACE, [(1, PROMPT[:STRIDE])], []))
        for one in (entry, server):
            self.steps.append(Step(one.name, CONTROL, "the lines that open its stream", opening(CONTROL)))
        self._handle(entry, Connected(server.peer, "/ip4/203.0.113.7/tcp/7117"))
        self._handle(server, Connected(entry.peer, "/ip4/198.51.100.9/tcp/7117"))
        self._now += 0.5
        self._handle(server, server.timers["digest"])
        self._handle(entry, RoundTripMeasured(server.peer, 0.02))
        salt = Salt(bytes(TAG_BYTES), SALTED)
        sampling = Sampling(max_tokens=8, temperature=0.7, seed=42, stop=("\n\n",))
        ask = Ask(request_id=REQUEST_ID, model="m", messages=(), tokens=pack_tokens(PROMPT), sampling=sampling)
        self._say("client", ASK, "ask, with the lines that open the stream", opening(ASK), ask)
        self._handle(entry, RequestSubmitted(REQUEST_ID, NAMESPACE, PROMPT, sampling, salt=salt))
        self._answer()
        for node in (server, entry):
            node.overlay.check_invariants()
            assert not node.overlay.refusals

    def _answer(self) -> None:
        dispatch = self._dispatch
        assert dispatch is not None and dispatch.peer == self._server.peer
        assert self._server.overlay.turned_away(dispatch.generate) is None
        usage = Usage(
            prompt_tokens=len(PROMPT), cached_tokens=STRIDE, completion_tokens=2, queue_ms=0, prefill_ms=9, decode_ms=33
        )
        frames = (
            Accepted(cached_tokens=STRIDE, vitals=VITALS),
            Tokens(position=0, tokens=pack_tokens(ANSWER), text=TEXT),
            Final(reason="stop", usage=usage, vitals=VITALS),
        )
        first = opening(GENERATE)
        self._say("entry", GENERATE, "generate, with the lines that open the stream", first, dispatch.generate)
        for frame in frames:
            words = type(frame).__name__.lower()
            what = f"{words}, after the answer to the lines" if first else words
            self._say("server", GENERATE, what, first, frame)
            self._handle(self._entry, FrameReceived(REQUEST_ID, dispatch.attempt, frame))
            first = b""

    def _answer_client(self, frame: Message, before: bytes = b"") -> None:
        what = f"{_words(frame)}, after the answer to the lines" if before else _words(frame)
        self._say("entry", ASK, what, before, frame)

    def _say(self, sender: str, over: str, what: str, before: bytes, message: Message) -> None:
        data = encode(message)
        self.steps.append(Step(sender, over, what, before + LENGTH_PREFIX.pack(len(data)) + data))

    def _handle(self, node: _Node, event: Event) -> None:
        for effect in node.overlay.handle(event, self._now):
            self._perform(node, effect)

    def _perform(self, node: _Node, effect: Effect) -> None:
        other = self._entry if node is self._server else self._server
        hear: Callable[[Event], None] = lambda event: self._handle(other, event)  # noqa: E731
        match effect:
            case Send():
                self._say(node.name, CONTROL, _words(effect.message), b"", effect.message)
                hear(Received(node.peer, effect.message))
            case Publish():
                what = f"{_words(effect.message)}, in a gossipsub RPC"
                self.steps.append(
                    Step(node.name, GOSSIP, what, rpc(TOPIC, FIRST_SEQNO, encode(effect.message), node.key))
                )
                hear(Gossiped(node.peer, node.peer, NAMESPACE, effect.message))
            case SetTimer():
                node.timers[effect.timer.kind] = TimerFired(effect.timer)
            case Dispatch():
                self._dispatch = effect
                self._answer_client(route_frame(effect.decision, NAMESPACE), opening(ASK))
            case Begin():
                self._answer_client(Begun(served_by=effect.served_by, cached_tokens=effect.cached_tokens))
            case Deliver():
                self._answer_client(Text(text=effect.text.decode(), tokens=pack_tokens(effect.tokens)))
            case Finish():
                self.finished.append(effect)
                self._answer_client(answered_frame(effect, TTFT_S))
            case _:
                pass


def opening(protocol: str) -> bytes:
    """The bytes that open a stream, and that accept it: two lines of multistream-select, each after its length."""
    lines = ("/multistream/1.0.0\n", f"{protocol}\n")
    return b"".join(bytes((len(line),)) + line.encode() for line in lines)


def _words(message: Message) -> str:
    return rule_name(type(message))


def whole_exchange() -> list[Step]:
    run = Exchange()
    run.run()
    (finish,) = run.finished
    assert finish.reason == "stop" and finish.usage.completion_tokens == len(ANSWER)
    return run.steps


DOCUMENT = Path(proto.__file__).parent / "interoperability.md"
_BEGIN, _END = "```text\n", "```\n"


def written(document: str) -> str:
    """``proto/interoperability.md`` with the present exchange in place of its old one."""
    before, rest = document.split(_BEGIN)
    return f"{before}{_BEGIN}{as_text(whole_exchange())}\n{_END}{rest.split(_END, 1)[1]}"


def as_text(steps: list[Step]) -> str:
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number}. {step.sender}, {step.over}: {step.what} ({len(step.data)} bytes)")
        digits = step.data.hex()
        lines += [f"   {digits[at : at + 100]}" for at in range(0, len(digits), 100)]
    return "\n".join(lines)

"""Prompts of light clients, and their answers."""

import secrets
from dataclasses import dataclass

import trio

from mycelia.node.network.network import Network, NetworkError
from mycelia.node.requests.entry import ASK
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Answered, Ask, Begun, ChatMessage, Failed, Route, Sampling, Text

_WORDS = "moss river lantern copper violet engine harbour seven window thread autumn marble signal paper forest clock"


@dataclass
class Answer:
    """One answer as its client saw it."""

    ttft_s: float | None = None
    tokens_per_s: float | None = None
    """After the first piece."""
    cached_tokens: int = 0
    failure: str = "no end"


def random_words(count: int) -> str:
    """A text that no node has cached."""
    words = _WORDS.split()
    return " ".join(secrets.choice(words) for _ in range(count))


def ask_for(text: str, sampling: Sampling, model: str = "", tokens: bytes = b"") -> Ask:
    messages = () if tokens else (ChatMessage(role="user", content=text),)
    return Ask(request_id=secrets.token_bytes(16), model=model, messages=messages, sampling=sampling, tokens=tokens)


async def answer_of(network: Network, peer: bytes, ask: Ask) -> Answer:
    """The whole answer of a connected node to ``ask``."""
    began, answer = trio.current_time(), Answer()
    try:
        stream = await network.open(peer, ASK, waits=False)
        try:
            await stream.send(ask)
            while True:
                match await stream.receive():
                    case Begun(cached_tokens=cached_tokens):
                        answer.cached_tokens = cached_tokens
                    case Text(text=text) if text:
                        answer.ttft_s = answer.ttft_s or trio.current_time() - began
                    case Answered(usage=usage):
                        answer.ttft_s = answer.ttft_s or trio.current_time() - began
                        answer.cached_tokens = usage.cached_tokens
                        rest_s = max(trio.current_time() - began - answer.ttft_s, 1e-6)
                        answer.tokens_per_s = (usage.completion_tokens - 1) / rest_s
                        answer.failure = ""
                        return answer
                    case Failed(code=code, message=message):
                        answer.failure = f"{code}: {message}"
                        return answer
                    case Route() | Text():
                        pass
                    case other:
                        answer.failure = f"a {type(other).__name__}"
                        return answer
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()
    except (NetworkError, RemoteError) as exc:
        answer.failure = str(exc)
    return answer

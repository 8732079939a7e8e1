"""Text is compared with its tokens: honest nodes always pass, and liars do not."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.node.engine.stops import TextGate
from mycelia.proto.answers.spelling import Spelling, Vocabulary
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, Logprob, TokenLogprobs
from tests.profiles import examples

_BITS = "aab\n é€😀"
_PIECES = [b"", *(bytes([byte]) for byte in range(256)), *(bit.encode() for bit in ("ab", "\n\n", "é€", "a😀b", "aab"))]
VOCABULARY = Vocabulary.of(_PIECES)
_token = st.one_of(
    st.integers(0, len(_PIECES) - 1), st.sampled_from([98, 99, 257, 258, 259, 260, 261, 0xC3, 0xE3, 0xF1])
)
_stop = st.text(st.sampled_from(_BITS), min_size=1, max_size=4)


def honest(
    tokens: Sequence[int], stops: Sequence[str], num_resumed: int, rng: random.Random
) -> tuple[list[tuple[list[int], bytes]], str]:
    """The frames of an answer whose first ``num_resumed`` tokens came from another node, and the reason of its end."""
    gate, frames, waiting = TextGate([stop.encode() for stop in stops]), list[tuple[list[int], bytes]](), list[int]()
    if stops and num_resumed:
        gate.skip(VOCABULARY.text_of(tokens[:num_resumed]))

    def send(texts: Sequence[bytes]) -> None:
        for text in texts:
            if not frames or rng.random() < 0.5:
                frames.append(([], b""))
            sent, said = frames[-1]
            frames[-1] = ([*sent, waiting.pop(0)], said + text)

    for token in tokens[num_resumed:]:
        if gate.is_stopped:
            break
        waiting.append(token)
        gate.feed(VOCABULARY.piece(token))
        if rng.random() < 0.7:
            send(gate.take())
    send(gate.end())
    return frames, "stop" if gate.is_stopped else rng.choice(["stop", "length"])


@given(st.lists(_token, max_size=24), st.lists(_stop, max_size=3), st.integers(0, 8), st.randoms(use_true_random=False))
@settings(max_examples=examples(500), deadline=None)
def test_what_an_honest_node_sends_is_accepted(
    tokens: list[int], stops: list[str], resumed: int, rng: random.Random
) -> None:
    frames, reason = honest(tokens, stops, min(resumed, len(tokens)), rng)
    spelling = Spelling(VOCABULARY, stops, tokens[:resumed])
    spelling.begin_attempt()
    for sent, text in frames:
        spelling.add(sent, text)
    spelling.end(reason)


@given(st.lists(_token, min_size=1, max_size=16), st.lists(_stop, max_size=2), st.randoms(use_true_random=False))
@settings(max_examples=examples(500), deadline=None)
def test_one_byte_that_is_another_is_noticed(tokens: list[int], stops: list[str], rng: random.Random) -> None:
    frames, _ = honest(tokens, stops, 0, rng)
    spoilt = [place for place, (_, text) in enumerate(frames) if text]
    if not spoilt:
        return
    chosen = rng.choice(spoilt)
    spelling = Spelling(VOCABULARY, stops)
    for sent, text in frames[:chosen]:
        spelling.add(sent, text)
    sent, text = frames[chosen]
    at = rng.randrange(len(text))
    other = text[:at] + bytes([text[at] ^ rng.randint(1, 255)]) + text[at + 1 :]
    with pytest.raises(RemoteError):
        spelling.add(sent, other)


def ids(text: str) -> list[int]:
    return [byte + 1 for byte in text.encode()]


@pytest.mark.parametrize(
    ("stops", "frames", "reason"),
    [
        pytest.param([], [(ids("ab"), b"ab\x1b[2J")], "", id="more than it says"),
        pytest.param([], [(ids("ab"), b"xy")], "", id="something else"),
        pytest.param([], [([len(_PIECES)], b"")], "", id="no such token"),
        pytest.param([], [(ids("ab"), b"a")], "", id="less than it says"),
        pytest.param([], [(ids("é")[:1], b""), (ids("é")[1:], b"\xa9")], "", id="half a character"),
        pytest.param(["b"], [(ids("ab"), b"ab")], "", id="on after a stop string"),
        pytest.param(["ab"], [(ids("a"), b"a"), (ids("b"), b"b")], "", id="on after a stop string in two frames"),
        pytest.param(["xyz"], [(ids("ab"), b"")], "stop", id="no stop string was there"),
        pytest.param(["b"], [(ids("ab"), b"a")], "length", id="a stop string, and no stop"),
        pytest.param(["ab"], [(ids("a" * 20), b"")], "", id="no text for ever"),
        pytest.param(["b"], [(ids("ab"), b"a"), (ids("c"), b"c")], "", id="text after the end"),
    ],
)
def test_what_no_honest_node_sends_is_refused(
    stops: list[str], frames: list[tuple[list[int], bytes]], reason: str
) -> None:
    spelling = Spelling(VOCABULARY, stops)

    def receive() -> None:
        for tokens, text in frames:
            spelling.add(tokens, text)
        spelling.end(reason)

    with pytest.raises(RemoteError):
        receive()


def test_logprobs_say_what_their_tokens_say() -> None:
    def entry(token: int, text: bytes) -> TokenLogprobs:
        good = Logprob(token=99, text=b"b", logprob=-1.0)
        return TokenLogprobs(chosen=good, top=(good, Logprob(token=token, text=text, logprob=-2.0)))

    spelling = Spelling(VOCABULARY, [])
    spelling.add([99], b"b", [entry(98, b"a")])
    for token, text in ((98, b"c"), (98, b""), (len(_PIECES), b"")):
        with pytest.raises(RemoteError):
            spelling.add([99], b"b", [entry(token, text)])
    long = Vocabulary.of([b"a" * (MAX_TEXT_BYTES_PER_TOKEN + 1)])
    cut = Logprob(token=0, text=b"a" * MAX_TEXT_BYTES_PER_TOKEN, logprob=0.0)
    Spelling(long, []).add([0], long.piece(0), [TokenLogprobs(chosen=cut, top=())])


def test_a_vocabulary_survives_the_way_from_the_engine() -> None:
    again = Vocabulary(*VOCABULARY.packed())
    assert len(again) == len(_PIECES) and [again.piece(token) for token in range(len(again))] == _PIECES

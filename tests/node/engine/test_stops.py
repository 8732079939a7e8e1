"""The text gate: sent text, its time, and the agreement of tokens and text."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.engine.stops import TextGate

_LETTERS = st.sampled_from(["a", "b", "ab", "é", "€", "😀"])
_TEXTS = st.lists(_LETTERS, max_size=12).map("".join)
_STOPS = st.lists(st.lists(_LETTERS, min_size=1, max_size=4).map("".join), max_size=3)
_CUTS = st.lists(st.integers(0, 40), max_size=12)


def pieces_of(text: bytes, cuts: Sequence[int]) -> list[bytes]:
    """``text`` as tokens, some of them empty, that end anywhere, also inside characters."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(places)]


def expected(text: bytes, stops: Sequence[bytes]) -> tuple[bytes, bool]:
    """The definition: the text ends before the stop string that is complete first (at the same byte the longest), else
    before an incomplete character."""
    for end in range(len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)], True
    return text.decode("utf-8", "ignore").encode(), False


@given(_TEXTS, _STOPS, _CUTS, st.integers(0, 3))
def test_the_text_is_what_the_definition_says_however_tokens_cut_it(
    text: str, stops: list[str], cuts: list[int], lost: int
) -> None:
    data, ends = text.encode(), [stop.encode() for stop in stops]
    data = data[: max(0, len(data) - lost)]
    wanted, stopped = expected(data, ends)
    gate, sent, fed = TextGate(ends), list[bytes](), list[bytes]()
    for piece in pieces_of(data, cuts):
        gate.feed(piece)
        fed.append(piece)
        if gate.is_stopped:
            break
        sent += gate.take()
        assert sent == fed[: len(sent)], "a token that goes out early takes its whole text along"
        assert wanted.startswith(b"".join(sent)), "what went out would have been taken back"
    assert gate.is_stopped == stopped
    sent += gate.end()
    assert len(sent) == len(fed) and b"".join(sent) == wanted
    assert gate.end() == []


@given(_TEXTS, _STOPS, _CUTS, st.integers(0, 12))
def test_a_second_gate_goes_on_from_the_tokens_that_went_out(
    text: str, stops: list[str], cuts: list[int], handover: int
) -> None:
    """After any token the first node may be lost; the second node knows only the tokens."""
    data, ends = text.encode(), [stop.encode() for stop in stops]
    pieces = pieces_of(data, cuts)
    first, sent = TextGate(ends), list[bytes]()
    for piece in pieces[:handover]:
        first.feed(piece)
        sent += first.take()
        if first.is_stopped:
            sent += first.end()  # (the whole answer arrived, except its last frame)
            break
    second = TextGate(ends)
    second.skip(b"".join(pieces[: len(sent)]))
    for piece in pieces[len(sent) :]:
        if second.is_stopped:
            break
        second.feed(piece)
        sent += second.take()
    assert b"".join(sent + second.end()) == expected(data, ends)[0]


@given(st.lists(st.binary(max_size=3), max_size=8), st.lists(st.binary(max_size=3), max_size=3))
def test_bytes_that_are_no_text_change_nothing(pieces: list[bytes], stops: list[bytes]) -> None:
    gate, sent, fed = TextGate(stops), list[bytes](), 0
    for piece in pieces:
        gate.feed(piece)
        fed += 1
        sent += gate.take()
        if gate.is_stopped:
            break
    sent += gate.end()
    assert len(sent) == fed and b"".join(pieces).startswith(b"".join(sent))
    for stop in filter(None, stops):
        assert stop not in b"".join(sent)


def test_what_may_be_the_beginning_of_a_stop_string_waits() -> None:
    gate = TextGate([b"END"])
    for piece, out in ((b"xE", []), (b"N", []), (b"E", [b"xE", b"N"]), (b"", []), (b"q", [b"E", b"", b"q"])):
        gate.feed(piece)
        assert gate.take() == out
    gate.feed(b"yEN")
    gate.feed(b"Dz")
    assert gate.is_stopped and gate.take() == [] and gate.end() == [b"y", b""]


def test_a_tail_that_went_out_elsewhere_is_not_sent_again() -> None:
    gate = TextGate([b"END"])
    gate.skip(b"xE")  # (by a node that held nothing back)
    gate.feed(b"ND")
    assert gate.is_stopped and gate.end() == [b""]

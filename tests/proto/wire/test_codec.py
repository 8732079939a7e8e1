"""The codec: round trips of every kind, and for any bytes nothing but a Message or RemoteError."""

import math
import tracemalloc
from typing import get_args

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.proto.wire.codec import MAX_CONTAINERS, MAX_ITEMS, MAX_MESSAGE_BYTES, check_sampling, decode, encode
from mycelia.proto.wire.errors import LimitExceeded, LocalError, RemoteError
from mycelia.proto.wire.messages import (
    Accepted,
    Ask,
    ChatMessage,
    Generate,
    Kind,
    Logprob,
    Message,
    Reconcile,
    Sampling,
    Text,
    TokenLogprobs,
    Tokens,
    Version,
)
from mycelia.proto.wire.versions import LEFT_OUT
from tests.profiles import examples
from tests.proto.examples import EXAMPLES, SAMPLING, SPACE, VITALS

FLOATS = ("temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty")


def test_the_examples_cover_every_kind() -> None:
    kinds = {type(message) for message in EXAMPLES}
    assert kinds == set(get_args(Message)) == set(Kind.__subclasses__())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_round_trip(message: Message) -> None:
    data = encode(message)
    assert decode(data) == message
    assert encode(decode(data)) == data


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_every_truncation_and_extension_is_refused(message: Message) -> None:
    data = encode(message)
    for cut in range(len(data)):
        with pytest.raises(RemoteError):
            decode(data[:cut])
    with pytest.raises(RemoteError):
        decode(data + b"\x00")


def wire_form(message: Message) -> dict[int, object]:
    value = cbor2.loads(encode(message))
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        5,
        {0: 999},
        {"0": 9, "1": 5},
        {0: 9},
        {0: 9, 1: -1},
        {0: 9, 1: 2**31},
        {0: 9, 1: True},
        {0: 9, 1: 1.0},
        {0: 9, 1: "5"},
        {0: 9, 1: 5, 2: 0},
        {0: 9, 1: 5, -1: 0},
        {0: True, 1: 5},
        {0: 15, 1: b"bytes for text"},
        {0: 11, 1: "other reason", 2: {}, 3: {}},
    ],
    ids=repr,
)
def test_wrong_shapes_are_refused(value: object) -> None:
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(value, canonical=True))


ABSURD: list[tuple[str, object]] = [
    *[(name, value) for name in FLOATS for value in (math.nan, math.inf, -math.inf, -2.5, 1e9)],
    ("repeat_penalty", 0.0),
    ("top_p", 1.5),
    ("max_tokens", -1),
    ("max_tokens", 131_073),
    ("seed", -1),
    ("seed", 2**32),
    ("top_k", -1),
    ("top_k", 2**31),
    ("repeat_last_n", -1),
    ("repeat_last_n", 131_073),
    ("stop", ["x"] * 17),
    ("stop", ["x" * 1_025]),
    ("stop", ["x" * 10_000]),
    ("stop", [""]),
    ("stop", [b"x"]),
    ("stop", "x"),
    ("logprobs", -1),
    ("logprobs", 21),
    ("grammar", "x" * 65_537),
    ("grammar_kind", "ebnf"),
    ("prompt_logprobs", 21),
    ("logprobs_from", -1),
    ("logit_bias", b"12345678" * 1_025),
    ("grammar_kind", "gbnf "),
]


@pytest.mark.parametrize(("name", "value"), ABSURD, ids=lambda part: str(part)[:20])
def test_absurd_sampling_is_refused(name: str, value: object) -> None:
    wire, keys = wire_form(EXAMPLES[7]), {info.name: info.encode_name for info in msgspec.structs.fields(Sampling)}
    wire[4] = {**cbor2.loads(cbor2.dumps(wire[4])), int(keys[name]): value}
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(wire, canonical=True))
    built = tuple(value) if isinstance(value, list) else value
    with pytest.raises(LocalError, match=f"^{name}: "):
        check_sampling(msgspec.structs.replace(SAMPLING, **{name: built}))


def test_sampling_at_its_bounds_is_accepted() -> None:
    check_sampling(Sampling(max_tokens=1))
    with pytest.raises(LocalError, match="surrogates"):
        check_sampling(Sampling(max_tokens=1, stop=("\ud800",)))
    full = msgspec.structs.replace(SAMPLING, stop=("€" * 256,) * 16, grammar="€" * 65_536, logprobs=20)
    check_sampling(full)
    longest = Generate(
        request_id=bytes(16), namespace=SPACE, prompt=bytes(4 * 131_072), sampling=full, promised_tokens=0
    )
    assert decode(encode(longest)) == longest


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, 0.5, -1e9])
def test_absurd_logprobs_are_refused(logprob: float) -> None:
    value = wire_form(Tokens(position=0, tokens=b"1234", text=b""))
    value[4] = [{1: {1: 5, 2: b"", 3: logprob}, 2: []}]
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(value, canonical=True))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_without_one_of_its_fields_is_refused(message: Message) -> None:
    """This also holds for fields that have a default in Python."""
    value = wire_form(message)
    for key in value.keys() - {int(name) for name in LEFT_OUT.get(type(message), {})}:
        with pytest.raises(RemoteError):
            decode(cbor2.dumps({k: v for k, v in value.items() if k != key}, canonical=True))


def test_an_integer_is_no_float() -> None:
    value = wire_form(EXAMPLES[7])
    value[4] = {**cbor2.loads(cbor2.dumps(value[4])), 2: 0}
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(value, canonical=True))


@pytest.mark.parametrize("tag", [0, 1, 2, 4, 5, 25, 28, 29, 30, 35, 36, 37, 256, 258, 260, 261, 43000, 55799, 6, 77])
def test_tags_are_refused(tag: int) -> None:
    value = wire_form(Accepted(cached_tokens=5, vitals=VITALS))
    value[1] = cbor2.CBORTag(tag, b"x")
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(value))


@pytest.mark.parametrize(
    "data",
    [
        b"\xbf\x00\x09\x01\x05\xff",  # indefinite map
        b"\xa2\x00\x09\x00\x09",  # duplicate key
        b"\xa2\x01\x05\x00\x09",  # keys out of order
        b"\xa2\x00\x18\x09\x01\x05",  # integer longer than need be
        b"\x9f" * 5_000,  # deep nesting
        b"\x81" * 5_000,
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",  # absurd claims of length
        b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff",
        b"\x5b\x00\x00\x7f\xff\xff\xff\xff\xff",
        b"",
    ],
)
def test_other_encodings_are_refused(data: bytes) -> None:
    with pytest.raises(RemoteError):
        decode(data)


def test_a_message_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(RemoteError, match="limit"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))
    turns = tuple(ChatMessage(role="user", content="x" * 524_288) for _ in range(3))
    with pytest.raises(LimitExceeded):
        encode(Ask(request_id=bytes(16), model="", messages=turns, sampling=SAMPLING))


def assert_total(data: bytes) -> None:
    try:
        message = decode(data)
    except RemoteError:
        return
    assert encode(message) == data


@pytest.mark.properties
@given(st.binary(max_size=200))
@settings(max_examples=examples(200), deadline=None)
def test_any_bytes(data: bytes) -> None:
    assert_total(data)


@pytest.mark.properties
@given(st.sampled_from(EXAMPLES), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
@settings(max_examples=examples(500), deadline=None)
def test_any_mutation_of_a_message(message: Message, edits: list[tuple[int, int]]) -> None:
    data = bytearray(encode(message))
    for at, value in edits:
        data[at % len(data)] = value
    assert_total(bytes(data))


_cbor_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.properties
@given(st.dictionaries(st.integers(0, 9), _cbor_values, max_size=8))
@settings(max_examples=examples(200), deadline=None)
def test_any_well_formed_map(value: dict[int, object]) -> None:
    assert_total(cbor2.dumps(value, canonical=True))


def peak_bytes(data: bytes) -> int:
    """The most memory held at once while ``data`` is decoded."""
    assert_total(data)  # (so that one-time allocations are already made)
    tracemalloc.start()
    try:
        assert_total(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def array_of(item: bytes, count: int) -> bytes:
    return b"\x9a" + count.to_bytes(4, "big") + item * count


BOMBS = {
    "claimed array": b"\x9a\x00\xff\xff\xff" + b"\x00" * 100,
    "claimed map": b"\xba\x00\xff\xff\xff" + b"\x00" * 100,
    "claimed bytes": b"\x5a\x3f\xff\xff\xff" + b"\x00" * 100,
    "claimed text of 16 MB": b"\xa2\x00\x0f\x01\x7a\x01\x00\x00\x00" + b"x" * 5_000,
    "empty maps": array_of(b"\xa0", 1_000_000),
    "empty arrays": array_of(b"\x80", 1_000_000),
    "maps": array_of(b"\xa1\x01\x01", 300_000),
    "integers": array_of(b"\x01", 1_000_000),
    "texts": array_of(b"\x62\xc4\x80", 300_000),
    "large keys": b"\xb9\xff\xff"
    + b"".join(b"\x1a" + (1 << 20 | i).to_bytes(4, "big") + b"\x01" for i in range(65_535)),
    "as many maps as fit": array_of(b"\xa6" + b"".join(bytes((i,)) + b"\x62\xc4\x80" for i in range(6)), 720),
    "short, and maps only": b"\xa1\x00" + array_of(b"\xa1\x01\xa0", 1_360),
    "logprobs": array_of(b"\xa3\x01\x1a\x7f\xff\xff\xff\x02\x44abcd\x03\xfb" + b"\xbf" * 8, 1_020),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_refused_costs_little_memory(name: str) -> None:
    with pytest.raises(RemoteError):
        decode(BOMBS[name])
    assert peak_bytes(BOMBS[name]) <= 1 << 20


def logprobs(count: int) -> tuple[TokenLogprobs, ...]:
    one = [Logprob(token=2**32 - 1 - i, text=b"text%d" % i, logprob=-0.1 - i) for i in range(20 * count)]
    return tuple(TokenLogprobs(chosen=one[i], top=tuple(one[i * 20 : i * 20 + 20])) for i in range(count))


LARGEST: list[Message] = [
    Reconcile(
        versions=tuple(
            Version(owner=i.to_bytes(2, "big") * 32, namespace=bytes(16), epoch=2**62 + i, seq=2**61 + i)
            for i in range(1_024)
        )
    ),
    Ask(
        request_id=bytes(16),
        model="m" * 128,
        messages=tuple(ChatMessage(role="r" * 32, content=str(i)) for i in range(1_024)),
        sampling=msgspec.structs.replace(SAMPLING, stop=tuple(str(i) for i in range(16))),
    ),
    Text(text="", logprobs=logprobs(32)),
    Tokens(position=0, tokens=bytes(4 * 32), text=b"", logprobs=logprobs(32)),
]


@pytest.mark.parametrize("message", LARGEST, ids=lambda m: type(m).__name__)
def test_the_largest_of_every_structure_is_accepted_and_costs_a_megabyte_at_most(message: Message) -> None:
    data = encode(message)
    assert decode(data) == message
    assert peak_bytes(data) <= 1 << 20


def test_the_bounds_on_structure_leave_little_room() -> None:
    """They follow from the kinds' own bounds: no valid message is refused, and hardly any other one passes."""

    def count(value: object) -> tuple[int, int]:
        inner = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
        counts = [count(item) for item in inner]
        keys = len(inner) if isinstance(value, dict) else 0
        is_container = isinstance(value, dict | list)
        return 1 + keys + sum(items for items, _ in counts), is_container + sum(boxes for _, boxes in counts)

    counts = [count(wire_form(message)) for message in LARGEST]
    assert 0.9 * MAX_ITEMS < max(items for items, _ in counts) <= MAX_ITEMS
    assert 0.9 * MAX_CONTAINERS < max(boxes for _, boxes in counts) <= MAX_CONTAINERS


def test_the_longest_strings_cost_a_small_multiple_of_their_length() -> None:
    turns = tuple(ChatMessage(role="user", content="a" * 500_000 + "😀") for _ in range(2))
    data = encode(Ask(request_id=bytes(16), model="", messages=turns, sampling=SAMPLING))
    assert peak_bytes(data) <= (1 << 20) + 7 * len(data)


@pytest.mark.parametrize(
    "value",
    [
        {0: 15, 1: "x" * 5_000, 24: []},
        {0: 15, 1: "x" * 5_000, -1: []},
        {0: 15, 1: "x" * 5_000, "2": []},
        {0: 15, 1: "x" * 5_000, 2: [[[[[[[[[[]]]]]]]]]]},
    ],
)
def test_a_long_message_is_held_to_the_same_rules(value: object) -> None:
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(value, canonical=True))


def test_the_end_of_a_long_message_is_its_end() -> None:
    data = encode(Text(text="x" * 5_000))
    for other in (data[:-1], data[:-2], data + b"\x00", data.replace(b"\x02\x80", b"\x02\x9f\xff")):
        with pytest.raises(RemoteError):
            decode(other)


def test_messages_are_immutable() -> None:
    with pytest.raises(AttributeError):
        EXAMPLES[0].agent = "other"  # type: ignore[misc, union-attr]
    assert msgspec.structs.replace(EXAMPLES[8], cached_tokens=6) == Accepted(cached_tokens=6, vitals=VITALS)

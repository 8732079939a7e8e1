"""The codec: round trips of every kind, and nothing but Message or RemoteError for any bytes."""

import math
import tracemalloc
from typing import get_args

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proto.codec import MAX_MESSAGE_BYTES, check_sampling, decode, encode
from proto.errors import LimitExceeded, LocalError, RemoteError
from proto.messages import (
    Accepted,
    Announce,
    Answered,
    Ask,
    CandidateTerms,
    ChatMessage,
    Delta,
    Failed,
    Final,
    Generate,
    Head,
    Hello,
    Kind,
    Logprob,
    Message,
    Reconcile,
    Repair,
    RepairRequest,
    Route,
    Sampling,
    Served,
    Text,
    TokenLogprobs,
    Tokens,
    Usage,
    Version,
    Vitals,
    VitalsUpdate,
)

SPACE, PEER = b"n" * 16, b"\x00\x24" + b"p" * 36
VITALS = Vitals(queued_tokens=1, active_requests=2, waiting_requests=3, slots=4, prefill_rate=5, decode_rate=6)
USAGE = Usage(prompt_tokens=9, cached_tokens=8, completion_tokens=7, queue_ms=6, prefill_ms=5, decode_ms=4)
SAMPLING = Sampling(
    max_tokens=3,
    temperature=0.7,
    seed=2,
    top_k=0,
    top_p=1.0,
    min_p=0.1,
    repeat_penalty=1.1,
    frequency_penalty=-0.5,
    presence_penalty=2.0,
    repeat_last_n=0,
    stop=("\n\n", "é"),
    logprobs=2,
    grammar='root ::= "é"',
    grammar_kind="gbnf",
)
LOGPROBS = TokenLogprobs(
    chosen=Logprob(token=5, text=b"\xe2", logprob=-0.5), top=(Logprob(token=2**32 - 1, text=b"", logprob=-1e6),)
)
HEAD = Head(owner=PEER, namespace=SPACE, epoch=1, seq=2, count=3, root=b"r" * 16, issued_at=2**40, signature=b"s" * 64)
FLOATS = ("temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty")
EXAMPLES: list[Message] = [
    Hello(
        wire_version=1,
        agent="a",
        served=(Served(namespace=SPACE, model="m", context_tokens=2048, vitals=VITALS),),
    ),
    VitalsUpdate(namespace=SPACE, vitals=VITALS),
    RepairRequest(owner=PEER, namespace=SPACE, epoch=1, seq=2, count=3, root=bytes(16)),
    Repair(head=HEAD, mode=2, from_seq=0, upserts=b"e" * 9, removes=b""),
    Reconcile(versions=(Version(owner=PEER, namespace=SPACE, epoch=1, seq=2),)),
    Delta(head=HEAD, from_seq=1, upserts=b"e" * 9, removes=b"r" * 8),
    Announce(head=HEAD),
    Generate(request_id=b"i" * 16, namespace=SPACE, prompt=b"1234", sampling=SAMPLING, promised_tokens=64),
    Accepted(cached_tokens=5),
    Tokens(position=1, tokens=b"1234", text=b"\xe2\x82", logprobs=(LOGPROBS,)),
    Final(reason="stop", usage=USAGE, vitals=VITALS),
    Failed(code="too_long", message="m", retryable=False),
    Ask(request_id=b"i" * 16, model="", messages=(ChatMessage(role="user", content="é"),), sampling=SAMPLING),
    Route(
        chosen=PEER,
        reason="r",
        prompt_tokens=3,
        candidates=(CandidateTerms(peer=PEER, matched_tokens=1, queued_requests=2, cost=3.5),),
    ),
    Text(text="héllo", logprobs=(LOGPROBS, LOGPROBS)),
    Answered(served_by=PEER, reason="length", usage=USAGE, ttft_ms=12, resumed=0),
]


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
    ("max_tokens", 0),
    ("max_tokens", 131_073),
    ("seed", -1),
    ("seed", 2**32),
    ("top_k", -1),
    ("top_k", 2**31),
    ("repeat_last_n", -1),
    ("repeat_last_n", 131_073),
    ("stop", ["x"] * 17),
    ("stop", ["x" * 257]),
    ("stop", ["x" * 10_000]),
    ("stop", [""]),
    ("stop", [b"x"]),
    ("stop", "x"),
    ("logprobs", -1),
    ("logprobs", 21),
    ("grammar", "x" * 65_537),
    ("grammar_kind", "regex"),
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
    """Also of those that have a default in Python."""
    value = wire_form(message)
    for key in value:
        with pytest.raises(RemoteError):
            decode(cbor2.dumps({k: v for k, v in value.items() if k != key}, canonical=True))


def test_an_integer_is_no_float() -> None:
    value = wire_form(EXAMPLES[7])
    value[4] = {**cbor2.loads(cbor2.dumps(value[4])), 2: 0}
    with pytest.raises(RemoteError):
        decode(cbor2.dumps(value, canonical=True))


@pytest.mark.parametrize("tag", [0, 1, 2, 4, 5, 25, 28, 29, 30, 35, 36, 37, 256, 258, 260, 261, 43000, 55799, 6, 77])
def test_tags_are_refused(tag: int) -> None:
    value = wire_form(Accepted(cached_tokens=5))
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


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes(data: bytes) -> None:
    assert_total(data)


@given(st.sampled_from(EXAMPLES), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
@settings(max_examples=2_000, deadline=None)
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


@given(st.dictionaries(st.integers(0, 9), _cbor_values, max_size=8))
@settings(max_examples=500, deadline=None)
def test_any_well_formed_map(value: dict[int, object]) -> None:
    assert_total(cbor2.dumps(value, canonical=True))


def test_decoding_garbage_takes_memory_in_proportion_to_its_length() -> None:
    bombs = [
        b"\x9a\x00\xff\xff\xff" + b"\x00" * 100,
        b"\xba\x00\xff\xff\xff" + b"\x00" * 100,
        b"\x5a\x3f\xff\xff\xff" + b"\x00" * 100,
    ]
    for bomb in bombs:
        tracemalloc.start()
        assert_total(bomb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_messages_are_immutable() -> None:
    with pytest.raises(AttributeError):
        EXAMPLES[0].agent = "other"  # type: ignore[union-attr]
    assert msgspec.structs.replace(EXAMPLES[8], cached_tokens=6) == Accepted(cached_tokens=6)

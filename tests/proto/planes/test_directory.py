"""The models of a swarm: reports are counted, passed on, and forgotten everywhere when they are no longer true."""

import random

import pytest

from mycelia.proto.digests.digest import pack_hashes
from mycelia.proto.planes.directory import (
    HEARSAY_S,
    MAX_INFORMANTS,
    Directory,
    KnownModel,
    ModelKey,
    SeenModel,
    mark_of,
    shared_room,
)
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_MODEL_NODES, MAX_MODELS, ModelNodes, Models

LARGE, SMALL = (b"L" * 16, "large"), (b"S" * 16, "small")
NOTHING: dict[ModelKey, SeenModel] = {}


def telling(key: ModelKey, *nodes: int, age_s: int = 0, context_tokens: int = 100) -> ModelNodes:
    return ModelNodes(
        namespace=key[0], model=key[1], context_tokens=context_tokens, age_s=age_s, nodes=pack_hashes(nodes)
    )


def seen(*nodes: int) -> SeenModel:
    return SeenModel(4_096, frozenset(nodes))


def test_nodes_are_counted_once_whoever_tells_of_them() -> None:
    directory = Directory()
    directory.hear(b"one", [telling(LARGE, 1, 2), telling(SMALL, 9)], 0.0)
    directory.hear(b"two", [telling(LARGE, 2, 3, age_s=40, context_tokens=900)], 0.0)
    assert directory.known({SMALL: seen(8, 9)}, 1.0) == [
        KnownModel(*SMALL, context_tokens=4_096, num_seen=2, num_nodes=2),
        KnownModel(*LARGE, context_tokens=900, num_seen=0, num_nodes=3),
    ]
    assert directory.namespaces("large", 1.0) == [LARGE[0]] and directory.namespaces("none", 1.0) == []
    assert directory.informants("large", since=0.0) == [b"one"], "the other has it from somebody else"
    assert directory.informants("large", since=0.1) == []


def test_a_new_answer_takes_the_place_of_the_last_one() -> None:
    directory = Directory()
    directory.hear(b"one", [telling(LARGE, 1, 2)], 0.0)
    directory.hear(b"one", [telling(LARGE, 2)], 10.0)
    assert [known.num_nodes for known in directory.known(NOTHING, 10.0)] == [1]
    directory.hear(b"one", [telling(LARGE)], 20.0)
    assert directory.known(NOTHING, 20.0) == [], "a model that nobody serves is none"


def test_what_is_seen_is_told_and_of_the_rest_the_youngest_telling() -> None:
    directory = Directory()
    directory.hear(b"old", [telling(LARGE, 1, 2, age_s=90), telling(SMALL, 5)], 0.0)
    directory.hear(b"new", [telling(LARGE, 1, age_s=30)], 0.0)
    assert directory.told({SMALL: seen(6)}, 10.0) == (
        telling(SMALL, 6, context_tokens=4_096),
        telling(LARGE, 1, age_s=40),
    )


def test_what_one_hears_is_never_told_as_seen() -> None:
    directory = Directory()
    directory.hear(b"one", [telling(LARGE, 1)], 0.0)
    assert [one.age_s for one in directory.told(NOTHING, 0.2)] == [1]


def test_nodes_that_tell_each_other_forget_what_is_gone() -> None:
    """They forget it however often the report goes round among them."""
    rng = random.Random(1)
    nodes = [Directory() for _ in range(12)]
    gone_at = 200.0
    for second in range(0, 1_000, 10):
        for number, node in enumerate(nodes):
            other = rng.randrange(12)
            views = {LARGE: seen(1)} if other == 0 and second < gone_at else NOTHING
            if other != number:
                node.hear(bytes([other]), nodes[other].told(views, float(second)), float(second))
        known = [bool(node.known(NOTHING, float(second))) for node in nodes]
        if second == 190:
            assert all(known), "all had heard of it"
        if second > gone_at + HEARSAY_S:
            assert not any(known)


def test_liars_crowd_out_nobody_elses_word_and_take_bounded_room() -> None:
    directory = Directory()
    everything = tuple(range(MAX_MODEL_NODES))
    made_up = [telling((b"%16d" % number, f"made up {number}"), *everything) for number in range(MAX_MODELS)]
    directory.hear(b"honest", [telling(LARGE, 1), telling(SMALL, 2)], 0.0)
    directory.hear(b"honest too", [telling(LARGE, 1, age_s=200)], 0.0)
    for number in range(MAX_INFORMANTS - 2):
        directory.hear(b"liar %d" % number, made_up[:4], 0.0)
    directory.hear(b"liar 0", made_up, 0.0)
    assert {"large", "small"} <= {known.model for known in directory.known(NOTHING, 0.0)}
    told = directory.told(NOTHING, 0.0)
    assert len(told) == MAX_MODELS and "large" in {one.model for one in told}, "two told of it"
    assert decode(encode(Models(models=told))) == Models(models=told)
    directory.hear(b"one more", [], 0.0)
    assert directory.informants("small", 0.0) == [], "of the longest silent the answer is forgotten"


def test_models_that_liars_claim_to_serve_leave_room_for_all_others() -> None:
    own, honest = (b"O" * 16, "own"), (b"H" * 16, "zebra")
    claimed = {(b"%16d" % number, f"claimed {number}"): seen(number) for number in range(2 * MAX_MODELS)}
    directory = Directory()
    views = {own: seen(1), **claimed, honest: seen(5, 6, 7)}
    told = [(one.namespace, one.model) for one in directory.told(views, 0.0)]
    assert len(told) == MAX_MODELS and told[:2] == [own, honest]
    directory.hear(b"one", [telling(LARGE, 1), telling(SMALL, 2)], 0.0)
    told = [(one.namespace, one.model) for one in directory.told(views, 0.0)]
    assert len(told) == MAX_MODELS and told[:2] == [own, honest] and set(told[-2:]) == {LARGE, SMALL}


def test_hearsay_takes_at_most_half_when_more_is_seen() -> None:
    assert shared_room([1, 2, 3], [7, 8, 9], 4) == [1, 2, 7, 8]
    assert shared_room([1, 2, 3], [7], 3) == [1, 2, 7]
    assert shared_room([1], [7, 8, 9], 3) == [1, 7, 8]
    assert shared_room([1, 2], [7], 5) == [1, 2, 7]


def test_more_nodes_than_a_message_holds() -> None:
    (told,) = Directory().told({LARGE: seen(*range(1_000))}, 0.0)
    assert len(told.nodes) == 8 * MAX_MODEL_NODES
    assert encode(Models(models=(told,)))


@pytest.mark.parametrize("packed", [b"1234567", pack_hashes([1]) * 2, pack_hashes([2]) + pack_hashes([1])])
def test_nodes_that_are_not_packed_as_they_must_be(packed: bytes) -> None:
    directory = Directory()
    directory.hear(b"one", [telling(LARGE, 1)], 0.0)
    wrong = ModelNodes(namespace=SMALL[0], model="small", context_tokens=1, age_s=0, nodes=packed)
    with pytest.raises(RemoteError):
        directory.hear(b"one", [wrong], 1.0)
    assert [known.model for known in directory.known(NOTHING, 1.0)] == ["large"], "nothing has changed"


def test_the_mark_of_a_short_id() -> None:
    assert mark_of(b"\x01\x02") == 0x102 and mark_of(bytes(30) + b"\xff" * 8) == 2**64 - 1

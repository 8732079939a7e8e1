"""The protocol's documents are part of the specification: their numbers are those of the code.

Rows about the network are tested in ``tests/node/network/libp2p/test_documented_limits.py``.
"""

import re
from dataclasses import fields

import numpy as np
import pytest

from mycelia.proto import WIRE_VERSION, overlay
from mycelia.proto.config import (
    CellConfig,
    DigestConfig,
    LadderConfig,
    OverlayConfig,
    RequestConfig,
    RoutingConfig,
    TrustConfig,
    VitalsConfig,
)
from mycelia.proto.kademlia import peer_buckets, provider_records
from mycelia.proto.planes import membership
from mycelia.proto.swarm import invitations
from mycelia.proto.wire import codec, messages
from mycelia.proto.wire.messages import (
    Demand,
    DemandQuery,
    EmbedTexts,
    Kind,
    PromptLogprobs,
    Reconcile,
    RepairRequest,
    TextVectors,
    Uses,
    UsesQuery,
    Version,
    VitalsUpdate,
)
from mycelia.proto.wire.refusals import Refusal
from mycelia.proto.wire.versions import ADDED_IN_2, LEFT_OUT
from tests.proto.documents import (
    FOLDER,
    INTEROPERABILITY,
    POLICY,
    largest,
    numbers_in,
    rows,
    rule_name,
    settings,
    values,
)

KINDS_OF_2 = (PromptLogprobs, EmbedTexts, TextVectors, UsesQuery, Uses, DemandQuery, Demand)
_CONFIGS = (
    DigestConfig,
    CellConfig,
    LadderConfig,
    RequestConfig,
    RoutingConfig,
    VitalsConfig,
    TrustConfig,
    OverlayConfig,
)

VALUES: dict[str, tuple[float, ...]] = {
    "Message on a stream, bytes": (codec.MAX_MESSAGE_BYTES,),
    "Message on gossip, bytes": (codec.MAX_GOSSIP_BYTES,),
    "Nesting, counting the message": (codec.MAX_DEPTH,),
    "Prompt tokens": (messages.MAX_TOKENS_PER_REQUEST,),
    "Tokens in a frame; with log-probabilities": (messages.MAX_TOKENS_PER_FRAME, messages.MAX_LOGPROBS_PER_FRAME),
    "Text of a token, bytes": (messages.MAX_TEXT_BYTES_PER_TOKEN,),
    "Versions in a `reconcile`": (messages.MAX_VECTOR,),
    "`hello` repeated after, s; times": (OverlayConfig().hello_timeout_s, OverlayConfig().hello_repeats),
    "`hello` looked at: a second, at once": (overlay.HELLOS_PER_S, overlay.HELLOS_BURST),
    "Questions to one peer: a second, at once": (membership.QUESTIONS_PER_S, membership.QUESTIONS_BURST),
    "Invitation: characters": (invitations.MAX_INVITATION_CHARS,),
    "Invitation: wrong clock that a joining peer allows for, s": (invitations.CLOCK_TOLERANCE_S,),
    "Kademlia: records last, s": (provider_records.EXPIRY_S,),
    "Kademlia: providers of a key; of one subnet; behind one relay; of one private address": (
        provider_records.MAX_PROVIDERS,
        provider_records.PER_SUBNET,
        provider_records.PER_RELAY,
        provider_records.PER_LOCAL,
    ),
}
"""The rows that document constants of ``proto``."""


def test_the_two_documents_and_their_parts_are_there() -> None:
    index = (FOLDER / "README.md").read_text("utf-8")
    for name in re.findall(r"\]\(([^)]+)\)", index + INTEROPERABILITY + POLICY):
        assert (FOLDER / name).is_file(), name
    sections = [int(number) for number in re.findall(r"^## (\d+)\. ", INTEROPERABILITY, re.MULTILINE)]
    assert sections == list(range(1, len(sections) + 1))
    parts = set(re.findall(r"^###? (\d+(?:\.\d+)?)", INTEROPERABILITY, re.MULTILINE))
    told = re.findall(r"(?:sections? |\()(\d+(?:\.\d+)?)(?=[,.) ])", INTEROPERABILITY)
    assert set(filter(lambda number: "." in number, told)) <= parts


@pytest.mark.parametrize("config", _CONFIGS)
def test_every_setting_is_told_with_its_default(config: type) -> None:
    told = settings()
    for field in fields(config):
        if isinstance(field.default, int | float | tuple):
            default = field.default if isinstance(field.default, tuple) else (field.default,)
            assert told[field.name] == [float(value) for value in default], field.name


def test_no_setting_is_told_that_there_is_not() -> None:
    assert set(settings()) <= {field.name for config in _CONFIGS for field in fields(config)}


def test_every_kind_is_told_with_its_number_its_size_and_its_version() -> None:
    told = {int(row[0]): row for row in rows(INTEROPERABILITY, "| Kind | Name |")}
    kinds = {int(str(kind.__struct_config__.tag)): kind for kind in Kind.__subclasses__()}
    assert told.keys() == kinds.keys()
    for tag, kind in kinds.items():
        _, name, _, size, version, _ = told[tag]
        assert name == f"`{rule_name(kind)}`" and numbers_in(size) == [largest(kind)], (name, largest(kind))
        assert version == ("2" if kind in KINDS_OF_2 else "1 (2)" if kind in ADDED_IN_2 else "1")


def test_the_largest_message_is_as_long_as_it_is_told() -> None:
    most = 2**63 - 1
    version = Version(owner=bytes(64), namespace=bytes(16), epoch=most, seq=most)
    assert len(codec.encode(Reconcile(versions=(version,) * messages.MAX_VECTOR))) == largest(Reconcile)


def test_every_field_that_a_version_added_is_told() -> None:
    told = {row[1] for row in rows(INTEROPERABILITY, "| Version | Added |") if row[0] == str(WIRE_VERSION)}
    assert told == {
        f"`{rule_name(kind)}`: "
        + ", ".join(
            f"{key} {name.replace('_', '-')}" for key, name in zip(LEFT_OUT[kind], ADDED_IN_2[kind], strict=True)
        )
        for kind in ADDED_IN_2
    }


def test_every_refusal_is_told() -> None:
    told = {name for row in rows(INTEROPERABILITY, "| Reason | What |") for name in re.findall(r"`([a-z_]+)`", row[0])}
    assert told == set(Refusal)


@pytest.mark.parametrize("what", VALUES)
def test_a_constant_is_told(what: str) -> None:
    assert values()[what][0] == list(VALUES[what])


def test_the_traffic_that_is_told_follows_from_sizes_and_rates() -> None:
    digests = DigestConfig()
    told = {row[0]: numbers_in(row[1])[0] for row in rows(INTEROPERABILITY, "| Traffic | Bytes |")}
    assert told["`vitals-update`, a namespace"] == largest(VitalsUpdate) / VitalsConfig().vitals_interval_s
    assert told["`subscribe`, `repair-request`"] == membership.QUESTIONS_PER_S * largest(RepairRequest)
    shortest_s = digests.reconcile_s * (1 - digests.jitter)
    assert told["`reconcile`"] == pytest.approx(largest(Reconcile) / shortest_s, abs=1)
    assert {digests.send_bytes_per_s, digests.receive_bytes_per_s} <= set(told.values())


def test_kademlias_k_is_that_of_its_table() -> None:
    assert values()["Kademlia: k, alpha, beta"][0][0] == peer_buckets.BUCKET_SIZE


def test_what_a_decoder_may_give_up_at_is_within_what_the_codec_does() -> None:
    containers, items = values()["Maps and arrays in a message; CBOR items"][0]
    assert containers <= codec.MAX_CONTAINERS and items <= codec.MAX_ITEMS


def test_the_random_numbers_are_those_of_the_generator_that_is_named() -> None:
    seed, told = re.findall(r"First three values of u for `seed` ([\d,]+): (.*)\.$", INTEROPERABILITY, re.MULTILINE)[0]
    generator = np.random.RandomState()
    generator.seed(int(seed.replace(",", "")))
    outputs = [int(number) for number in generator.randint(0, 2**32, size=6, dtype=np.uint64)]
    drawn = [(outputs[at] + outputs[at + 1] * 2**32) / 2**64 for at in range(0, 6, 2)]
    assert [float(number) for number in told.split(", ")] == drawn


def test_the_error_codes_are_those_that_the_schema_knows_of() -> None:
    told = {row[0].strip("`") for row in rows(INTEROPERABILITY, "| Code | Sent by |")}
    assert told == set(messages.ERROR_CODES)

"""The test vectors and this implementation agree, read as another implementation would read them."""

import base64
import hashlib
import json
import re
from collections import Counter
from typing import Any

import cbor2
import pycddl
import pytest
from blake3 import blake3
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import pack_entries, root_of, signed_payload
from mycelia.proto.digests.estimates import Estimates
from mycelia.proto.wire.blocks import block_hashes, namespace_key
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Announce, Delta, Head, Kind, Message, Repair, RepairRequest
from mycelia.proto.wire.refusals import Refusal
from tests.proto.wire.make_vectors import FOLDER, generate, text_of
from tests.proto.wire.test_cddl import schema_of

READER = b"reader"


Vector = dict[str, Any]


def load(name: str) -> Any:  # a list of vectors, or a table of such lists
    return json.loads((FOLDER / name).read_text("utf-8"))


MESSAGES = load("messages.json")
HASHES, DIGESTS, INVALID = load("hashes.json"), load("digests.json"), load("invalid.json")
SWARMS = load("swarms.json")


def from_plain(value: object) -> object:
    """Turns the vectors' JSON into what a CBOR library encodes."""
    match value:
        case str() if found := re.fullmatch(r"h'([0-9a-f]*)'", value):
            return bytes.fromhex(found[1])
        case dict():
            return {int(key): from_plain(item) for key, item in value.items()}
        case list():
            return [from_plain(item) for item in value]
        case _:
            return value


def verify(owner: bytes, payload: bytes, signature: bytes) -> bool:
    """Verifies with the key at the end of an Ed25519 peer id."""
    try:
        VerifyKey(owner[-32:]).verify(payload, signature)
    except BadSignatureError:
        return False
    return True


def test_the_files_are_what_the_script_writes_and_small() -> None:
    written = {name: text_of(contents) for name, contents in generate().items()}
    assert {path.name for path in FOLDER.glob("*.json")} == set(written)
    for name, text in written.items():
        assert (FOLDER / name).read_text("utf-8") == text, (
            "python -m tests.proto.wire.make_vectors, if the wire is meant to change"
        )
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 60_000


def test_every_kind_has_a_message() -> None:
    assert {vector["kind"] for vector in MESSAGES} == {kind.__name__ for kind in Kind.__subclasses__()}


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda vector: vector["kind"])
def test_a_message_is_its_value_and_its_bytes(vector: Vector) -> None:
    data = bytes.fromhex(vector["hex"])
    value = from_plain(vector["value"])
    assert cbor2.dumps(value, canonical=True) == data
    assert cbor2.loads(data) == value
    message = decode(data)
    assert type(message).__name__ == vector["kind"] and encode(message) == data
    schema_of(message).validate_cbor(data)


@pytest.mark.parametrize("vector", INVALID["messages"], ids=lambda vector: vector["reason"])
def test_what_is_no_message_is_refused(vector: Vector) -> None:
    with pytest.raises(RemoteError):
        decode(bytes.fromhex(vector["hex"]))


SCHEMA_ALLOWS = {
    # The deterministic encoding is a separate rule, which no schema checks.
    "a map of indefinite length",
    "a key twice",
    "keys out of order",
    "an integer longer than need be",
    "a length longer than need be",
    "a float longer than need be",
    "a byte after the end",
    "a bignum",
    # pycddl accepts bytes for a text with a .size, and looks for a .regexp anywhere in the text (RFC 8610 means the
    # whole text). Choices of literal texts, which would need no .regexp, make it panic.
    "bytes for text",
    "a reason that does not exist",
    # Bounds of floats are in the comments: pycddl is unreliable on ranges of floats.
    "not a number",
    "a probability over 1",
}


@pytest.mark.parametrize("vector", INVALID["messages"], ids=lambda vector: vector["reason"])
def test_the_schema_refuses_it_too_where_a_schema_can(vector: Vector) -> None:
    data = bytes.fromhex(vector["hex"])
    accepting = []
    for valid in MESSAGES:
        try:
            schema_of(decode(bytes.fromhex(valid["hex"]))).validate_cbor(data)
        except (pycddl.ValidationError, ValueError):
            continue
        accepting.append(valid["kind"])
    assert not accepting or vector["reason"] in SCHEMA_ALLOWS, accepting


def test_namespaces_and_block_hashes() -> None:
    for case in HASHES["namespaces"]:
        key = namespace_key(bytes.fromhex(case["model_digest"]), case["kv_settings"], bytes.fromhex(case["salt"]))
        assert key.hex() == case["namespace"]
    for case in HASHES["keys"]:
        name = f"/mycelia/model/{case['namespace']}{case['cell']}".encode()
        assert bytes.fromhex("1220") + hashlib.sha256(name).digest() == bytes.fromhex(case["key"])
    for case in HASHES["blocks"]:
        got = block_hashes(bytes.fromhex(case["namespace"]), case["tokens"])
        assert [f"{block:016x}" for block in got] == case["hashes"]
        assert len(got) == len(case["tokens"]) // 64


def test_roots() -> None:
    for case in DIGESTS["roots"]:
        entries = {int(block, 16): kind for block, kind in case["entries"]}
        assert pack_entries(entries).hex() == case["packed"] and root_of(entries).hex() == case["root"]
        hasher = blake3(bytes.fromhex(case["packed"]), derive_key_context="mycelia 2026 digest root v1")
        assert hasher.digest(length=16).hex() == case["root"]


def test_heads_and_their_signatures() -> None:
    for case in DIGESTS["heads"]:
        message = decode(cbor2.dumps({0: 7, 1: from_plain(case["head"])}, canonical=True))
        assert isinstance(message, Announce)
        payload, key = bytes.fromhex(case["payload"]), SigningKey(bytes.fromhex(case["seed"]))
        assert signed_payload(message.head) == payload
        assert key.sign(payload).signature == message.head.signature == bytes.fromhex(case["signature"])
        assert message.head.owner == bytes.fromhex(case["owner"])
        assert verify(message.head.owner, payload, message.head.signature)


def reader(namespace: str) -> tuple[Estimates, Counter[Refusal]]:
    refusals: Counter[Refusal] = Counter()
    estimates = Estimates(READER, verify, DigestConfig(), refusals)
    estimates.follow(bytes.fromhex(namespace))
    return estimates, refusals


def take(estimates: Estimates, message: Message, now: float) -> str:
    if isinstance(message, Repair):
        return estimates.on_repair(message, now).name.lower()
    assert isinstance(message, Delta | Announce)
    return estimates.on_gossip(message, now).name.lower()


def test_a_reader_follows_the_exchange() -> None:
    exchange = DIGESTS["exchange"]
    owner, namespace = bytes.fromhex(exchange["owner"]), bytes.fromhex(exchange["namespace"])
    estimates, _ = reader(exchange["namespace"])
    modes = []
    for step in exchange["steps"]:
        message = decode(bytes.fromhex(step["hex"]))
        before = dict(estimates.entries(owner, namespace)), estimates.version(owner, namespace)
        assert take(estimates, message, step["now_ms"] / 1000) == step["outcome"], step["what"]
        if step["outcome"] == "applied":
            assert [f"{key:016x}" for key in sorted(estimates.entries(owner, namespace))] == step["entries"]
            assert list(estimates.version(owner, namespace)) == step["version"]
        else:
            assert (dict(estimates.entries(owner, namespace)), estimates.version(owner, namespace)) == before
        if isinstance(message, Repair):
            modes.append(message.mode)
            assert isinstance(decode(bytes.fromhex(step["answers"])), RepairRequest)
    assert sorted(modes) == [0, 1, 2]


@pytest.mark.parametrize("case", INVALID["digests"]["cases"], ids=lambda case: case["refusal"])
def test_a_reader_refuses_what_it_should(case: Vector) -> None:
    given = INVALID["digests"]
    estimates, refusals = reader(given["namespace"])
    held = decode(bytes.fromhex(given["held"]))
    assert isinstance(held, Delta)
    assert take(estimates, held, held.head.issued_at / 1000) == "applied"
    head: Head = held.head
    try:
        outcome = take(estimates, decode(bytes.fromhex(case["hex"])), given["now_ms"] / 1000)
    except RemoteError as exc:
        refusals[exc.refusal] += 1
    else:
        assert outcome == "stale"
    assert refusals == {Refusal(case["refusal"]): 1}
    assert estimates.version(head.owner, head.namespace) == (head.epoch, head.seq)


def kdf(context: str, data: bytes) -> bytes:
    return blake3(data, derive_key_context=context).digest()


def test_an_invitation_is_a_message_in_base32() -> None:
    case = SWARMS["invitation"]
    message = bytes.fromhex(case["message"])
    data = b"\x01" + len(message).to_bytes(2, "big") + message
    text = base64.b32encode(data + blake3(data).digest(4)).decode().rstrip("=").lower()
    assert case["text"] == f"mycelia1{text}"


def test_the_keys_of_a_secret_and_a_nonce() -> None:
    given = {
        name: bytes.fromhex(value) for case in ("secret", "proof", "nonce") for name, value in SWARMS[case].items()
    }
    of_secret = {name: bytes.fromhex(value) for name, value in SWARMS["secret"].items()}
    assert of_secret["key"] == kdf("mycelia 2026 swarm join key v1", given["secret"])
    assert of_secret["id"] == kdf("mycelia 2026 swarm invitation id v1", given["secret"])[:8]
    assert of_secret["proof_key"] == kdf("mycelia 2026 swarm join proof v1", given["secret"])
    assert given["proof"] == blake3(given["swarm"] + given["joiner"], key=of_secret["proof_key"]).digest(16)
    tag_key = kdf("mycelia 2026 swarm nonce tag v1", bytes.fromhex(SWARMS["nonce"]["key"]))
    assert given["nonce"] == given["fresh"] + blake3(given["fresh"], key=tag_key).digest(8)


def test_a_roster_is_signed_by_its_authority() -> None:
    case = SWARMS["roster"]
    value = cbor2.loads(bytes.fromhex(case["message"]))
    signature, value[12] = value[12], bytes(64)
    signed = b"mycelia swarm roster v1\x00" + cbor2.dumps(value, canonical=True)
    assert signed.hex() == case["signed"]
    SigningKey(bytes.fromhex(case["seed"])).verify_key.verify(signed, signature)

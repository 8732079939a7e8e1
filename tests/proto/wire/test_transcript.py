"""The whole exchange at the end of ``proto/interoperability.md``."""

import hashlib
import re

import pytest
from blake3 import blake3
from nacl.signing import SigningKey

from mycelia.node.requests.entry import ASK
from mycelia.proto.wire.codec import LENGTH_PREFIX, decode
from mycelia.proto.wire.messages import (
    Accepted,
    Answered,
    Ask,
    Begun,
    Final,
    Generate,
    Hello,
    Message,
    RepairRequest,
    Route,
    Subscribe,
    Text,
    Tokens,
    VitalsUpdate,
)
from tests.proto.documents import INTEROPERABILITY
from tests.proto.wire.transcript import CONTROL, GENERATE, GOSSIP, opening, whole_exchange, written

STEPS = whole_exchange()


def test_the_document_has_it_as_two_overlays_run_it() -> None:
    assert written(INTEROPERABILITY) == INTEROPERABILITY, "python -m tests.proto.wire.make_vectors, if it is to change"


def test_it_reads_as_another_implementation_would_read_it() -> None:
    listing = INTEROPERABILITY.split("```text\n")[1].split("```")[0]
    kinds = []
    for over, digits in re.findall(r"^\d+\. \w+, (\S+): .*\n((?:   [0-9a-f]+\n)+)", listing, re.MULTILINE):
        data = bytes.fromhex("".join(digits.split()))
        if over == GOSSIP:
            continue
        data = data.removeprefix(opening(over))
        if data:
            kinds.append(type(_message(data)))
    assert kinds == [
        Hello,
        RepairRequest,
        Hello,
        RepairRequest,
        Ask,
        Subscribe,
        VitalsUpdate,
        Route,
        Generate,
        Accepted,
        Begun,
        Tokens,
        Text,
        Final,
        Answered,
    ]


@pytest.mark.parametrize("protocol", [CONTROL, ASK, GENERATE])
def test_a_stream_begins_with_its_two_lines(protocol: str) -> None:
    first = next(step for step in STEPS if step.over == protocol)
    lines = first.data[: len(opening(protocol))]
    assert lines == opening(protocol) and lines.endswith(f"{protocol}\n".encode())


def _message(framed: bytes) -> Message:
    (length,) = LENGTH_PREFIX.unpack_from(framed)
    assert len(framed) == LENGTH_PREFIX.size + length
    return decode(framed[LENGTH_PREFIX.size :])


def test_what_is_derived_in_it_is_as_the_document_says() -> None:
    """Computed with hash functions alone, as section 2 describes."""

    def derived(context: str, data: bytes, length: int) -> bytes:
        return blake3(data, derive_key_context=f"mycelia 2026 {context} v1").digest(length=length)

    said = {step.what.split(",")[0]: step.data for step in STEPS}
    parts = (bytes(32), b"f16", b"")
    namespace = derived("namespace", b"".join(len(part).to_bytes(4, "big") + part for part in parts), 16)
    assert namespace in said["hello"] and f"mycelia/1/{namespace.hex()}".encode() in said["delta"]
    tokens = b"".join(token.to_bytes(4, "little") for token in range(1, 67))
    assert tokens in said["generate"]
    key = derived("block hash", namespace, 32)
    entry = hashlib.sha256(key + tokens[: 4 * 64]).digest()[:8] + b"\0"
    root = derived("digest root", entry, 16)
    assert entry in said["delta"] and root in said["delta"]
    server = bytes.fromhex("002408011220") + bytes(SigningKey(bytes(range(32))).verify_key)
    epoch, issued_at = 1_800_000_000_000, 1_800_000_000_500
    head = b"".join(
        (
            b"mycelia head v1\0",
            bytes((len(server),)) + server + namespace,
            epoch.to_bytes(8, "big") + (1).to_bytes(8, "big") + (1).to_bytes(4, "big") + issued_at.to_bytes(8, "big"),
            root + b"\0",
        )
    )
    assert SigningKey(bytes(range(32))).sign(head).signature in said["delta"]
    assert derived("prefix tag", blake3(bytes(16)).digest() + server, 16) in said["generate"]

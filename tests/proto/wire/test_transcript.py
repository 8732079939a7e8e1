"""The whole exchange that ``proto/interoperability.md`` ends with."""

import re

import pytest

from mycelia.proto.wire.codec import LENGTH_PREFIX, decode
from mycelia.proto.wire.messages import (
    Accepted,
    Final,
    Generate,
    Hello,
    Message,
    RepairRequest,
    Subscribe,
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
        Subscribe,
        VitalsUpdate,
        Generate,
        Accepted,
        Tokens,
        Final,
    ]


@pytest.mark.parametrize("protocol", [CONTROL, GENERATE])
def test_a_stream_begins_with_its_two_lines(protocol: str) -> None:
    first = next(step for step in STEPS if step.over == protocol)
    lines = first.data[: len(opening(protocol))]
    assert lines == opening(protocol) and lines.endswith(f"{protocol}\n".encode())


def _message(framed: bytes) -> Message:
    (length,) = LENGTH_PREFIX.unpack_from(framed)
    assert len(framed) == LENGTH_PREFIX.size + length
    return decode(framed[LENGTH_PREFIX.size :])

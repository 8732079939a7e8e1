"""Messages of every earlier release are read, and are written again with the same bytes.

``earlier.json`` has the valid messages that the release's own ``messages.json`` had. With a release, its
messages are added; no list ever changes.
"""

import json
import re
from pathlib import Path

import pytest

from mycelia.proto.wire.codec import decode, encode

EARLIER: dict[str, list[str]] = json.loads((Path(__file__).parent / "earlier.json").read_text("utf-8"))
CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"


@pytest.mark.parametrize("version", EARLIER)
def test_messages_of_an_earlier_release_keep_their_bytes(version: str) -> None:
    kinds = set[type]()
    for text in EARLIER[version]:
        message = decode(bytes.fromhex(text))
        assert encode(message).hex() == text
        kinds.add(type(message))
    assert len(kinds) > 20


def test_every_release_has_its_messages_here() -> None:
    releases = re.findall(r"^## \[([0-9][^\]]*)\]", CHANGELOG.read_text("utf-8"), re.MULTILINE)
    assert set(releases) == set(EARLIER)

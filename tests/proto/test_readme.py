"""``proto/README.md`` is part of the specification: its numbers are those of the code."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mycelia import proto
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
from mycelia.proto.wire.codec import MAX_GOSSIP_BYTES, MAX_MESSAGE_BYTES
from mycelia.proto.wire.messages import MAX_LOGPROBS_PER_FRAME, MAX_TOKENS_PER_REQUEST, MAX_VECTOR, Kind
from mycelia.proto.wire.refusals import Refusal
from tests.proto.wire.test_cddl import rule_name

TEXT = (Path(proto.__file__).parent / "README.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \|", TEXT, re.MULTILINE))


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


@pytest.mark.parametrize("config", _CONFIGS)
def test_every_setting_is_told_with_its_default(config: type) -> None:
    for field in fields(config):
        if isinstance(field.default, int | float | tuple):
            values = field.default if isinstance(field.default, tuple) else (field.default,)
            told = ROWS[field.name].replace(",", "").split(" to ")
            assert [float(number) for number in told] == [float(value) for value in values], field.name


def test_every_kind_is_told_with_its_number() -> None:
    told = dict(re.findall(r"^\| (\d+) \| `([a-z-]+)` \|", TEXT, re.MULTILINE))
    assert told == {str(kind.__struct_config__.tag): rule_name(kind) for kind in Kind.__subclasses__()}


def test_every_refusal_is_told() -> None:
    table = TEXT[TEXT.index("## Bad input") :]
    assert {name for name in re.findall(r"`([a-z_]+)`", table) if name in set(Refusal)} == set(Refusal)


def test_the_wires_own_bounds_are_told() -> None:
    for number in (MAX_MESSAGE_BYTES, MAX_GOSSIP_BYTES, MAX_TOKENS_PER_REQUEST, MAX_VECTOR, MAX_LOGPROBS_PER_FRAME):
        assert f"{number:,}" in TEXT

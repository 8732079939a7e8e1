"""Reads the protocol's documents for tests that compare them with the code."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import inspect

from mycelia import proto
from mycelia.proto.wire.codec import MAX_MESSAGE_BYTES
from mycelia.proto.wire.messages import CandidateTerms, Kind, Text

FOLDER = Path(proto.__file__).parent
INTEROPERABILITY = (FOLDER / "interoperability.md").read_text("utf-8")
POLICY = (FOLDER / "reference-policy.md").read_text("utf-8")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?")


def numbers_in(text: str) -> list[float]:
    """Every number, in order; 16,384 is one number."""
    return [float(found.rstrip(",").replace(",", "")) for found in _NUMBER.findall(text)]


def rows(text: str, header: str) -> Iterator[list[str]]:
    """The cells of every row of every table with this ``header``."""
    is_inside = False
    for line in text.splitlines():
        if line.startswith(header):
            is_inside = True
        elif not line.startswith("|"):
            is_inside = False
        elif is_inside and not line.startswith("|---"):
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def settings() -> dict[str, list[float]]:
    """Setting -> its default, or defaults."""
    told: dict[str, list[float]] = {}
    for name, default, _ in rows(INTEROPERABILITY + POLICY, "| Setting | Default |"):
        assert name not in told, f"{name} is told twice"
        told[name.strip("`")] = numbers_in(default)
    return told


def values() -> dict[str, tuple[list[float], list[float]]]:
    """Name of a value -> (numbers of its value, numbers of its notes)."""
    return {what: (numbers_in(value), numbers_in(notes)) for what, value, notes in rows(INTEROPERABILITY, VALUES)}


VALUES = "| What | Value | Notes |"


def rule_name(kind: type) -> str:
    """The name of a kind in ``wire.cddl``: RepairRequest is repair-request."""
    special: dict[type, str] = {Text: "text-frame", CandidateTerms: "candidate"}  # (CDDL has a type called text)
    return special.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()


def largest(kind: type[Kind]) -> int:
    """Bytes of the longest message that the bounds of ``kind`` allow."""
    return min(_largest(inspect.type_info(kind)), MAX_MESSAGE_BYTES)


def _largest(info: inspect.Type) -> int:
    match info:
        case inspect.BoolType():
            return 1
        case inspect.FloatType():
            return 9
        case inspect.IntType(le=int(most)):
            return _head(most)
        case inspect.BytesType(max_length=int(most)):
            return _head(most) + most
        case inspect.StrType(max_length=int(most)):
            return _head(4 * most) + 4 * most
        case inspect.StrType(pattern=str(pattern)):
            most = max(map(len, pattern.strip("^()$").split("|")))
            return _head(most) + most
        case inspect.VarTupleType(item_type=item, max_length=int(most)):
            return _head(most) + most * _largest(item)
        case inspect.StructType(fields=fields, tag=tag):
            keys = len(fields) + (tag is not None)
            own = 0 if tag is None else 1 + _head(int(tag))
            return _head(keys) + own + sum(1 + _largest(field.type) for field in fields)
    raise TypeError(msgspec.json.encode(str(info)))


def _head(argument: int) -> int:
    """Bytes of CBOR's initial byte and the shortest form of its argument."""
    return 1 + next(size for size, most in ((0, 24), (1, 2**8), (2, 2**16), (4, 2**32), (8, 2**64)) if argument < most)

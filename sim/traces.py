"""Request traces in Mooncake's form: JSON lines, gzipped or not, one request per line.

    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, ...]}

``timestamp`` in ms, never falling; lengths in tokens; ``hash_ids`` one for each 512 tokens of the input, the last one
for the remaining ones: equal ids in the same place mean equal prefixes (Qin et al., arXiv 2407.00079). Other fields are
ignored.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from mycelia.proto.wire.errors import LocalError
from mycelia.sim.sessions import Prompt, Session

TRACE_BLOCK = 512
MAX_INPUT_TOKENS = 1 << 24
_MAX_ID = 1 << 29
_ANSWER_TOKENS = 3 << 29
"""First token of answers: above all ids, below 2**32, and different from those of ``sessions``."""


@dataclass(frozen=True)
class TraceRow:
    at_s: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_mooncake(path: Path) -> list[TraceRow]:
    """All requests, with times from 0. Requests of one timestamp, which such traces round to seconds, are spread evenly
    until the next one. Raises LocalError, with the line's number and what is wrong."""
    rows: list[TraceRow] = []
    number = 0
    try:
        with _open(path) as file:
            for line in file:
                number += 1
                if line.strip():
                    rows.append(_row(line, rows[-1].at_s if rows else 0.0))
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise LocalError(f"{path}, line {number + 1}: the compressed file is cut off or damaged: {exc}") from exc
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise LocalError(f"{path}, line {number}: {exc}") from exc
    if not rows:
        raise LocalError(f"{path} has no requests")
    return _spread(rows)


def trace_rate(rows: Sequence[TraceRow]) -> float:
    """Requests a second; their number if all come at once."""
    return len(rows) / (rows[-1].at_s or 1.0)


def sessions_of(rows: Sequence[TraceRow], rate: float | None) -> Iterator[Session]:
    """One prompt per session, each with an answer of its own. rate: the trace is stretched to this many a second."""
    span_s = rows[-1].at_s
    stretch = len(rows) / rate / span_s if rate and span_s else 1.0
    for number, row in enumerate(rows):
        tokens: list[int] = []
        for block in row.hash_ids:
            tokens += [block] * TRACE_BLOCK
        answer = (_ANSWER_TOKENS + number,) * row.output_length
        yield Session(row.at_s * stretch, (Prompt(tuple(tokens[: row.input_length]), answer),))


def _open(path: Path) -> "gzip.GzipFile | IO[bytes]":
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzipped else path.open("rb")


def _row(line: bytes, latest_s: float) -> TraceRow:
    """The request of one line. Raises ValueError."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"no JSON, or cut off: {exc}") from exc
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    missing = [name for name in ("timestamp", "input_length", "output_length", "hash_ids") if name not in row]
    if missing:
        raise ValueError(f"lacks the field {missing[0]}")
    timestamp, ids = row["timestamp"], row["hash_ids"]
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not 0 <= timestamp < 1e15:
        raise ValueError("timestamp is not a number of milliseconds")
    input_length = _count(row, "input_length", 1)
    output_length = max(_count(row, "output_length", 0), 1)
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < _MAX_ID for one in ids):
        raise ValueError("hash_ids is not a list of whole numbers from 0 on")
    expected = -(-input_length // TRACE_BLOCK)
    if len(ids) != expected:
        raise ValueError(f"{len(ids)} hash_ids for {input_length} tokens: expected {expected}")
    at_s = timestamp / 1000
    if at_s < latest_s:
        raise ValueError(f"not sorted: timestamp {timestamp:g} after {latest_s * 1000:g}")
    return TraceRow(at_s, input_length, output_length, tuple(ids))


def _count(row: dict[str, Any], name: str, least: int) -> int:
    value = row[name]
    if type(value) is not int or not least <= value <= MAX_INPUT_TOKENS:
        raise ValueError(f"{name} is not a whole number from {least} to {MAX_INPUT_TOKENS}")
    return value


def _spread(rows: Sequence[TraceRow]) -> list[TraceRow]:
    begins_s = rows[0].at_s
    spread: list[TraceRow] = []
    first = 0
    while first < len(rows):
        end = first
        while end < len(rows) and rows[end].at_s == rows[first].at_s:
            end += 1
        gap_s = rows[end].at_s - rows[first].at_s if end < len(rows) else 0.0
        spread += [
            replace(rows[first + place], at_s=rows[first].at_s - begins_s + gap_s * place / (end - first))
            for place in range(end - first)
        ]
        first = end
    return spread

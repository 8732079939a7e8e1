"""Recorded workloads: JSON lines, gzipped or not.

Request traces in Mooncake's form (Qin et al., arXiv 2407.00079), one request per line:

    {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2, ...]}

``timestamp`` in ms, never falling; lengths in tokens; ``hash_ids`` one for each 512 tokens of the input, the last one
for the remaining ones: equal ids in the same place mean equal prefixes.

Dialogues, one per line, as in MT-Bench-101 (Bai et al., arXiv 2402.14762):

    {"turns": [{"user": "Who wrote Faust?", "assistant": "Goethe."}, ...]}

The simulator needs only the lengths, and takes four bytes for a token. Other fields are ignored.
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from blake3 import blake3

from mycelia.proto.wire.errors import LocalError
from mycelia.sim.prompts import Piece, Session, Text, Turn
from mycelia.sim.sessions import USUAL_DECODE_RATE, stream, turns_of

TRACE_BLOCK = 512
BYTES_A_TOKEN = 4
PAUSE_S = 20.0
"""Median pause between the turns of a dialogue, as in ``sessions``' multi-turn."""
MAX_TURNS = 1_000
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


@dataclass(frozen=True)
class Trace:
    """Requests at given times. Two of equal content are equal."""

    digest: str
    rows: Sequence[TraceRow] = field(compare=False, repr=False)

    @classmethod
    def of(cls, rows: Sequence[TraceRow]) -> "Trace":
        return cls(_digest(rows), rows)

    @property
    def rate(self) -> float:
        """Requests a second; their number if all come at once."""
        return len(self.rows) / (self.rows[-1].at_s or 1.0)

    def sessions(self, rate: float | None, rng: random.Random) -> Iterator[Session]:
        """One prompt per session, each with an answer of its own. rate: the trace is stretched to this many a second;
        None: it comes as recorded."""
        span_s = self.rows[-1].at_s
        stretch = len(self.rows) / rate / span_s if rate and span_s else 1.0
        for number, row in enumerate(self.rows):
            last = row.input_length - (len(row.hash_ids) - 1) * TRACE_BLOCK
            pieces = [*(Piece(block, TRACE_BLOCK) for block in row.hash_ids[:-1]), Piece(row.hash_ids[-1], last)]
            answer = Piece(_ANSWER_TOKENS + number, row.output_length)
            yield Session(row.at_s * stretch, (Turn(tuple(pieces), answer),))


@dataclass(frozen=True)
class Dialogues:
    """Conversations without a system prompt. Two of equal content are equal."""

    digest: str
    lengths: Sequence[Sequence[tuple[int, int]]] = field(compare=False, repr=False)
    """For each dialogue its turns: (tokens of the user, tokens of the answer)."""

    @classmethod
    def of(cls, lengths: Sequence[Sequence[tuple[int, int]]]) -> "Dialogues":
        return cls(_digest(lengths), lengths)

    rate = None
    """Dialogues come with no times of their own."""

    def sessions(self, rate: float | None, rng: random.Random) -> Iterator[Session]:
        """Dialogues drawn at random, without end: a second use of one shares nothing with the first."""
        assert rate is not None
        text = Text()
        by_length: dict[int, list[Sequence[tuple[int, int]]]] = {}
        for one in self.lengths:
            by_length.setdefault(len(one), []).append(one)

        def make(rng: random.Random, num_turns: int) -> tuple[Turn, ...]:
            return turns_of(text, (), rng.choice(by_length[num_turns]))

        answers = [answer for one in self.lengths for _, answer in one]
        answer_s = sum(answers) / len(answers) / USUAL_DECODE_RATE
        return stream(rate, [len(one) for one in self.lengths], make, PAUSE_S, answer_s, rng)


Recorded = Trace | Dialogues


def read_mooncake(path: Path) -> Trace:
    """All requests, with times from 0. Requests of one timestamp, which such traces round to seconds, are spread evenly
    until the next one. Raises LocalError, with the line's number and what is wrong."""
    rows: list[TraceRow] = []
    _read(path, lambda line: rows.append(_row(line, rows[-1].at_s if rows else 0.0)))
    if not rows:
        raise LocalError(f"{path} has no requests")
    return Trace.of(_spread(rows))


def read_dialogues(path: Path) -> Dialogues:
    """Raises LocalError, with the line's number and what is wrong."""
    lengths: list[Sequence[tuple[int, int]]] = []
    _read(path, lambda line: lengths.append(_lengths(line)))
    if not lengths:
        raise LocalError(f"{path} has no dialogues")
    return Dialogues.of(lengths)


def _read(path: Path, take: Callable[[bytes], None]) -> None:
    """Gives each line that is not empty to ``take``, which raises ValueError for a wrong one."""
    number = 0
    try:
        with _open(path) as file:
            for line in file:
                number += 1
                if line.strip():
                    take(line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise LocalError(f"{path}, line {number + 1}: the compressed file is cut off or damaged: {exc}") from exc
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise LocalError(f"{path}, line {number}: {exc}") from exc


def _open(path: Path) -> "gzip.GzipFile | IO[bytes]":
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzipped else path.open("rb")


def _digest(content: object) -> str:
    return blake3(repr(content).encode()).hexdigest(length=16)


def _object(line: bytes) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"no JSON, or cut off: {exc}") from exc
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _lengths(line: bytes) -> list[tuple[int, int]]:
    """The turns of the dialogue of one line. Raises ValueError."""
    turns = _object(line).get("turns")
    if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
        raise ValueError(f"turns is not a list of 1 to {MAX_TURNS} turns")
    lengths = []
    for turn in turns:
        texts = [turn.get(name) if isinstance(turn, dict) else None for name in ("user", "assistant")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a turn has no texts user and assistant")
        user, answer = (max(1, -(-len(str(text).encode()) // BYTES_A_TOKEN)) for text in texts)
        lengths.append((user, answer))
    return lengths


def _row(line: bytes, latest_s: float) -> TraceRow:
    """The request of one line. Raises ValueError."""
    row = _object(line)
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

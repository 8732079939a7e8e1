"""``make fuzz``: hostile bytes for ``proto.codec.decode``, which answers any bytes with a Message or a RemoteError,
within a bounded amount of memory.

Input number i of seed s is always the same, so one that fails is found again by its two numbers alone.

Memory is what Python's allocators hold at once (tracemalloc) while ``decode`` runs; cbor2 and msgspec allocate there.
Tracing makes decoding three times slower, so it is on for every input that could be expensive - made of much
structure, with lengths that lie, or long - and for one in sixteen of the rest. What no allocator of Python's sees would
show in the resident set, whose growth over the whole run is bounded too.
"""

import argparse
import random
import resource
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cbor2

from proto.codec import MAX_MESSAGE_BYTES, decode, encode
from proto.errors import RemoteError
from proto.messages import Announce, Ask, ChatMessage, Delta, Generate, Hello, Message, Reconcile, Repair, Text, Version
from tests.fuzz.mutate import bomb, splice, spoil_bytes, spoil_value
from tests.proto.examples import EXAMPLES, HEAD, LOGPROBS, PEER, SAMPLING, SPACE

STRUCTURE_BYTES = 1 << 20
"""Memory that any input may take."""
STRING_FACTOR = 7
"""And this times its own length: a chat in which one character needs four bytes has all of them in four bytes, and
then its bytes and its encoding."""
MAX_GROWTH_BYTES = 64 << 20
"""Of the resident set in a whole run: one input of the largest size with all its copies, and a heap with gaps."""
TRACED_FROM_BYTES = 2_048
TRACED_SHARE = 16
BATCH = 512
MAX_FAILURES = 10
FAILURES_DIR = Path(".fuzz")

LARGE: list[Message] = [
    Hello(wire_version=1, agent="a" * 64, served=EXAMPLES[0].served * 16),  # type: ignore[union-attr]
    Repair(head=HEAD, mode=1, from_seq=1, upserts=bytes(range(252)) * 9, removes=bytes(800)),
    Reconcile(versions=tuple(Version(owner=PEER, namespace=SPACE, epoch=2**40, seq=i) for i in range(200))),
    Delta(head=HEAD, from_seq=1, upserts=bytes(9 * 600), removes=bytes(8 * 50)),
    Generate(request_id=bytes(16), namespace=SPACE, prompt=bytes(4_096), sampling=SAMPLING, promised_tokens=64),
    Ask(
        request_id=bytes(16),
        model="m",
        messages=tuple(ChatMessage(role="user", content="😀" * i) for i in range(30)),
        sampling=SAMPLING,
    ),
    Text(text="é" * 200, logprobs=(LOGPROBS,) * 32),
    Announce(head=HEAD),
]
CORPUS = [encode(message) for message in (*EXAMPLES, *EXAMPLES, *LARGE)]
"""The small ones twice: they are where most kinds of mistakes fit, and cost little time."""
VALUES = [cbor2.loads(data) for data in CORPUS]


@dataclass
class Report:
    """What a run found."""

    seed: int
    num_inputs: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    """Kind -> inputs that were a message after all."""
    failures: list[str] = field(default_factory=list)
    num_traced: int = 0
    peak_bytes: int = 0
    """The most memory that one traced input took."""
    peak_input: tuple[int, int] = (0, 0)
    """Its number and its length."""
    elapsed_s: float = 0.0
    grown_bytes: int = 0


def make_input(seed: int, number: int) -> tuple[bytes, bool]:
    """Input ``number`` of ``seed``, and whether it was made to be expensive."""
    rng = random.Random(seed << 32 | number)
    way = rng.randrange(100)
    if way < 45:
        return spoil_bytes(rng.choice(CORPUS), rng), False
    if way < 85:
        return spoil_value(rng.choice(VALUES), rng, rng.choice((0.02, 0.1, 0.3))), True
    if way < 92:
        return splice(rng.choice(CORPUS), rng.choice(CORPUS), rng), False
    if way < 97:
        return bomb(rng), True
    return rng.choice((b"", b"\xa2\x00", b"\xa3\x00\x06\x01")) + rng.randbytes(rng.randrange(300)), False


def allowance(data: bytes) -> int:
    """Bytes of memory that decoding ``data`` may take."""
    return STRUCTURE_BYTES + STRING_FACTOR * len(data)


def check(data: bytes) -> Message | None:
    """The message, None for a RemoteError. Whatever else ``decode`` raises comes out, and is a failure."""
    try:
        message = decode(data)
    except RemoteError:
        return None
    if len(data) > MAX_MESSAGE_BYTES or encode(message) != data:
        raise AssertionError("a message has two encodings")
    return message


def run(seed: int, num_inputs: int, report: Report, progress: Callable[[Report], None]) -> None:
    """Check inputs 0 .. ``num_inputs`` - 1 of ``seed`` into ``report``; ``progress`` is called after every batch."""
    start, resident = time.monotonic(), _peak_resident_bytes()
    for first in range(0, num_inputs, BATCH):
        numbers = range(first, min(first + BATCH, num_inputs))
        made = [(number, *make_input(seed, number)) for number in numbers]
        traced = [(n, d) for n, d, dear in made if dear or len(d) >= TRACED_FROM_BYTES or n % TRACED_SHARE == 0]
        is_traced = {number for number, _ in traced}
        tracemalloc.start()
        try:
            for number, data in traced:
                _check_one(number, data, report, is_traced=True)
        finally:
            tracemalloc.stop()
        for number, data, _ in made:
            if number not in is_traced:
                _check_one(number, data, report, is_traced=False)
        report.elapsed_s = time.monotonic() - start
        report.grown_bytes = _peak_resident_bytes() - resident
        progress(report)
        if len(report.failures) >= MAX_FAILURES:
            return
    if report.grown_bytes > MAX_GROWTH_BYTES:
        report.failures.append(f"the resident set grew by {report.grown_bytes} bytes")


def _check_one(number: int, data: bytes, report: Report, is_traced: bool) -> None:
    report.num_inputs += 1
    before = 0
    if is_traced:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
    try:
        message = check(data)
    except Exception as exc:  # noqa: BLE001  that is what is looked for
        report.failures.append(_describe(report.seed, number, data, f"{type(exc).__name__}: {exc}"))
        return
    if message is not None:
        report.accepted[type(message).__name__] += 1
    if is_traced:
        taken = tracemalloc.get_traced_memory()[1] - before
        report.num_traced += 1
        if taken > report.peak_bytes:
            report.peak_bytes, report.peak_input = taken, (number, len(data))
        if taken > allowance(data):
            report.failures.append(_describe(report.seed, number, data, f"took {taken} bytes of memory"))


def _describe(seed: int, number: int, data: bytes, what: str) -> str:
    """Keeps the input in a file; how to see it again."""
    FAILURES_DIR.mkdir(exist_ok=True)
    path = FAILURES_DIR / f"{seed}-{number}.hex"
    path.write_text(data.hex() + "\n")
    shown = data.hex() if len(data) <= 256 else f"{data[:256].hex()}... ({len(data)} bytes)"
    return f"{what}\n  input {shown}\n  again: make fuzz SEED={seed} ARGS='--only {number}'   or ARGS='--file {path}'"


def _peak_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# --- command line --------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _progress(every_s: float = 5.0) -> Callable[[Report], None]:
    said_at = time.monotonic()

    def progress(report: Report) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= every_s:
            said_at = time.monotonic()
            rate = report.num_inputs / report.elapsed_s
            _say(f"  {report.num_inputs:>9,} inputs, {rate:,.0f} a second, {len(report.failures)} failures")

    return progress


def _summary(report: Report) -> Iterator[str]:
    accepted = sum(report.accepted.values())
    yield f"{report.num_inputs:,} inputs in {report.elapsed_s:.0f} s: {accepted:,} messages of"
    yield f"  {len(report.accepted)} kinds, {report.num_inputs - accepted - len(report.failures):,} refused"
    number, length = report.peak_input
    yield f"memory, {report.num_traced:,} traced: at most {report.peak_bytes / 2**20:.2f} MiB, for input {number} of"
    yield f"  {length:,} bytes; the resident set grew by {report.grown_bytes / 2**20:.0f} MiB in all"
    yield from report.failures
    yield f"{len(report.failures)} failures" if report.failures else "no failure"


def main() -> int:
    """0 when every input was answered as it should be, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Hostile bytes for the codec.")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--only", type=int, help="this input of the seed alone, with a traceback if it fails")
    parser.add_argument("--file", type=Path, help="the hexadecimal input in this file alone")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    if options.file is not None or options.only is not None:
        data = bytes.fromhex(options.file.read_text()) if options.file else make_input(seed, options.only)[0]
        tracemalloc.start()
        message = check(data)
        _say(f"{message!r:.300}: {tracemalloc.get_traced_memory()[1]:,} bytes of memory, {allowance(data):,} allowed")
        return 0
    _say(f"{options.inputs:,} inputs, SEED={seed}")
    report = Report(seed)
    interrupted = False
    try:
        run(seed, options.inputs, report, _progress())
    except KeyboardInterrupt:
        interrupted = True
    for line in _summary(report):
        _say(line)
    return 130 if interrupted else int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())

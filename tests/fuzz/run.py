"""``make fuzz``: hostile inputs for every entry that takes a stranger's bytes or text.

A target (``Target``; one module each in ``tests/fuzz/targets``) makes inputs and checks them. Input number i of seed s
for a target is always the same, so a failing one can be made again from its target and the two numbers.

A failure is an exception that ``check`` raises, more than HANG_S of CPU time in one check, or more memory than the
target allows. Memory is measured in two ways: what Python's allocators hold at once (tracemalloc) during one check, and
for the rest the growth of the resident set over the target's whole run. The targets run in a child process, so that an
input that ends the process, or never returns to Python, is named too.
"""

import argparse
import ast
import faulthandler
import importlib
import logging
import os
import pkgutil
import random
import resource
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import structlog

import tests.fuzz.targets

HANG_S = 5.0
"""CPU time for one check."""
LOST_S = 120.0
"""Wall time for one batch: a check that never returns to Python can only be stopped in this way."""
MAX_GROWTH_BYTES = 64 << 20
"""Growth of the resident set in a target's whole run: one input of the largest size with all its copies, and a heap
with gaps."""
TRACED_SHARE = 16
BATCH = 512
MAX_FAILURES = 10
"""A target's run ends after so many."""
FAILURES_DIR = Path(".fuzz")


class Target(Protocol):
    """One entry for strangers' inputs. Its constructor takes no arguments, and may set things up.

    It may also have: ``weight`` (its share of all inputs; default 1.0); ``allowance(item)`` (bytes of memory that
    checking ``item`` may take; tracing them makes a check several times slower, so it is done for one input in
    TRACED_SHARE and for those of which ``is_dear(item)``); ``close()``.

    Items should be literals (bytes, strings, numbers, tuples, lists, dicts of these), so that a failed one can be read
    back from the file that keeps it.
    """

    name: str

    def make(self, rng: random.Random) -> Any:
        """An input, drawn only from ``rng``."""

    def check(self, item: Any) -> bool:
        """Whether ``item`` was accepted as valid; False: rightly refused. Any exception is a failure."""


class HangError(BaseException):
    """A check took too long. Not an Exception, so that the checked code cannot handle it."""


@dataclass
class Report:
    """The results of a run at one target."""

    target: str
    seed: int
    num_inputs: int = 0
    num_accepted: int = 0
    failures: list[str] = field(default_factory=list)
    num_traced: int = 0
    peak_bytes: int = 0
    """The most memory that one traced input took."""
    peak_number: int = 0
    elapsed_s: float = 0.0
    grown_bytes: int = 0


def found_targets() -> list[type[Target]]:
    """The targets in ``tests/fuzz/targets``, by name."""
    found = []
    for module in pkgutil.iter_modules(tests.fuzz.targets.__path__, "tests.fuzz.targets."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and value.__module__ == module.name and {"make", "check"} <= vars(value).keys():
                found.append(value)
    return sorted(found, key=lambda target: target.name)


def shares(targets: Sequence[type[Target]], num_inputs: int) -> list[int]:
    """Inputs for each target, by weight, at least one."""
    weights = [getattr(target, "weight", 1.0) for target in targets]
    return [max(1, round(num_inputs * weight / sum(weights))) for weight in weights]


def make_input(target: Target, seed: int, number: int) -> Any:
    return target.make(random.Random(f"{target.name}/{seed}/{number}"))


def run(
    target: Target,
    report: Report,
    num_inputs: int,
    progress: Callable[[Report], None],
    begins: Callable[[int], None] = lambda number: None,
) -> None:
    """Check inputs 0 .. ``num_inputs`` - 1 of ``report.seed`` into ``report``. progress: called after every batch;
    begins: before every check, with the input's number. Only in the main thread."""
    start, resident = time.monotonic(), _peak_resident_bytes()
    allowance = getattr(target, "allowance", None)
    is_dear = getattr(target, "is_dear", lambda item: False)
    with _hangs_raised():
        for first in range(0, num_inputs, BATCH):
            numbers = range(first, min(first + BATCH, num_inputs))
            made = [(number, make_input(target, report.seed, number)) for number in numbers]
            traced = {number for number, item in made if allowance and (number % TRACED_SHARE == 0 or is_dear(item))}
            # (tracing is turned on once per batch: that alone takes longer than most checks)
            for is_traced in (True, False) if traced else (False,):
                if is_traced:
                    tracemalloc.start()
                try:
                    for number, item in made:
                        if (number in traced) == is_traced:
                            begins(number)
                            allowed = allowance(item) if is_traced and allowance else None
                            _check_one(target, number, item, report, allowed)
                finally:
                    tracemalloc.stop()
            report.elapsed_s = time.monotonic() - start
            report.grown_bytes = _peak_resident_bytes() - resident
            progress(report)
            if len(report.failures) >= MAX_FAILURES:
                return
    if report.grown_bytes > MAX_GROWTH_BYTES:
        report.failures.append(f"{target.name}: the resident set grew by {report.grown_bytes} bytes")


def _check_one(target: Target, number: int, item: Any, report: Report, allowed_bytes: int | None) -> None:
    """allowed_bytes: of memory; None: not traced."""
    report.num_inputs += 1
    before = 0
    if allowed_bytes is not None:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        report.num_accepted += target.check(item)
    except (Exception, SystemExit, HangError) as exc:  # noqa: BLE001 any exception is a finding
        signal.setitimer(signal.ITIMER_PROF, 0)
        report.failures.append(_describe(report, number, item, f"{type(exc).__name__}: {exc}"))
        return
    signal.setitimer(signal.ITIMER_PROF, 0)
    if allowed_bytes is not None:
        taken = tracemalloc.get_traced_memory()[1] - before
        report.num_traced += 1
        if taken > report.peak_bytes:
            report.peak_bytes, report.peak_number = taken, number
        if taken > allowed_bytes:
            report.failures.append(_describe(report, number, item, f"took {taken} bytes of memory"))


@contextmanager
def _hangs_raised() -> Iterator[None]:
    """Lets the timer's signal raise HangError."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise HangError(f"more than {HANG_S:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, too_long)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _describe(report: Report, number: int, item: Any, what: str) -> str:
    """Keeps the input in a file, and says how to check it again."""
    FAILURES_DIR.mkdir(exist_ok=True)
    path = FAILURES_DIR / f"{report.target}-{report.seed}-{number}"
    kept = repr(item)
    path.write_text(kept + "\n")
    shown = kept if len(kept) <= 512 else f"{kept[:512]}... ({len(kept)} characters)"
    return f"{report.target}: {what}\n  input {shown}\n  again: {_again(report.target, report.seed, number, path)}"


def _again(target: str, seed: int, number: int, path: Path | None = None) -> str:
    again = f"make fuzz SEED={seed} ARGS='--target {target} --only {number}'"
    return again if path is None else f"{again}   or ARGS='--target {target} --file {path}'"


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
        faulthandler.dump_traceback_later(LOST_S, exit=True)
        if time.monotonic() - said_at >= every_s:
            said_at = time.monotonic()
            rate = report.num_inputs / report.elapsed_s
            failed = f", {len(report.failures)} failures" if report.failures else ""
            _say(f"  {report.target}: {report.num_inputs:>9,} inputs, {rate:,.0f} a second{failed}")

    return progress


def _summary(report: Report) -> Iterator[str]:
    refused = report.num_inputs - report.num_accepted - len(report.failures)
    line = (
        f"{report.target}: {report.num_inputs:,} inputs in {report.elapsed_s:.0f} s,"
        f" {report.num_accepted:,} accepted, {refused:,} refused; resident +{report.grown_bytes / 2**20:.0f} MiB"
    )
    if report.num_traced:
        line += f"; of {report.num_traced:,} traced at most {report.peak_bytes / 2**20:.2f} MiB, number"
        line += f" {report.peak_number}"
    yield line
    yield from report.failures


def _run_all(targets: Sequence[type[Target]], seed: int, num_inputs: int, running: Path) -> int:
    """Returns the exit status. While a check runs, ``running`` holds its target and number."""
    num_failures = 0
    progress = _progress()
    fd = os.open(running, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for kind, share in zip(targets, shares(targets, num_inputs), strict=True):
        report = Report(kind.name, seed)
        target = kind()
        faulthandler.dump_traceback_later(LOST_S, exit=True)

        def begins(number: int, name: str = kind.name) -> None:
            os.pwrite(fd, f"{name} {number:<12}\n".encode(), 0)

        try:
            run(target, report, share, progress, begins)
        except KeyboardInterrupt:
            os.ftruncate(fd, 0)
            return 130
        finally:
            getattr(target, "close", lambda: None)()
            faulthandler.cancel_dump_traceback_later()
            for line in _summary(report):
                _say(line)
        os.ftruncate(fd, 0)
        num_failures += len(report.failures)
    _say(f"{num_failures} failures" if num_failures else "no failure")
    return int(bool(num_failures))


def run_in_child(targets: Sequence[type[Target]], seed: int, num_inputs: int) -> int:
    """Like ``_run_all``; also 1, with the input of the last check, when the child was killed or crashed."""
    FAILURES_DIR.mkdir(exist_ok=True)
    running = FAILURES_DIR / f"running-{os.getpid()}"
    child = os.fork()
    if child == 0:
        os._exit(_run_all(targets, seed, num_inputs, running))
    while True:
        with suppress(KeyboardInterrupt):  # (the child gets it too, and prints its findings)
            _, status = os.waitpid(child, 0)
            break
    at = running.read_text().split() if running.exists() else []
    running.unlink(missing_ok=True)
    if at:
        _say(f"{at[0]}: the process ended (status {status:#x})\n  again: {_again(at[0], seed, int(at[1]))}")
        return 1
    return os.waitstatus_to_exitcode(status)


def _run_one(target: Target, item: Any) -> int:
    allowance = getattr(target, "allowance", None)
    tracemalloc.start()
    with _hangs_raised():
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        accepted = target.check(item)
        signal.setitimer(signal.ITIMER_PROF, 0)
    taken = tracemalloc.get_traced_memory()[1]
    allowed = f", {allowance(item):,} allowed" if allowance else ""
    _say(f"{'accepted' if accepted else 'refused'}: {taken:,} bytes of memory{allowed}: {item!r:.300}")
    return 0


def main() -> int:
    """0 when every input passed, 1 when not, 130 when interrupted."""
    found = {target.name: target for target in found_targets()}
    parser = argparse.ArgumentParser(prog="make fuzz", description="Hostile inputs for what strangers can reach.")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="number of inputs, shared out among the targets")
    parser.add_argument("--target", choices=sorted(found), action="append", help="this one alone; may be repeated")
    parser.add_argument("--only", type=int, help="this input of the seed alone, with a traceback if it fails")
    parser.add_argument("--file", type=Path, help="the input in this file alone, which a failure left")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    targets = [found[name] for name in options.target or found]
    if options.file is None and options.only is None:
        _say(f"{options.inputs:,} inputs for {len(targets)} targets, SEED={seed}")
        return run_in_child(targets, seed, options.inputs)
    if len(targets) != 1:
        parser.error("--only and --file need one --target")
    target = targets[0]()
    item = ast.literal_eval(options.file.read_text()) if options.file else make_input(target, seed, options.only)
    return _run_one(target, item)


if __name__ == "__main__":
    sys.exit(main())

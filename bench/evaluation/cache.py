"""Outcomes of runs on disk, so that an interrupted evaluation continues where it stopped.

A run's key is a hash of everything that its outcome depends on: scenario, policy, seed, the content of the files that
it reads, and the sources of ``proto/`` and ``sim/``. So no old outcome is taken for a new one.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import msgspec
from blake3 import blake3

from mycelia import proto, sim
from mycelia.bench.report.atomic import replaced
from mycelia.bench.report.runs import Run, outcomes
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import Outcome


class Cache:
    def __init__(self, directory: Path) -> None:
        """Makes the directory. Raises LocalError when that is not possible."""
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LocalError(f"cannot write {directory}: {exc.strerror or exc}") from exc

    def get(self, run: Run) -> Outcome | None:
        """None if it was not kept or cannot be read."""
        try:
            return msgspec.json.decode(self._path(run).read_bytes(), type=Outcome)
        except (OSError, msgspec.MsgspecError):
            return None

    def put(self, run: Run, outcome: Outcome) -> None:
        with replaced(self._path(run)) as file:
            file.write(msgspec.json.encode(outcome).decode())

    def _path(self, run: Run) -> Path:
        return self._directory / f"{key_of(run)}.json"


def outcomes_kept(runs: list[Run], jobs: int, cache: Cache) -> Iterator[tuple[Run, Outcome, bool]]:
    """(run, its outcome, whether it ran now): first kept ones, then the others as they end. Equal runs come once."""
    missing = []
    for run in dict.fromkeys(runs):
        kept = cache.get(run)
        if kept is None:
            missing.append(run)
        else:
            yield run, kept, False
    for place, outcome, _ in outcomes(missing, jobs):
        cache.put(missing[place], outcome)
        yield missing[place], outcome, True


def key_of(run: Run) -> str:
    """32 hexadecimal digits."""
    scenario = run.scenario
    read = [
        scenario.recorded.digest if scenario.recorded else "",
        _digest_of_file(scenario.rtt_file) if scenario.rtt_file else "",
    ]
    told = asdict(replace(scenario, recorded=None, rtt_file=None))
    parts = msgspec.json.encode([told, run.policy, run.seed, *read, code_version()])
    return blake3(parts).hexdigest(length=16)


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of the sources of the protocol and of the simulator: 16 hex digits."""
    digest = blake3()
    for package in (proto, sim):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest(length=8)


@lru_cache(maxsize=4)
def _digest_of_file(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest(length=16)

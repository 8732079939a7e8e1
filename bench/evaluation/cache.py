"""Outcomes of runs on disk, so that an interrupted evaluation continues where it stopped.

A run's key is a hash of everything that its outcome depends on: scenario, policy, seed, the content of the files that
it reads, and the code that the simulator imports, without its comments and docstrings. So no old outcome is taken for a
new one, and a change of words costs nothing.
"""

import ast
import sys
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import msgspec
from blake3 import blake3

from mycelia.bench.report.atomic import replaced
from mycelia.bench.report.runs import Run
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.outcome import Outcome

_SIMULATED = ("mycelia.proto", "mycelia.sim")
"""The packages whose modules make an outcome."""


class Kept(msgspec.Struct):
    outcome: Outcome
    seconds: float
    """Time that the run took."""


class Cache:
    def __init__(self, directory: Path) -> None:
        """Makes the directory. Raises LocalError when that is not possible."""
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LocalError(f"cannot write {directory}: {exc.strerror or exc}") from exc

    def get(self, run: Run) -> Kept | None:
        """None if it was not kept or cannot be read."""
        try:
            return msgspec.json.decode(self._path(run).read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return None

    def put(self, run: Run, kept: Kept) -> None:
        with replaced(self._path(run)) as file:
            file.write(msgspec.json.encode(kept).decode())

    def _path(self, run: Run) -> Path:
        return self._directory / f"{key_of(run)}.json"


def key_of(run: Run) -> str:
    """32 hexadecimal digits."""
    scenario = run.scenario
    read = [
        scenario.recorded.digest if scenario.recorded is not None else "",
        _digest_of_file(scenario.rtt_file) if scenario.rtt_file else "",
    ]
    told = asdict(replace(scenario, recorded=None, rtt_file=None))
    parts = msgspec.json.encode([told, run.policy, run.seed, *read, code_version()])
    return blake3(parts).hexdigest(length=16)


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of the code that the simulator imports: 16 hex digits."""
    digest = blake3()
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path is not None and name.startswith(_SIMULATED):
            digest.update(f"{name}\0{code_of(Path(path).read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest(length=8)


def code_of(source: str) -> str:
    """A module's code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [one for one in body if not _is_text(one)]
    return ast.dump(tree)


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@lru_cache(maxsize=4)
def _digest_of_file(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest(length=16)

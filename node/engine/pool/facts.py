"""What earlier runs learned of a model: what it is, and what its engine takes. So a node can serve a model, and plan
with it, before it loads it. One file for each model in the data folder, which counts only for the same model file and
the same settings.
"""

from dataclasses import replace
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Struct

from mycelia.node.engine import ipc
from mycelia.node.engine.gguf import parts_of
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.storage.sealed import SealedFile
from mycelia.node.version import VERSION

GUESSED_BYTES, GUESSED_FAKE_BYTES = 512 * 2**20, 64 * 2**20
"""Assumed for what an engine takes besides the weights, before it was measured."""
GUESSED_LOAD_S_PER_GIB = 4.0
LEAST_LOAD_S = 1.0


class Facts(Struct, frozen=True):
    loaded: ipc.Loaded
    memory_bytes: int
    """The most that its engine took."""
    load_s: float
    """The time of the last load."""
    prefill_rate: int = 0
    decode_rate: int = 0
    """Tokens/s, as last measured; 0: never."""


class FactsFile:
    """The facts of one model, in the data folder."""

    def __init__(self, data_dir: Path, settings: EngineSettings) -> None:
        self._data_dir = data_dir
        self._file = SealedFile(f"model-{_key(settings)}.msgpack", Facts, "the model is loaded once to learn of it")

    def load(self) -> Facts | None:
        return self._file.load(self._data_dir)

    def save(self, facts: Facts) -> None:
        """Raises LocalError."""
        self._file.save(self._data_dir, facts)

    def forget(self) -> None:
        (self._data_dir / self._file.name).unlink(missing_ok=True)


def guessed_bytes(settings: EngineSettings) -> int:
    """What the engine of a model may take that was never loaded."""
    return GUESSED_FAKE_BYTES if settings.fake else GUESSED_BYTES + _file_bytes(settings.model_path)


def guessed_load_s(settings: EngineSettings) -> float:
    size = 0 if settings.fake else _file_bytes(settings.model_path)
    return LEAST_LOAD_S + GUESSED_LOAD_S_PER_GIB * size / 2**30


def _file_bytes(path: Path) -> int:
    """The size of a model, which may be in several files."""
    return sum(part.stat().st_size for part in parts_of(path))


def _key(settings: EngineSettings) -> str:
    """Names everything that changes the facts: the file, the settings of the engine, and this program."""
    paths = [] if settings.fake else parts_of(settings.model_path)
    files = [path.stat() for path in (*paths, *filter(None, (settings.lora_path,)))]
    # (what the pool decides is no part of it)
    own = replace(settings, cache_dir=None, is_dir_memory=False, disk_tier_gib=0.0, ram_tier_mib=None, room_bytes=None)
    text = [VERSION, repr(own), [(status.st_size, status.st_mtime_ns) for status in files]]
    return blake3(msgspec.json.encode(text)).hexdigest(length=8)

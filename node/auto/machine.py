"""What this machine has for a model, and which models of the catalogue it could serve. The measurements block."""

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from msgspec import Struct

from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.pool.facts import GUESSED_BYTES
from mycelia.node.models.catalogue import Catalogue, Entry
from mycelia.node.models.sizes import size_text
from mycelia.proto.supply.chooser import LEAST_RATE, REQUESTS_PER_RATE, Option

GPU_BYTES_PER_S = 250e9
"""Assumed of a GPU, whose memory is measured only by a model that runs there."""
UNKNOWN_LINE = 2e6
"""Bytes/s assumed of a download before there was one."""
SPARE_DISK_BYTES = 2_000_000_000
CONTEXT_TOKENS = 8_192
_BLOCK = 64_000_000
_TRIES = 3


class Machine(Struct, frozen=True):
    room_bytes: int
    """Memory for the engine of the chosen model."""
    gpu_bytes: int
    """Free memory of all GPUs."""
    disk_bytes: int
    """Free where models are kept."""
    memory_rate: int
    """Bytes/s that the processor copies."""
    line_rate: int
    """Bytes/s of the last download."""


def memory_rate() -> float:
    """Bytes/s at which the processor copies memory. Takes some hundredths of a second."""
    source, target = np.ones(_BLOCK, np.uint8), np.zeros(_BLOCK, np.uint8)
    best_s = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        np.copyto(target, source)
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * _BLOCK / best_s


def free_disk_bytes(folder: Path) -> int:
    """Free in ``folder`` or, while it does not exist, in the folder above."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def options(
    catalogue: Catalogue, machine: Machine, is_here: Callable[[str], bool], measured: Mapping[str, float]
) -> list[Option]:
    """The models that this machine can hold and serve at a usable rate, the best one first: the largest. is_here:
    whether a model is on this disk. measured: tokens/s of models that ran here. A download is only possible while all
    models of the catalogue take at most half of what they and the free disk are: others choose what is fetched."""
    found: list[tuple[int, Option]] = []
    kept = sum(entry.size_bytes for name, entry in catalogue.items() if is_here(name))
    room = (machine.disk_bytes - kept) // 2 if kept else machine.disk_bytes - SPARE_DISK_BYTES
    for name, entry in catalogue.items():
        if entry.kind != TEXT:
            continue  # (what is asked of other kinds is not counted)
        here = is_here(name)
        rate = measured.get(name) or _rate(entry, machine)
        if _needs(entry) > machine.room_bytes or rate < LEAST_RATE:
            continue
        if not here and entry.size_bytes > min(room, machine.disk_bytes - SPARE_DISK_BYTES):
            continue
        fetch_s = 0.0 if here else entry.size_bytes / machine.line_rate
        found.append((entry.size_bytes, Option(name, REQUESTS_PER_RATE * rate, fetch_s)))
    return [option for _, option in sorted(found, key=lambda one: (-one[0], one[1].name))]


def why_none(machine: Machine) -> str:
    """What to say if no model fits."""
    memory, disk, spare = map(size_text, (machine.room_bytes, machine.disk_bytes, SPARE_DISK_BYTES))
    return (
        f"no model of the catalogue fits this machine: {memory} of memory are free for one, {disk} of the disk"
        f" (of which {spare} stay free), and an answer has to come at {LEAST_RATE:.0f} tokens/s"
    )


def _needs(entry: Entry) -> int:
    """Memory of the engine: what is planned with before a model was loaded, or more for a long context."""
    return max(entry.size_bytes + GUESSED_BYTES, entry.memory_bytes(CONTEXT_TOKENS))


def _rate(entry: Entry, machine: Machine) -> float:
    """Tokens/s of one answer: each token reads all active weights."""
    is_on_gpu = entry.memory_bytes(CONTEXT_TOKENS) <= machine.gpu_bytes
    return (GPU_BYTES_PER_S if is_on_gpu else machine.memory_rate) / entry.active_bytes

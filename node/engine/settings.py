"""The settings of an engine."""

import os
from dataclasses import dataclass
from pathlib import Path

from mycelia.node.engine.sizing import RAM_SHARE, Offload, available_kib, default_ram_mib
from mycelia.proto.cache.tier import MIB
from mycelia.proto.wire.errors import LocalError

MAX_CELLS = 4_194_304
"""About 90 GB for the smallest models. With far more llama.cpp does not fail but works for minutes."""
DEFAULT_SEQUENCES = 64
MAX_TIER_GIB = 2**20
"""A larger size is a typing error."""
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class EngineSettings:
    """The model to load, and all sizes."""

    model_path: Path
    model_name: str = ""
    """The name for users; empty: the file's stem."""
    threads: int | None = None
    """Number of threads. None: one per core that this process may use. Nodes on the same machine should divide its
    cores: barriers between more threads than cores are slow."""
    cells: int | None = None
    """Tokens in the KV cache, over all requests and cached prefixes. None: 8,192, or fewer when memory is short; with
    all layers on GPUs as many as fit, at most 65,536 and no more than all slots can use. See ``sizing.py``."""
    slots: int = 8
    """Requests that run at once: throughput still grows at 8 on two cores."""
    sequences: int = DEFAULT_SEQUENCES
    """Number of llama.cpp's sequence ids, for running requests and cached leaves; at most 256."""
    max_waiting: int = 64
    """Maximum number of queued requests; further ones are refused as overloaded."""
    ram_tier_mib: int | None = None
    """Host memory for prefixes that left the KV cache, in MiB. 0: none. None: a quarter of the free memory at the start
    of the engine, at most 4096."""
    cache_dir: Path | None = None
    """Folder in which these prefixes are also written, so that a restarted node begins with a warm cache; created if
    missing. It contains prompts and answers as tokens. None: nothing is written."""
    disk_tier_gib: float = 8.0
    """Maximum size of ``cache_dir`` for one model, in GiB: 370,000 tokens of a 135M model."""
    is_dir_memory: bool = False
    """``cache_dir`` lies in memory (tmpfs): it is the memory tier then, and survives the engine's process."""
    room_bytes: int | None = None
    """Memory that the engine may take, prefixes in ``cache_dir`` not included. None: what is free."""
    lora_path: Path | None = None
    """GGUF file of a LoRA adapter that is applied to the model; None: none."""
    gpu_layers: int | None = None
    """Layers on GPUs, the output counted as one; 0: none. None: all if llama.cpp has a GPU."""
    tensor_split: tuple[float, ...] = ()
    """Shares of the GPUs; empty: by free memory."""
    main_gpu: int | None = None
    """The only GPU to use; None: all GPUs."""
    gpu_memory_bytes: int | None = None
    """Most memory of each GPU; None: what is free."""
    share: float = 1.0
    """Largest part of the time that steps with prompts of others may take while there are any."""
    reports_dir: Path | None = None
    """Folder for reports of the engine's crashes; None: there are none."""
    niceness: int = 0
    """By how much the priority of the engine's process is lowered."""
    exact: bool = False
    """Logits that are the same bits with and without reuse, at a cost in speed: see ``exact.py``."""
    fake: bool = False
    """No model, only letters: see ``engine/fake/worker.py``."""
    check: bool = False
    """Check all invariants after every request (slow, for tests)."""
    check_idle: bool = False
    """Check all invariants when the last request has ended, which delays no request. A violation ends the process."""

    def __post_init__(self) -> None:
        counts = (self.cells, self.slots, self.max_waiting, self.threads)
        if any(count is not None and count < 1 for count in counts):
            raise LocalError("cells, slots, max_waiting and threads must be at least 1")
        if self.cells is not None and self.cells > MAX_CELLS:
            raise LocalError(f"{self.cells} cells are too many: at most {MAX_CELLS}")
        sizes_gib = ((self.ram_tier_mib or 0) / 1024, self.disk_tier_gib)
        if not all(0 <= size < MAX_TIER_GIB for size in sizes_gib):
            raise LocalError("the sizes of the second tier must be 0 or more, and less than 1 PiB")
        if not 2 * self.slots < self.sequences <= 256:
            raise LocalError(f"sequences must be more than twice the {self.slots} slots and at most 256")
        offload = Offload(self.gpu_layers, self.tensor_split, self.main_gpu)  # (checks itself)
        if self.exact and offload.asks_for_gpu:
            raise LocalError("exact mode computes on the processor only: leave out the GPU options")

    @property
    def num_threads(self) -> int:
        return self.threads or usable_cores()

    @property
    def ram_tier_bytes(self) -> int:
        """The memory tier's budget. Without a setting, reads the size of the free memory."""
        if self.ram_tier_mib is not None:
            return self.ram_tier_mib * MIB
        most = free_ram_tier_mib() * MIB
        return most if self.room_bytes is None else min(most, self.room_bytes // RAM_SHARE)


def sequences_for(slots: int) -> int:
    """The number of ``sequences`` for so many ``slots``."""
    return max(DEFAULT_SEQUENCES, 2 * slots + 1)


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int | None:
    """The memory of this machine that programs can still take; None where there is no /proc."""
    try:
        kib = available_kib(MEMINFO.read_text())
    except OSError:
        return None
    return None if kib is None else kib * 1024


def free_ram_tier_mib() -> int:
    """See ``default_ram_mib``; 0 where there is no /proc."""
    try:
        return default_ram_mib(MEMINFO.read_text())
    except OSError:
        return 0

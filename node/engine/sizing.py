"""The placement of layers on GPUs, and the number of KV cells that fit beside them. Pure arithmetic: callers measure.

The cells of a layer lie in the same memory as the layer, so the *fullest* memory limits the size of the cache:

    cells <= room(memory) / (layers in that memory * bytes of one cell in one layer)

Room is the memory that stays free after the weights and the buffers of a batch. It is an estimate: GPU libraries also
allocate memory, and in a few models the layers have different numbers of heads. So a part of each GPU stays free, and
``Llama`` tries a smaller cache when llama.cpp refuses the estimated size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.node.engine.backends import BUILD_CUDA, BUILD_VULKAN, no_gpu_reason
from mycelia.proto.wire.errors import LocalError

DEFAULT_CELLS = 8192
"""Default without a GPU. Attention reads all cells up to the last one in use, so more cells slow a processor down."""
MAX_GPU_CELLS = 65_536
"""Maximum of the default on GPUs: also for a GPU, the processor fills a mask with this many columns for every row of a
batch. Not yet measured on a GPU."""
MIB = 2**20
MICRO_BATCH_TOKENS = 512
"""Rows that llama.cpp computes at once; its buffers have this size."""
MIN_CELLS = 512
"""Minimum of the default: fewer cells can hardly hold one request."""
CELLS_STEP = 256
"""llama.cpp rounds the number of cells up to a multiple of this."""
GPU_SHARE = 0.8
"""The part of a GPU's free memory, after the weights, that the cells may take."""
SPARE_BYTES = 128 * MIB
"""Bytes that stay free in every memory, besides the buffers of a batch."""
MAX_GPUS = 16
"""The bound of llama.cpp."""
MAX_SHARE = 1_000_000
MAX_LAYERS = 10_000
"""The largest models have a few hundred layers; a larger number is a typing error."""


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp computes on. Sizes are 0 if the device does not report them."""

    name: str
    description: str
    kind: str
    """cpu, gpu, igpu (shares the host's memory), accel or meta."""
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Offload:
    """The user's options for GPUs. Raises LocalError for impossible values."""

    layers: int | None = None
    """Layers on GPUs; the output counts as one more layer. None: all layers if there is a GPU."""
    split: tuple[float, ...] = ()
    """Shares of the GPUs, in llama.cpp's order; a GPU without a share gets nothing. Empty: by free memory."""
    main_gpu: int | None = None
    """The only GPU to use; None: all GPUs."""
    memory_bytes: int | None = None
    """Most memory of each GPU for weights and cells; None: what is free."""

    def __post_init__(self) -> None:
        if self.layers is not None and not 0 <= self.layers <= MAX_LAYERS:
            raise LocalError(f"the GPU layers must be 0 to {MAX_LAYERS}, not {self.layers}")
        if len(self.split) > MAX_GPUS or not all(0 <= share <= MAX_SHARE for share in self.split):
            raise LocalError(f"the tensor split must be at most {MAX_GPUS} numbers, each 0 or more")
        if self.split and not sum(self.split) > 0:
            raise LocalError("the tensor split gives every GPU nothing")
        if self.main_gpu is not None and not 0 <= self.main_gpu < MAX_GPUS:
            raise LocalError(f"the main GPU must be 0 to {MAX_GPUS - 1}, not {self.main_gpu}")
        if self.main_gpu is not None and self.split:
            raise LocalError("a main GPU (all on one) and a tensor split (shares of several) exclude each other")

    @property
    def asks_for_gpu(self) -> bool:
        """Whether the options require a GPU."""
        return bool(self.layers) or (self.layers is None and (bool(self.split) or self.main_gpu is not None))


@dataclass(frozen=True)
class ModelShape:
    """The facts of a model file that sizes depend on."""

    num_layers: int
    trained_tokens: int
    """Longest sequence that the model was trained on; 0: unknown."""
    weight_bytes: int
    layer_cell_bytes: int
    """Keys and values of one token in one layer; in a hybrid model the mean of all layers."""
    batch_bytes: int
    """Estimated size of the buffers for one micro-batch; the logits are most of it."""

    @property
    def cell_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return self.num_layers * self.layer_cell_bytes


@dataclass(frozen=True)
class Placement:
    """The memories of the layers: ``counts[i]`` of the model's layers are on ``gpus[i]``, without the output."""

    num_layers: int
    offloaded: int
    """Layers on GPUs as llama.cpp counts them: the output is one more layer."""
    gpus: tuple[Device, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def host_layers(self) -> int:
        return self.num_layers - sum(self.counts)

    def describe(self) -> str:
        """A text such as "all 33 layers on CUDA0 (NVIDIA H200)"; empty when nothing is offloaded."""
        if not self.offloaded:
            return ""
        every = self.num_layers + 1
        layers = f"all {every} layers" if self.offloaded == every else f"{self.offloaded} of {every} layers"
        used = [gpu for gpu, count in zip(self.gpus, self.counts, strict=True) if count] or list(self.gpus[-1:])
        return f"{layers} on {', '.join(f'{gpu.name} ({gpu.description})' for gpu in used)}"


@dataclass(frozen=True)
class CellBudget:
    """The values, besides model and devices, that the default number of cells depends on."""

    slots: int
    host_bytes: int | None
    """Memory of the host for weights and cells; None: unknown, so it sets no bound."""


@dataclass(frozen=True)
class CellChoice:
    """The number of cells, and the reason if it is less than usual."""

    cells: int
    note: str = ""


def usable_gpus(devices: Sequence[Device], offload: Offload, backends: Sequence[str]) -> tuple[Device, ...]:
    """The GPUs that llama.cpp will spread the model over. Integrated GPUs are used only if there are no others.
    backends: the backends of this build of llama.cpp, such as CUDA and CPU. Raises LocalError when a GPU that the user
    asks for is missing."""
    gpus = [device for device in devices if device.kind == "gpu"]
    gpus = gpus or [device for device in devices if device.kind == "igpu"]
    if offload.layers == 0:
        return ()
    if not gpus and offload.asks_for_gpu:
        reason = no_gpu_reason(backends) or (
            f"llama.cpp is built for the processor alone: {BUILD_CUDA}, {BUILD_VULKAN}"
        )
        raise LocalError(f"{reason}; or leave out the GPU options")
    if offload.main_gpu is not None:
        if offload.main_gpu >= len(gpus):
            raise LocalError(f"there is no GPU {offload.main_gpu}: they are 0 to {len(gpus) - 1} here")
        return (gpus[offload.main_gpu],)
    if len(offload.split) > len(gpus):
        raise LocalError(f"the tensor split names {len(offload.split)} GPUs, there are {len(gpus)}")
    return tuple(gpus)


def place_layers(num_layers: int, offload: Offload, gpus: Sequence[Device]) -> Placement:
    """The memory in which llama.cpp will put each layer: the last layers on GPUs, in runs in proportion to the shares.
    gpus: the result of ``usable_gpus``, with the memory that is free *before* the weights are loaded."""
    wanted = num_layers + 1 if offload.layers is None else min(offload.layers, num_layers + 1)
    if not gpus or not wanted:
        return Placement(num_layers, 0)
    shares = [*offload.split, *(0.0 for _ in gpus[len(offload.split) :])] if offload.split else []
    shares = shares or [float(gpu.free_bytes) for gpu in gpus]
    if not sum(shares):
        shares = [1.0 for _ in gpus]
    counts = [0 for _ in gpus]
    first = num_layers + 1 - wanted
    for layer in range(first, num_layers):
        counts[_share_at((layer - first) / wanted, shares)] += 1
    return Placement(num_layers, wanted, tuple(gpus), tuple(counts))


def _share_at(position: float, shares: Sequence[float]) -> int:
    """The index of the share that contains ``position``, when all shares are scaled to fill 0..1 in order."""
    total, passed = sum(shares), 0.0
    for index, share in enumerate(shares):
        passed += share
        if position < passed / total:
            return index
    return len(shares) - 1


def free_after_weights(model: ModelShape, placement: Placement) -> list[int]:
    """An estimate of each GPU's free memory after the model is loaded, for a caller that does not load it."""
    taken = [model.weight_bytes * count // max(model.num_layers, 1) for count in placement.counts]
    return [max(gpu.free_bytes - size, 0) for gpu, size in zip(placement.gpus, taken, strict=True)]


def free_within(before: Sequence[Device], now: Sequence[Device], most_bytes: int | None) -> list[int]:
    """The memory of each GPU that may still be taken, with the weights loaded. before: the same GPUs before that."""
    if most_bytes is None:
        return [gpu.free_bytes for gpu in now]
    taken = [max(one.free_bytes - other.free_bytes, 0) for one, other in zip(before, now, strict=True)]
    return [min(gpu.free_bytes, max(most_bytes - size, 0)) for gpu, size in zip(now, taken, strict=True)]


def choose_cells(model: ModelShape, placement: Placement, gpu_free: Sequence[int], budget: CellBudget) -> CellChoice:
    """The default number of KV cells. Raises LocalError when not even ``MIN_CELLS`` fit. gpu_free: free bytes on each
    of the placement's GPUs with the weights loaded. When the processor holds layers, the result is ``DEFAULT_CELLS`` or
    as many as fit. With all layers on GPUs it is as many as fit, but no more than all slots can use."""
    wanted = DEFAULT_CELLS
    if placement.offloaded and not placement.host_layers:
        wanted = max(wanted, min(budget.slots * model.trained_tokens, MAX_GPU_CELLS))
    fitting, where, room = float("inf"), "", 0
    for name, layers, free in _memories(model, placement, gpu_free, budget):
        here = max(free, 0) / max(layers * model.layer_cell_bytes, 1)
        if layers and here < fitting:
            fitting, where, room = here, name, max(free, 0)
    cells = int(min(wanted, fitting)) // CELLS_STEP * CELLS_STEP
    if cells < MIN_CELLS:
        raise LocalError(
            f"no memory for the KV cache: {room // MIB} MiB are left {where} after the weights, and {MIN_CELLS} cells"
            f" take {-(-MIN_CELLS * model.cell_bytes // MIB)} MiB; free some, take a smaller"
            " --ram-tier, serve a smaller model, or give --cells"
        )
    if cells >= DEFAULT_CELLS:
        return CellChoice(cells)
    return CellChoice(cells, f"memory is short: {cells} KV cells instead of {DEFAULT_CELLS} fit {where}")


def _memories(
    model: ModelShape, placement: Placement, gpu_free: Sequence[int], budget: CellBudget
) -> list[tuple[str, int, int]]:
    """(name, layers, bytes for their cells) of every GPU and of the host, where the size of the memory is known."""
    host = budget.host_bytes
    memories = []
    for gpu, layers, free in zip(placement.gpus, placement.counts, gpu_free, strict=True):
        room = int(min(GPU_SHARE * free, free - model.batch_bytes - SPARE_BYTES))
        if gpu.total_bytes:
            memories.append((f"on {gpu.name}", layers, room))
    if host is not None:
        weights = model.weight_bytes * placement.host_layers // max(model.num_layers, 1)
        memories.append(
            ("in the host's memory", placement.host_layers, host - weights - model.batch_bytes - SPARE_BYTES)
        )
    return memories


def state_cells(slots: int, trained_tokens: int) -> int:
    """The default number of cells of a model without attention: its cells take no memory, they only count tokens."""
    return max(DEFAULT_CELLS, min(slots * trained_tokens, MAX_GPU_CELLS))


def choose_sequences(wanted: int, state_bytes: int, budget: CellBudget, gpu_free: Sequence[int] | None) -> int:
    """The number of sequences, each with room for a state, in a context of a recurrent or hybrid model: at most
    ``wanted``, and no more than take a part of the free memory, but enough for all slots. Raises LocalError when there
    is no memory for these. gpu_free: free bytes of the GPUs that hold the model; None: it is in the host's memory."""
    room = budget.host_bytes if gpu_free is None else sum(gpu_free)
    least = min(2 * budget.slots + 2, wanted)
    if room is None or not state_bytes:
        return wanted
    if least * state_bytes > room:
        raise LocalError(
            f"no memory for the states of {least} sequences: {max(room, 0) // MIB} MiB are left, and they take"
            f" {least * state_bytes // MIB} MiB; fewer --slots take less of it"
        )
    return max(least, min(wanted, room // STATES_SHARE // state_bytes))


STATES_SHARE = 8
"""The states of a context take at most the free memory divided by this, unless the slots need more."""

MAX_RAM_MIB = 4096
"""Maximum of the default: 190,000 tokens of a 135M model, 32,000 of an 8B model."""


RAM_SHARE = 4
"""The default is the available memory divided by this: three nodes on one machine still leave some memory free."""


def default_ram_mib(meminfo: str) -> int:
    """The default size of the memory tier in MiB. meminfo: text of Linux's /proc/meminfo. 0 (no tier) when the text
    does not say how much memory is available: a wrong guess could make the machine swap."""
    return min((available_kib(meminfo) or 0) // 1024 // RAM_SHARE, MAX_RAM_MIB)


def available_kib(meminfo: str) -> int | None:
    """The memory that programs can still take, in KiB; None when the text does not say."""
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0])
    return None

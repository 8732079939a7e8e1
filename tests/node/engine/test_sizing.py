"""The placement of layers and the number of KV cells on made-up machines, and an engine with GPUs that do not exist."""

from dataclasses import replace

import pytest

from mycelia.node.engine.child.llama import models
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.devices import read_shape
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.llama.models import find_gpus, list_backends, list_devices, model_params
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.engine.sizing import (
    DEFAULT_CELLS,
    MAX_GPU_CELLS,
    CellBudget,
    Device,
    ModelShape,
    Offload,
    choose_cells,
    choose_sequences,
    default_ram_mib,
    free_after_weights,
    free_within,
    place_layers,
    state_cells,
    usable_gpus,
)
from mycelia.proto.wire.errors import LocalError

GIB, MIB = 2**30, 2**20
CPU = Device("CPU", "a processor", "cpu", 16 * GIB, 16 * GIB)
SMALL_GPU = Device("CUDA0", "small", "gpu", 8 * GIB, 7 * GIB)
LARGE_GPU = Device("CUDA1", "large", "gpu", 24 * GIB, 21 * GIB)
CHIP = Device("Vulkan0", "on the chip", "igpu", 8 * GIB, 4 * GIB)

TINY = ModelShape(num_layers=30, trained_tokens=8192, weight_bytes=92 * MIB, layer_cell_bytes=768, batch_bytes=96 * MIB)
"""SmolLM2-135M: 23,040 bytes per cell, as in llama.cpp's log."""
LARGE = ModelShape(
    num_layers=32, trained_tokens=131_072, weight_bytes=5 * GIB, layer_cell_bytes=4096, batch_bytes=256 * MIB
)
"""Like an 8B model with 4 bits per weight: 128 KiB per cell."""


def test_a_gpu_of_which_a_node_may_take_a_part_has_less_room() -> None:
    before = [SMALL_GPU, LARGE_GPU]
    now = [replace(SMALL_GPU, free_bytes=4 * GIB), LARGE_GPU]
    assert free_within(before, now, None) == [4 * GIB, 21 * GIB]
    assert free_within(before, now, 6 * GIB) == [3 * GIB, 6 * GIB], "its weights take 3 of 6 on the first"
    assert free_within(before, now, 2 * GIB) == [0, 2 * GIB]


def test_the_second_tier_takes_its_part_of_the_memory_that_is_given() -> None:
    given = EngineSettings(resolve_model("smollm2"), room_bytes=256 * MIB)
    assert given.ram_tier_bytes <= 64 * MIB and replace(given, ram_tier_mib=100).ram_tier_bytes == 100 * MIB


# --- which GPUs ---------------------------------------------------------------------------------------------------


def test_integrated_gpus_count_only_where_there_are_no_others() -> None:
    assert usable_gpus([CPU, SMALL_GPU, CHIP], Offload(), ["CUDA", "CPU"]) == (SMALL_GPU,)
    assert usable_gpus([CPU, CHIP], Offload(), ["Vulkan", "CPU"]) == (CHIP,)
    assert usable_gpus([CPU], Offload(), ["CPU"]) == ()
    assert usable_gpus([SMALL_GPU, LARGE_GPU, CPU], Offload(main_gpu=1), ["CUDA", "CPU"]) == (LARGE_GPU,)
    assert usable_gpus([SMALL_GPU, CPU], Offload(layers=0), ["CUDA", "CPU"]) == ()
    assert usable_gpus([CPU], Offload(layers=0, main_gpu=3), ["CPU"]) == ()


@pytest.mark.parametrize("offload", [Offload(layers=1), Offload(main_gpu=0), Offload(split=(1.0,))])
def test_a_gpu_that_is_asked_for_but_not_there(offload: Offload) -> None:
    with pytest.raises(LocalError, match="make node CUDA=1"):
        usable_gpus([CPU], offload, ["CPU"])
    with pytest.raises(LocalError, match=r"built for CUDA but sees no GPU.*driver"):
        usable_gpus([CPU], offload, ["CUDA", "CPU"])


def test_more_gpus_named_than_there_are() -> None:
    with pytest.raises(LocalError, match="no GPU 2: they are 0 to 1"):
        usable_gpus([SMALL_GPU, LARGE_GPU], Offload(main_gpu=2), ["CUDA"])
    with pytest.raises(LocalError, match="names 3 GPUs, there are 2"):
        usable_gpus([SMALL_GPU, LARGE_GPU], Offload(split=(1, 1, 1)), ["CUDA"])


BAD_OFFLOADS = [
    {"gpu_layers": -1},
    {"gpu_layers": 10**6},
    {"tensor_split": (1.0, -1.0)},
    {"tensor_split": (float("nan"),)},
    {"tensor_split": (float("inf"),)},
    {"tensor_split": (0.0, 0.0)},
    {"tensor_split": (1.0,) * 17},
    {"main_gpu": 16},
    {"main_gpu": -1},
    {"main_gpu": 0, "tensor_split": (1.0,)},
]


@pytest.mark.parametrize("fields", BAD_OFFLOADS)
def test_what_cannot_be_meant_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        EngineSettings(resolve_model("smollm2"), **fields)  # type: ignore[arg-type]


# --- which layers -------------------------------------------------------------------------------------------------

PLACES: list[tuple[Offload, list[Device], int, tuple[int, ...]]] = [
    (Offload(), [], 0, ()),
    (Offload(layers=0), [], 0, ()),
    (Offload(), [SMALL_GPU], 33, (32,)),
    (Offload(layers=99), [SMALL_GPU], 33, (32,)),
    (Offload(layers=32), [SMALL_GPU], 32, (31,)),
    (Offload(layers=10), [SMALL_GPU], 10, (9,)),
    (Offload(layers=1), [SMALL_GPU], 1, (0,)),  # the output alone
    (Offload(), [SMALL_GPU, LARGE_GPU], 33, (9, 23)),  # 7 : 21 GiB free
    (Offload(split=(3, 1)), [SMALL_GPU, LARGE_GPU], 33, (25, 7)),
    (Offload(split=(1,)), [SMALL_GPU, LARGE_GPU], 33, (32, 0)),
    (Offload(split=(0, 1)), [SMALL_GPU, LARGE_GPU], 33, (0, 32)),
]


@pytest.mark.parametrize(("offload", "gpus", "offloaded", "counts"), PLACES)
def test_layers_are_placed_as_llama_cpp_places_them(
    offload: Offload, gpus: list[Device], offloaded: int, counts: tuple[int, ...]
) -> None:
    placement = place_layers(32, offload, gpus)
    assert (placement.offloaded, placement.counts) == (offloaded, counts)
    assert placement.host_layers + sum(counts) == 32


def test_gpus_that_do_not_tell_their_memory_share_evenly() -> None:
    silent = replace(SMALL_GPU, total_bytes=0, free_bytes=0)
    assert place_layers(32, Offload(), [silent, silent]).counts == (17, 15)


def test_a_placement_is_told_in_one_line() -> None:
    assert place_layers(32, Offload(), [SMALL_GPU]).describe() == "all 33 layers on CUDA0 (small)"
    assert place_layers(32, Offload(layers=5), [LARGE_GPU]).describe() == "5 of 33 layers on CUDA1 (large)"
    both = place_layers(32, Offload(), [SMALL_GPU, LARGE_GPU]).describe()
    assert both == "all 33 layers on CUDA0 (small), CUDA1 (large)"
    assert place_layers(32, Offload(), []).describe() == ""


# --- how many cells -----------------------------------------------------------------------------------------------

BOTH = [SMALL_GPU, LARGE_GPU]
SILENT = replace(CHIP, total_bytes=0, free_bytes=0)

CELLS: list[tuple[str, ModelShape, Offload, list[Device], CellBudget, int]] = [
    ("processor, plenty", TINY, Offload(), [], CellBudget(8, 8 * GIB), DEFAULT_CELLS),
    ("processor, unknown memory", LARGE, Offload(), [], CellBudget(8, None), DEFAULT_CELLS),
    ("processor, short", LARGE, Offload(), [], CellBudget(8, 6 * GIB), 5120),
    ("the slots can use no more", TINY, Offload(), [LARGE_GPU], CellBudget(2, 0), 16_384),
    ("the bound", TINY, Offload(), [LARGE_GPU], CellBudget(8, 0), MAX_GPU_CELLS),
    ("no fewer than on a processor", TINY, Offload(), [LARGE_GPU], CellBudget(1, 0), DEFAULT_CELLS),
    ("what fits on the GPU", LARGE, Offload(), [SMALL_GPU], CellBudget(8, 0), 13_056),
    ("a large GPU", LARGE, Offload(), [LARGE_GPU], CellBudget(8, 0), MAX_GPU_CELLS),
    ("two GPUs, the small one is full first", LARGE, Offload(split=(1, 1)), BOTH, CellBudget(8, 0), 53_504),
    ("the processor takes part", TINY, Offload(layers=10), [LARGE_GPU], CellBudget(8, GIB), DEFAULT_CELLS),
    ("the processor takes part and is short", LARGE, Offload(layers=17), [LARGE_GPU], CellBudget(8, 3 * GIB), 2048),
    ("all but the output on the GPU", LARGE, Offload(layers=33), [LARGE_GPU], CellBudget(8, 0), MAX_GPU_CELLS),
    ("a GPU that does not tell", LARGE, Offload(), [SILENT], CellBudget(1, 0), 65_536),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "offload", "gpus", "budget", "cells"), [c[1:] for c in CELLS], ids=[c[0] for c in CELLS]
)
def test_cells_by_default(
    shape: ModelShape, offload: Offload, gpus: list[Device], budget: CellBudget, cells: int
) -> None:
    placement = place_layers(shape.num_layers, offload, gpus)
    choice = choose_cells(shape, placement, free_after_weights(shape, placement), budget)
    assert choice.cells == cells
    assert choice.cells % 256 == 0
    assert bool(choice.note) == (cells < DEFAULT_CELLS)


def test_the_chosen_cells_fit_in_every_memory() -> None:
    for gib in range(6, 40):
        gpus = [replace(SMALL_GPU, free_bytes=gib * GIB // 4), replace(LARGE_GPU, free_bytes=gib * GIB)]
        placement = place_layers(LARGE.num_layers, Offload(), gpus)
        free = free_after_weights(LARGE, placement)
        choice = choose_cells(LARGE, placement, free, CellBudget(8, GIB))
        for left, layers in zip(free, placement.counts, strict=True):
            assert choice.cells * layers * LARGE.layer_cell_bytes <= 0.8 * left


def test_no_room_at_all_is_one_clear_line() -> None:
    with pytest.raises(LocalError, match=r"0 MiB are left in the host's memory .* 512 cells take 64 MiB"):
        choose_cells(LARGE, place_layers(32, Offload(), []), [], CellBudget(8, 5 * GIB))
    gpu = replace(SMALL_GPU, free_bytes=5 * GIB + 400 * MIB)
    placement = place_layers(32, Offload(), [gpu])
    with pytest.raises(LocalError, match="on CUDA0 after the weights"):
        choose_cells(LARGE, placement, free_after_weights(LARGE, placement), CellBudget(8, 64 * GIB))


# --- the real library ---------------------------------------------------------------------------------------------


def test_the_devices_of_this_machine() -> None:
    devices, backends = list_devices(), list_backends()
    processor = next(device for device in devices if device.kind == "cpu")
    assert processor.name == "CPU" and processor.total_bytes > MIB and "CPU" in backends
    assert bool(find_gpus(Offload())) == any(device.kind in ("gpu", "igpu") for device in devices)
    assert find_gpus(Offload(layers=0)) == ()


def test_what_the_library_is_told() -> None:
    nothing = model_params(Offload(layers=0), ())
    assert (nothing.n_gpu_layers, nothing.split_mode, nothing.main_gpu) == (0, L.LLAMA_SPLIT_MODE_NONE, -1)
    assert model_params(Offload(layers=7), (SMALL_GPU,)).n_gpu_layers == 7
    everything = model_params(Offload(), (SMALL_GPU, LARGE_GPU))
    assert (everything.n_gpu_layers, everything.split_mode) == (-1, L.LLAMA_SPLIT_MODE_LAYER)
    assert not everything.tensor_split
    one = model_params(Offload(main_gpu=1), (LARGE_GPU,))
    assert (one.split_mode, one.main_gpu) == (L.LLAMA_SPLIT_MODE_NONE, 1)
    split = model_params(Offload(split=(3, 1)), (SMALL_GPU, LARGE_GPU)).tensor_split
    assert split[: L.llama_max_devices()] == [3.0, 1.0] + [0.0] * (L.llama_max_devices() - 2)


def small_llama(cells: int | CellBudget, offload: Offload | None = None) -> Llama:
    path = resolve_model("smollm2")
    return Llama(path, num_cells=cells, num_sequences=5, num_threads=1, batch_tokens=64, offload=offload)


def test_the_shape_of_a_model_is_as_the_library_sees_it() -> None:
    llama = small_llama(512)
    assert read_shape(L, llama.model, resolve_model("smollm2")) == replace(TINY, weight_bytes=96_576_768)
    assert llama.num_cells == 512 and llama.can_abort and not llama.cells_note


def test_a_model_on_a_gpu_that_only_we_believe_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without GPUs ignores the parameters and computes; all other code behaves as with a GPU."""
    gpu = replace(SMALL_GPU, free_bytes=400 * MIB)
    monkeypatch.setattr(models, "list_devices", lambda: [gpu, CPU])
    llama = small_llama(CellBudget(8, 0), Offload(split=(1.0,)))
    assert llama.placement.describe() == "all 31 layers on CUDA0 (small)"
    assert not llama.can_abort
    assert llama.num_cells == 7936 and "memory is short" in llama.cells_note


def test_a_cache_that_is_refused_is_tried_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    open_context, tried = Llama.open_context, []

    def refuse_large(self: Llama, path: object, num_cells: int, *rest: int) -> object:
        tried.append(num_cells)
        if num_cells > 3000:
            raise LocalError("no memory")
        return open_context(self, path, num_cells, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Llama, "open_context", refuse_large)
    llama = small_llama(CellBudget(8, None))
    assert tried == [8192, 4096, 2048] and llama.num_cells == 2048
    assert "4096 KV cells did not fit" in llama.cells_note
    with pytest.raises(LocalError, match="no memory"):
        small_llama(4096)  # (an explicit number is exact)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("MemTotal: 99 kB\nMemAvailable:    8388608 kB\n", 2048),
        ("MemAvailable: 999999999 kB\n", 4096),
        ("MemAvailable: 3000 kB\n", 0),
        ("MemAvailable: \n", 0),
        ("MemAvailable: many kB\n", 0),
        ("", 0),
    ],
)
def test_the_default_is_a_quarter_of_what_is_free(text: str, mib: int) -> None:
    assert default_ram_mib(text) == mib


@pytest.mark.parametrize(
    ("state_mib", "budget", "gpu_free", "expected"),
    [
        (1, CellBudget(8, 64 * GIB), None, 65),
        (20, CellBudget(8, 8 * GIB), None, 51),  # (an eighth of the memory)
        (20, CellBudget(8, 2 * GIB), None, 18),  # (what the slots need)
        (20, CellBudget(2, 2 * GIB), None, 12),
        (20, CellBudget(8, None), None, 65),
        (20, CellBudget(8, GIB), [6 * GIB, 2 * GIB], 51),
    ],
)
def test_sequences_take_a_part_of_the_memory(
    state_mib: int, budget: CellBudget, gpu_free: list[int] | None, expected: int
) -> None:
    assert choose_sequences(65, state_mib * MIB, budget, gpu_free) == expected


def test_no_room_for_the_states_of_all_slots_is_one_clear_line() -> None:
    with pytest.raises(LocalError, match="no memory for the states of 18 sequences: 300 MiB are left"):
        choose_sequences(65, 20 * MIB, CellBudget(8, 300 * MIB), None)


def test_cells_that_take_no_memory_count_tokens() -> None:
    assert state_cells(8, 512) == DEFAULT_CELLS and state_cells(8, 4096) == 32_768
    assert state_cells(8, 1_000_000) == MAX_GPU_CELLS

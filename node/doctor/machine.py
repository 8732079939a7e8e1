"""The state of this machine for a node, and the faults that would stop it. Starts one short process. Writes nothing,
except that a packaged model in parts is put together.

Reads the file system, /proc and, through ``engine/probe.py``, llama.cpp. Every error becomes a problem in the report,
never an exception.
"""

import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from mycelia.node.doctor.network import Line
from mycelia.node.doctor.processor import unused_instructions
from mycelia.node.engine.backends import BUILD_CUDA, BUILD_VULKAN, no_gpu_reason, unusable_backend
from mycelia.node.engine.kinds import TEXT, described
from mycelia.node.engine.models import is_fake
from mycelia.node.engine.probe.probe import Library, Model, Problem, Question, probe
from mycelia.node.engine.settings import EngineSettings, available_memory_bytes, usable_cores
from mycelia.node.engine.sizing import Device
from mycelia.node.errors import one_line
from mycelia.node.models.find import find_model, served_name
from mycelia.node.version import VERSION
from mycelia.proto.cache.tier import GIB, MIB
from mycelia.proto.wire.errors import LocalError

LEAST_DISK_BYTES = 16 * MIB
"""Enough for a node's identity and state, with room to spare."""
PACKAGED_MODEL = "smollm2"
NVIDIA_DEVICE = Path("/dev/nvidia0")
"""It exists when NVIDIA's driver runs and has a GPU."""
DRM_DEVICES = Path("/sys/class/drm")
"""Linux lists the GPUs here that programs may compute on, as renderD128 and so on."""
_VULKAN_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}
"""Makers of GPUs by their PCI numbers."""


class LlamaCpp(Struct, frozen=True):
    version: str
    bindings_version: str
    built_for: list[str]
    """Backends such as CUDA and CPU, with or without such a device."""
    can_offload: bool


class ModelReport(Struct, frozen=True):
    """How a node would run the model, unless its command line differs."""

    name: str
    path: str
    description: str
    weight_bytes: int
    reuse: str
    """prefix, checkpoints or none."""
    reuse_reason: str
    layers: int
    """The output counts as one, as in ``--gpu-layers``."""
    gpu_layers: int
    offload: str
    """Which layers go to which GPUs, for people; empty: none."""
    cells: int
    cells_bytes: int
    context_tokens: int
    kind: str = TEXT
    """text, embedding or rerank."""


class Report(Struct, frozen=True):
    """The shape of ``mycelia doctor --json``. Strings are single lines; None means unknown."""

    ok: bool
    problems: list[str]
    """Reasons why no node could run, each with its fix."""
    hints: list[str]
    """Things that work, but could work better."""
    mycelia: str
    python: str
    llama_cpp: LlamaCpp | None
    devices: list[Device]
    cores: int
    memory_free_bytes: int | None
    data_dir: str
    disk_free_bytes: int | None
    packaged_model: str | None
    model: ModelReport | None
    outlook: list[Line] = []
    """Ports, bootstrap peers, clock and reachability; empty: not checked."""
    faults: list[Line] = []
    """The ``problems`` of this machine, each with its subject: llama.cpp, data or model."""


def with_outlook(report: Report, outlook: list[Line]) -> Report:
    """``report`` with the findings about the network; faults among them are problems too."""
    wrong = [one_line(f"{line.what}: {line.says}; {line.fix}") for line in outlook if not line.ok]
    problems = [*report.problems, *wrong]
    return msgspec.structs.replace(report, outlook=outlook, problems=problems, ok=not problems)


def examine(model: str, data_dir: Path) -> Report:
    """Check everything; blocks for about a second. model: a registered name or a path."""
    path, model_problem = (None, "") if is_fake(model) else _find(model)
    settings, memory = EngineSettings(path or Path(model)), available_memory_bytes()
    host_bytes = None if memory is None else memory - settings.ram_tier_bytes
    findings = probe(Question(settings.slots, settings.cells or 0, host_bytes), path)
    library = next((finding for finding in findings if isinstance(finding, Library)), None)
    found = next((finding for finding in findings if isinstance(finding, Model)), None)
    disk_bytes, disk_problem = _disk(data_dir)
    blamed = "llama.cpp" if library is None else "model"
    told = [
        ("model", model_problem),
        *((blamed, finding.message) for finding in findings if isinstance(finding, Problem)),
        ("data", disk_problem),
    ]
    faults = [Line(what, False, one_line(problem)) for what, problem in told if problem]
    packaged, _ = _find(PACKAGED_MODEL)
    return Report(
        ok=not faults,
        problems=[fault.says for fault in faults],
        hints=_hints(library, found),
        mycelia=VERSION,
        python=platform.python_version(),
        llama_cpp=_llama_cpp(library) if library else None,
        devices=_devices(library, memory) if library else [],
        cores=usable_cores(),
        memory_free_bytes=memory,
        data_dir=one_line(str(data_dir)),
        disk_free_bytes=disk_bytes,
        packaged_model=one_line(str(packaged)) if packaged else None,
        model=_model(one_line(served_name(model, path)), one_line(str(path)), found) if found and path else None,
        faults=faults,
    )


def _find(model: str) -> tuple[Path | None, str]:
    """The model's file, or the reason why there is none."""
    try:
        return find_model(model), ""
    except LocalError as exc:
        return None, str(exc)


def _disk(data_dir: Path) -> tuple[int | None, str]:
    """Free bytes where the data directory is or would be made, and the fault there."""
    place = data_dir.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
        free = usage.free
    except OSError as exc:
        return None, f"cannot read the data directory {data_dir}: {exc.strerror}; choose another with --data-dir"
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK) and usage.total):  # (/proc has no size)
        return free, f"cannot write to the data directory {data_dir}; choose another with --data-dir"
    if free < LEAST_DISK_BYTES:
        return free, f"the disk of the data directory {data_dir} is full: free some, or choose another with --data-dir"
    return free, ""


def _llama_cpp(library: Library) -> LlamaCpp:
    return LlamaCpp(library.llama_cpp, library.bindings, library.built_for, library.can_offload)


def _devices(library: Library, memory: int | None) -> list[Device]:
    devices = []
    for device in library.devices:
        # ggml reports all memory of a processor as free.
        free = memory if device.kind == "cpu" and memory is not None else device.free_bytes
        text = one_line(device.description)
        devices.append(Device(one_line(device.name), text, device.kind, device.total_bytes, free))
    return devices


def _hints(library: Library | None, model: Model | None) -> list[str]:
    hints = []
    if library and not any(device.kind in ("gpu", "igpu") for device in library.devices):
        started = [name for name in library.built_for if name not in library.unusable]
        hints += [one_line(unusable_backend(name, reason)) for name, reason in library.unusable.items()]
        if reason := no_gpu_reason(started):
            hints.append(reason)
        if NVIDIA_DEVICE.exists() and "CUDA" not in library.built_for:
            hints.append(f"there is an NVIDIA GPU, and llama.cpp is not built for it: {BUILD_CUDA}")
        elif (vendor := _vulkan_vendor()) and "Vulkan" not in library.built_for:
            hints.append(f"there is a GPU of {vendor}, and llama.cpp is not built for it: {BUILD_VULKAN}")
    if library and (hint := unused_instructions(library.features)):
        hints.append(hint)
    if model and model.cells_note:
        hints.append(model.cells_note)
    if model and model.chat_problem:
        hints.append(f"this model serves /v1/completions, but no conversations: {one_line(model.chat_problem)}")
    return hints


def _vulkan_vendor() -> str:
    """The maker of a GPU that Vulkan can use; empty: there is none."""
    for file in sorted(DRM_DEVICES.glob("render*/device/vendor")):
        with suppress(OSError):
            if vendor := _VULKAN_VENDORS.get(file.read_text().strip()):
                return vendor
    return ""


def _model(name: str, path: str, found: Model) -> ModelReport:
    kept = "its KV cache can be shared, which a node tests when it starts"
    reuse = "checkpoints" if found.keeps_states else "prefix"
    states = "it keeps one state per sequence, so prompts begin at states that were saved in host memory or on disk"
    why = states if found.keeps_states else kept
    return ModelReport(
        name=name,
        path=path,
        description=one_line(found.description),
        weight_bytes=found.weight_bytes,
        reuse=reuse if found.kind == TEXT else "none",
        reuse_reason=why if found.kind == TEXT else f"it is {described(found.kind)}, which keeps nothing of a text",
        layers=found.layers,
        gpu_layers=found.gpu_layers,
        offload=one_line(found.offload),
        cells=found.cells,
        cells_bytes=found.cells_bytes,
        context_tokens=min(filter(None, (found.cells, found.trained_tokens)), default=0),
        kind=found.kind,
    )


def lines(report: Report) -> list[str]:
    llama, model = report.llama_cpp, report.model
    rows = [("mycelia", f"{report.mycelia}, Python {report.python}")]
    if llama is not None:
        versions = f"{llama.version or 'of unknown version'} (llama-cpp-python {llama.bindings_version})"
        offloads = "yes" if llama.can_offload else "no"
        rows.append(("llama.cpp", f"{versions}, built for {', '.join(llama.built_for)}; offloads to a GPU: {offloads}"))
    for device in report.devices:
        sizes = f"{_size(device.free_bytes)} of {_size(device.total_bytes)} free" if device.total_bytes else "no sizes"
        rows.append(("device", f"{device.name} ({device.kind}): {device.description}, {sizes}"))
    rows.append(("processor", f"{report.cores} usable cores"))
    rows.append(("memory", f"{_size(report.memory_free_bytes)} free"))
    rows.append(("data", f"{report.data_dir}, {_size(report.disk_free_bytes)} free"))
    rows.append(("packaged", f"{PACKAGED_MODEL}: {report.packaged_model or 'not installed'}"))
    if model is not None:
        cells = f"{model.cells} cells take {_size(model.cells_bytes)}; context of {model.context_tokens} tokens"
        what = f"{described(model.kind)}, {model.description}, {_size(model.weight_bytes)}"
        rows.append(("model", f"{model.name}: {what}"))
        rows.append(("  layers", model.offload or f"all {model.layers} on the processor"))
        rows.append(("  reuse", f"{model.reuse}: {model.reuse_reason}"))
        if model.kind == TEXT:
            rows.append(("  KV cache", cells))
    wrong = {fault.what for fault in report.faults}
    told = [("ok", name, text) for name, text in rows if name not in wrong]
    told += [
        ("ok" if line.ok else "!!", line.what, "; ".join(filter(None, (line.says, line.fix))))
        for line in (*report.faults, *report.outlook)
    ]
    told += [("--", "hint", hint) for hint in report.hints]
    return [f"{mark:<3} {name:<11} {one_line(text)}" for mark, name, text in told]


def _size(num_bytes: int | None) -> str:
    if num_bytes is None:
        return "unknown"
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"

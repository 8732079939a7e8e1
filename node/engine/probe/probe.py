"""Finds out what llama.cpp can do on this machine, for ``mycelia doctor``. A child process asks it, as it may abort().

The child is ``worker.py``. It prints one JSON object per line, the library first: the lines before a death count.
"""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from mycelia.node.engine.backends import missing_library_fix
from mycelia.node.engine.child_process import child_environment, without_folder
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.sizing import Device

DEADLINE_S = 120.0
"""Maximum time to start Python, wake the GPUs and read a model's metadata."""
PROBE_COMMAND = (sys.executable, "-P", "-m", "mycelia.node.engine.probe.worker")


class Question(Struct, frozen=True):
    """The settings of the engine that would be started, without the model's path."""

    slots: int
    cells: int
    """0: the default number, or as many as fit."""
    host_bytes: int | None
    """Memory for weights and cells; None: unknown."""
    gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    main_gpu: int | None = None


class Library(Struct, frozen=True, tag="library"):
    llama_cpp: str
    bindings: str
    """Version of llama-cpp-python."""
    built_for: list[str]
    """Backends such as CUDA and CPU, with or without such a device."""
    can_offload: bool
    devices: list[Device]
    unusable: dict[str, str] = {}
    """The backends among them that did not start on this machine, with the reasons."""
    features: list[str] = []
    """Instructions of processors that this build uses, such as AVX2."""


class Card(Struct, frozen=True):
    """What a model is, for people."""

    architecture: str
    parameters: int
    quantisation: str
    has_template: bool
    thinks: bool
    reads_tools: bool
    """Whether its template describes functions."""
    format: str
    """See ``node/formats``."""
    cell_bytes: int
    buffer_bytes: int


class Model(Struct, frozen=True, tag="model"):
    """The engine's decisions for a model."""

    description: str
    weight_bytes: int
    trained_tokens: int
    keeps_states: bool
    layers: int
    """Number of layers; the output counts as one, as in ``--gpu-layers``."""
    gpu_layers: int
    offload: str
    cells: int
    cells_bytes: int
    cells_note: str
    chat_problem: str = ""
    """The reason why the model cannot chat; empty: it can."""
    card: Card | None = None
    kind: str = TEXT
    """See ``kinds.py``. For the other kinds there are no cells."""


class Problem(Struct, frozen=True, tag="problem"):
    message: str


Finding = Library | Model | Problem
_decoder = msgspec.json.Decoder(Finding)


def probe(question: Question, model: Path | None) -> list[Finding]:
    """The facts about llama.cpp and, if one is given, about a model. Blocks for some tenths of a second. Never raises:
    an error is a Problem."""
    try:
        done = subprocess.run(
            [*PROBE_COMMAND, msgspec.json.encode(question).decode(), str(model or "")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=child_environment(),
            timeout=DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Problem(f"llama.cpp said nothing for {DEADLINE_S:.0f} s: look at the GPU's driver")]
    except OSError as exc:
        return [Problem(f"cannot start a process for llama.cpp: {exc}")]
    findings: list[Finding] = []
    for line in done.stdout.splitlines():
        with suppress(msgspec.MsgspecError):  # (a driver may print, too)
            findings.append(_decoder.decode(line))
    if done.returncode != 0:
        findings.append(Problem(_death(done, was_over_model=bool(findings))))
    return findings


def free_gpu_bytes() -> int:
    """The free memory of all GPUs that llama.cpp sees. Blocks and never raises, as ``probe``."""
    found = probe(Question(slots=1, cells=0, host_bytes=None), None)
    devices = [device for one in found if isinstance(one, Library) for device in one.devices]
    return sum(device.free_bytes for device in devices if device.kind == "gpu")


def _death(done: subprocess.CompletedProcess[bytes], *, was_over_model: bool) -> str:
    words = done.stderr.decode("utf-8", "replace").split("\n")
    last = next((without_folder(line.strip()) for line in reversed(words) if line.strip()), "no last words")
    how = f"exit {done.returncode}"
    if done.returncode < 0:
        how = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
    if was_over_model:
        return f"llama.cpp died over the model ({how}: {last}): the file is damaged, or of a kind that it cannot load"
    fix = missing_library_fix(last) or "'make setup' builds it"
    return f"llama.cpp cannot be used ({how}: {last}): {fix}"

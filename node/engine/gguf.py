"""What a GGUF file holds, by its first bytes and its name: a model that can be served, a part of one, or another thing.

Only the beginning is read: the fields that name the kind of file come first, before the vocabulary. A header that
cannot be read is no fault here, as llama.cpp, which reads all of it, says what is wrong.
"""

import re
import struct
from pathlib import Path
from typing import BinaryIO

from mycelia.proto.wire.errors import LocalError

_MAGIC = b"GGUF"
_MAX_FIELDS, _MAX_TEXT_BYTES, _MAX_ITEMS = 256, 65_536, 1_024
"""Bounds of what is read: fields, bytes of a text, items of a list (one for each layer)."""
_Value = str | int | float | list["_Value"]
_SIZES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

_DIFFUSERS = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_PROJECTOR = "the part of a model that sees images or hears sound: give the file of the model itself, which reads text"
_ADAPTER = "a LoRA adapter, which changes another model: serve that one, and give the adapter with --lora NAME=FILE"
_OTHERS = {
    "clip": _PROJECTOR,
    "controlvector": "a control vector, which steers another model: give the file of a model",
    "imatrix": "an importance matrix, which helps to quantize a model: give the file of a model",
    "t5": "a model that translates one text into another, in two halves: serve a model that continues a text",
    "wavtokenizer-dec": "a model that makes sound from tokens: give the file of a text model",
    "t5encoder": "the reading half of a T5, which llama.cpp computes in its own way: serve another embedding model",
    **dict.fromkeys(_DIFFUSERS, "a diffusion model, which does not write token by token: serve one that does"),
}
"""Architecture, or type -> what the file is, and what to do."""
_TYPES = {"mmproj": _PROJECTOR, "adapter": _ADAPTER, "imatrix": _OTHERS["imatrix"]}
_NO_WEIGHTS = "a vocabulary without a model: give the file of the model itself"


def check_file(path: Path) -> None:
    """Raise LocalError, in one line, if ``path`` cannot be read or is no file of a model that can be served."""
    num_tensors, fields = _read_header(path)
    kind, architecture = (str(fields.get(f"general.{name}", "")) for name in ("type", "architecture"))
    what = _TYPES.get(kind) or _OTHERS.get(architecture)
    if what is None and num_tensors == 0:
        what = _NO_WEIGHTS
    if what is not None:
        raise LocalError(f"cannot serve {path}: it is {what}")


def check_adapter(path: Path) -> None:
    """Raise LocalError, in one line, if ``path`` cannot be read or is no LoRA adapter."""
    _, fields = _read_header(path)
    if fields.get("general.type") != "adapter" or fields.get("adapter.type", "lora") != "lora":
        raise LocalError(f"{path} is no LoRA adapter: llama.cpp's convert_lora_to_gguf.py makes one")


def _read_header(path: Path) -> tuple[int | None, dict[str, _Value]]:
    """The number of tensors and some fields. Raises LocalError."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise LocalError(f"{path} is not a GGUF file")
            return _header(file)
    except (OSError, ValueError) as exc:
        raise LocalError(f"cannot read the model {path}: {getattr(exc, 'strerror', None) or exc}") from exc


def num_cached_heads(path: Path) -> int | None:
    """How many heads, over all layers, keep keys and values of a token: in hybrid models only some layers do. None: the
    header does not say, or cannot be read."""
    try:
        _, fields = _read_header(path)
    except LocalError:
        return None
    kind = fields.get("general.architecture")
    heads, layers, interval = (
        fields.get(f"{kind}.{name}") for name in ("attention.head_count_kv", "block_count", "full_attention_interval")
    )
    if isinstance(heads, list):
        counts = [count for count in heads if isinstance(count, int) and count >= 0]
        return sum(counts) if len(counts) == len(heads) else None
    if not isinstance(heads, int) or not isinstance(layers, int):
        return None
    return heads * (layers // interval if isinstance(interval, int) and interval > 0 else layers)


def parts_of(path: Path) -> list[Path]:
    """All files of the model of which ``path`` is one, in order: ``NAME-00001-of-00003.gguf`` and so on, or ``path``
    alone."""
    return [path.parent / name for name in parts_of_name(path.name)]


def parts_of_name(name: str) -> list[str]:
    """The names of all files of the model, of which ``name`` is one."""
    found = _PART.fullmatch(name)
    if found is None:
        return [name]
    num_parts = int(found[3])
    if not 1 <= int(found[2]) <= num_parts:
        return [name]
    return [f"{found[1]}-{number:05}-of-{num_parts:05}.gguf" for number in range(1, num_parts + 1)]


def check_parts(path: Path) -> Path:
    """The first file of the model of which ``path`` is one; llama.cpp finds the others by its name. Raises LocalError
    that names a file which is missing or no part of a model."""
    parts = parts_of(path)
    for part in parts:
        if len(parts) > 1 and not part.exists():
            raise LocalError(f"{part} is missing: the model has {len(parts)} parts, which lie in one folder")
    check_file(parts[0])
    return parts[0]


def name_of(path: Path) -> str:
    """The file's name without its ending and its number as a part."""
    found = _PART.fullmatch(path.name)
    return found[1] if found is not None else path.stem


def _header(file: BinaryIO) -> tuple[int | None, dict[str, _Value]]:
    """(number of tensors, the first fields); (None, {}) if the header cannot be read."""
    fields: dict[str, _Value] = {}
    num_tensors: int | None = None
    try:
        _, tensors, num_fields = struct.unpack("<IQQ", _read(file, 20))
        num_tensors = tensors
        for _ in range(min(num_fields, _MAX_FIELDS)):
            name, kind = _text(file), struct.unpack("<I", _read(file, 4))[0]
            fields[name] = _value(file, kind)
    except (struct.error, KeyError, UnicodeDecodeError, _LongError):
        pass
    return num_tensors, fields


class _LongError(Exception):
    """A text or list is too long to be read here."""


def _value(file: BinaryIO, kind: int) -> _Value:
    if kind == _TEXT:
        return _text(file)
    if kind == _LIST:
        item_kind, length = struct.unpack("<IQ", _read(file, 12))
        if length > _MAX_ITEMS or item_kind == _LIST:
            raise _LongError
        return [_value(file, item_kind) for _ in range(length)]
    form = "<" + _SIZES[kind]
    number: int | float = struct.unpack(form, _read(file, struct.calcsize(form)))[0]
    return number


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _read(file, 8))
    if length > _MAX_TEXT_BYTES:
        raise _LongError
    return _read(file, length).decode()


def _read(file: BinaryIO, size: int) -> bytes:
    """Exactly ``size`` bytes. Raises struct.error at the end of the file."""
    data = file.read(size)
    if len(data) != size:
        raise struct.error("the file ends")
    return data

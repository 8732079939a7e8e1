"""Small GGUF files, a real one in several parts, as llama.cpp's gguf-split makes them, and one with few layers."""

import atexit
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mycelia.node.engine.gguf import parts_of
from mycelia.node.engine.models import resolve_model
from tests import profiles

ALIGNMENT = 32
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def text_field(name: str, value: str) -> bytes:
    return text(name) + struct.pack("<I", 8) + text(value)


def header(num_tensors: int, fields: Sequence[bytes]) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(fields)) + b"".join(fields)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


@dataclass
class _Tensor:
    name: bytes
    shape_and_type: bytes
    data: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, kind: str) -> int:
        return int(struct.unpack("<" + kind, self.take(struct.calcsize(kind)))[0])

    def skip(self, kind: int) -> None:
        if kind == 8:
            self.take(self.number("Q"))
        elif kind == 9:
            kind, length = self.number("I"), self.number("Q")
            if kind in _SIZES:
                self.take(length * _SIZES[kind])
            else:
                for _ in range(length):
                    self.skip(kind)
        else:
            self.take(_SIZES[kind])


def _read(path: Path) -> tuple[list[bytes], list[_Tensor]]:
    reader = _Reader(path.read_bytes())
    reader.take(8)
    num_tensors, num_fields = reader.number("Q"), reader.number("Q")
    fields, tensors, offsets = [], [], []
    for _ in range(num_fields):
        start = reader.at
        reader.take(reader.number("Q"))
        reader.skip(reader.number("I"))
        fields.append(reader.data[start : reader.at])
    for _ in range(num_tensors):
        name = reader.take(reader.number("Q"))
        start = reader.at
        reader.take(8 * reader.number("I") + 4)
        tensors.append(_Tensor(name, reader.data[start : reader.at], b""))
        offsets.append(reader.number("Q"))
    base = reader.at + -reader.at % ALIGNMENT
    ends = sorted([*offsets, len(reader.data) - base])
    for tensor, offset in zip(tensors, offsets, strict=True):
        tensor.data = reader.data[base + offset : base + ends[ends.index(offset) + 1]]
    return fields, tensors


@functools.cache
def quick_model() -> Path:
    """SmolLM2 with 2 of its 30 layers, which computes a prompt in a tenth of the time. With --full: the whole model."""
    whole = resolve_model("smollm2")
    if profiles.is_full():
        return whole
    folder = TemporaryDirectory(prefix="quick-model-")
    atexit.register(folder.cleanup)
    return shallow(whole, Path(folder.name) / "smollm2.gguf", 2)


def shallow(model: Path, to: Path, num_layers: int) -> Path:
    """The file ``to``: ``model`` with its first layers only. Its vocabulary and widths are the model's, its answers are
    nonsense."""
    fields, tensors = _read(model)
    count = b".block_count" + struct.pack("<I", 4)
    fields = [field[:-4] + struct.pack("<I", num_layers) if field[:-4].endswith(count) else field for field in fields]
    dropped = tuple(f"blk.{number}.".encode() for number in range(num_layers, 100))
    return _write(to, fields, [tensor for tensor in tensors if not tensor.name.startswith(dropped)])


def split(model: Path, folder: Path, num_parts: int) -> list[Path]:
    """The files of ``model`` in ``num_parts`` parts."""
    fields, tensors = _read(model)
    paths = parts_of(folder / f"{model.stem}-00001-of-{num_parts:05}.gguf")
    size = -(-len(tensors) // num_parts)
    for number, path in enumerate(paths):
        own = tensors[number * size : (number + 1) * size]
        told = [*(fields if number == 0 else []), text("split.no") + struct.pack("<IH", 2, number)]
        told += [text("split.count") + struct.pack("<IH", 2, num_parts)]
        told += [text("split.tensors.count") + struct.pack("<Ii", 5, len(tensors))]
        _write(path, told, own)
    return paths


def _write(path: Path, fields: Sequence[bytes], tensors: Sequence[_Tensor]) -> Path:
    head, offset = header(len(tensors), fields), 0
    for tensor in tensors:
        head += struct.pack("<Q", len(tensor.name)) + tensor.name + tensor.shape_and_type + struct.pack("<Q", offset)
        offset += len(padded(tensor.data))
    path.write_bytes(padded(head) + b"".join(padded(tensor.data) for tensor in tensors))
    return path

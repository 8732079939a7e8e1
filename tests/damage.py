"""Damage to a node's files, for the tests of these files and of whole nodes."""

import os
from pathlib import Path

import pytest

CUT_BYTES = 64


def damaged(whole: bytes) -> list[bytes]:
    """``whole`` cut at each 64th byte and just before its end, with one bit of each byte flipped, and grown."""
    cuts = [whole[:end] for end in [*range(0, len(whole), CUT_BYTES), len(whole) - 1]]
    flips = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    return [*cuts, *flips, whole + b"x", b"\xff" * len(whole)]


def fill_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes ``folder`` a full disk: from now on a file opened there for writing takes no byte."""
    real_open = os.open

    def full_open(path: str | Path, flags: int, mode: int = 0o777, **options: int) -> int:
        is_written = flags & (os.O_WRONLY | os.O_RDWR) and Path(path).is_relative_to(folder)
        if not is_written:
            return real_open(path, flags, mode, **options)
        os.close(real_open(path, flags, mode, **options))
        return real_open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", full_open)


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of every file in ``folder``."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

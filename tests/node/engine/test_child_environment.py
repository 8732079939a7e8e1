"""The environment of engine processes: large blocks of memory go back to the system."""

import os
import platform
import subprocess
import sys

import pytest

from mycelia.node.engine.child_process import child_environment

PIECES = """
import ctypes

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]


libc.mallinfo2.restype = Mallinfo2
before = libc.mallinfo2().hblkhd
libc.free(libc.malloc(3 << 20))
libc.malloc(2 << 20)
print(libc.mallinfo2().hblkhd - before >= 2 << 20)
"""
"""Prints whether a block is still mapped on its own after a longer block was freed."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")  # (2.33 or later)
def test_large_pieces_of_memory_go_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert _printed(dict(os.environ)) == "False", "then the setting is not needed any more"
    assert _printed(child_environment()) == "True"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert child_environment()["MALLOC_MMAP_THRESHOLD_"] == "65536"


def _printed(environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", PIECES]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

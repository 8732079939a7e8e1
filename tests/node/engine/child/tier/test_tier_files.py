"""The files of the disk tier: damage costs only the damaged file, and is a miss."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from mycelia.node.engine.child.tier.tier_files import EdgeFiles
from mycelia.proto.cache.edges import Edge
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens
from tests.damage import contents, damaged, fill_disk

KEY = b"k" * 16
BLOB = bytes(range(100))


def an_edge(first: int, blob: bytes = BLOB) -> Edge:
    edge = Edge(first, pack_tokens([first, 2, 3, 4, 5, 6]), 1, 6, blake3(blob).digest(), Reuse(0.0))
    edge.blob, edge.blob_bytes = memoryview(blob), len(blob)
    return edge


@contextmanager
def opened(folder: Path) -> Iterator[EdgeFiles]:
    files = EdgeFiles(folder, KEY)
    yield files
    files.close()


def write(files: EdgeFiles, edge: Edge) -> bool:
    files.write(edge)
    ((_, written),) = files.finished(10.0)
    return written


def readable(files: EdgeFiles) -> dict[bytes, bytes]:
    """Tokens -> blob, for all files in the folder with correct hashes."""
    found = {}
    for one in files.scan()[0]:
        edge = Edge(0, one.packed, one.start, len(one.packed) // 4, one.content_hash, Reuse(0.0))
        edge.blob_bytes = one.blob_bytes
        blob = files.read(edge)
        if blob is not None and blake3(blob).digest() == one.content_hash:
            found[one.packed] = bytes(blob)
    return found


def test_every_damage_costs_one_file(tmp_path: Path) -> None:
    good, other = an_edge(1), an_edge(9)
    with opened(tmp_path) as files:
        assert write(files, good) and write(files, other)
        path = files.path(good)
        whole = path.read_bytes()
        for data in damaged(whole):
            path.write_bytes(data)
            assert readable(files) == {other.packed: BLOB}
            assert not path.exists() or len(data) == len(whole), "only changed blobs wait until they are read"
        path.write_bytes(whole)
        assert readable(files) == {good.packed: BLOB, other.packed: BLOB}


def test_a_state_has_a_file_beside_the_cells_of_the_same_tokens(tmp_path: Path) -> None:
    cells, state = an_edge(1), an_edge(1)
    state.start = state.end
    assert state.is_state and not cells.is_state
    with opened(tmp_path) as files:
        assert write(files, cells) and write(files, state)
        assert sorted(found.start for found in files.scan()[0]) == [1, 6]
        blob = files.read(state)
        assert blob is not None and bytes(blob) == BLOB


def test_what_cannot_be_read_costs_one_file(tmp_path: Path) -> None:
    good, other = an_edge(1), an_edge(9)
    with opened(tmp_path) as files:
        assert write(files, good) and write(files, other)
        files.path(good).unlink()
        files.path(good).mkdir()
        assert readable(files) == {other.packed: BLOB}
        assert files.scan()[1] == [files.path(good).name] and files.path(good).is_dir()
        assert files.read(good) is None


def test_a_full_disk_costs_nothing_that_was_written_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, other = an_edge(1), an_edge(9)
    with opened(tmp_path) as files:
        assert write(files, good)
        before = contents(files.path(good).parent)
        with monkeypatch.context() as full:
            fill_disk(full, tmp_path)
            assert not write(files, other) and not write(files, good)
        assert files.failure == "No space left on device"
        assert contents(files.path(good).parent) == before
    with opened(tmp_path) as files:
        assert readable(files) == {good.packed: BLOB} and write(files, other)


def test_what_a_killed_writer_left_half_written_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as files:
        assert write(files, an_edge(1))
        half = files.path(an_edge(9)).with_suffix(f".{os.getpid()}.tmp")
        half.write_bytes(b"half")
        assert readable(files) == {an_edge(1).packed: BLOB} and not half.exists()

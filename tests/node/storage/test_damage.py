"""Unsealed files of a data directory, damaged in every way: the error is one clear line, and no file is lost."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mycelia.node.storage.identity_file import IDENTITY_FILE, load_or_create_identity
from mycelia.node.storage.rundir import RunInfo, find_running, locked, next_epoch, write_run_info
from mycelia.proto.wire.errors import LocalError
from tests.damage import contents, damaged, fill_disk


def test_a_damaged_identity_is_told_and_kept_or_does_not_matter(tmp_path: Path) -> None:
    """Damage does not matter where only a digit's case changed. The identity is never another node's."""
    identity = load_or_create_identity(tmp_path)
    path = tmp_path / IDENTITY_FILE
    whole = path.read_bytes()
    told = []
    for data in damaged(whole):
        path.write_bytes(data)
        try:
            assert load_or_create_identity(tmp_path) == identity
        except LocalError as exc:
            told.append(str(exc))
        assert contents(tmp_path) == {IDENTITY_FILE: data}
    assert len(told) > len(whole) // 2 and all(str(path) in line and "\n" not in line for line in told)
    path.write_bytes(whole)
    assert load_or_create_identity(tmp_path) == identity


def test_an_identity_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / IDENTITY_FILE).mkdir()
    with pytest.raises(LocalError, match=f"cannot use the identity file .*{IDENTITY_FILE}: Is a directory"):
        load_or_create_identity(tmp_path)


def test_no_identity_is_half_made_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        fill_disk(full, tmp_path)
        with pytest.raises(LocalError, match="No space left on device"):
            load_or_create_identity(tmp_path)
    assert contents(tmp_path) == {}
    identity = load_or_create_identity(tmp_path)
    with monkeypatch.context() as full:
        fill_disk(full, tmp_path)
        assert load_or_create_identity(tmp_path) == identity


def test_a_damaged_run_file_is_a_node_or_none(tmp_path: Path) -> None:
    info = RunInfo(1, "http://127.0.0.1:1", "peer", "key")
    path = tmp_path / "node.json"
    with locked(tmp_path):
        write_run_info(tmp_path, info)
        for data in damaged(path.read_bytes()):
            path.write_bytes(data)
            found = find_running(tmp_path)
            assert found is None or isinstance(found, RunInfo)
        write_run_info(tmp_path, info)
        assert find_running(tmp_path) == info and json.loads(path.read_bytes()) == asdict(info)


def test_files_of_any_size_cost_no_memory(tmp_path: Path) -> None:
    load_or_create_identity(tmp_path)
    for name in (IDENTITY_FILE, "epoch", "node.json"):
        with (tmp_path / name).open("ab") as file:
            file.truncate(2**40)  # (sparse)
    with pytest.raises(LocalError, match="is damaged"):
        load_or_create_identity(tmp_path)
    assert next_epoch(tmp_path, 1_800_000_000.0) == 1_800_000_000_000
    with locked(tmp_path):
        assert find_running(tmp_path) is None


def test_a_run_file_on_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path), monkeypatch.context() as full:
        fill_disk(full, tmp_path)
        with pytest.raises(LocalError, match=r"node\.json: No space left on device"):
            write_run_info(tmp_path, RunInfo(1, "http://127.0.0.1:1", "peer"))

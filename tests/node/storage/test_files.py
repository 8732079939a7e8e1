import os
import stat
from pathlib import Path

import pytest

from mycelia.node.storage.files import replacing
from tests.damage import contents


def test_a_file_is_replaced_when_all_is_written_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"before")
    with replacing(path, "draft") as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert contents(tmp_path) == {"kept": b"after"}
    with pytest.raises(ValueError, match="non-hexadecimal"), replacing(path, "draft"):
        bytes.fromhex("half")
    assert contents(tmp_path) == {"kept": b"after"}


def test_what_a_killed_writer_left_decides_neither_the_mode_nor_the_place(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    (tmp_path / "draft").symlink_to(elsewhere)
    with replacing(tmp_path / "kept", "draft") as file:
        file.write(b"secret")
    assert contents(tmp_path) == {"elsewhere": b"untouched", "kept": b"secret"}
    assert not (tmp_path / "kept").is_symlink()
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600


def test_a_file_that_another_process_has_just_made_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    with pytest.raises(FileExistsError), replacing(path, "draft", keeps=True):
        path.write_bytes(b"early")
    assert contents(tmp_path) == {"identity": b"early"}


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", link)
    with replacing(tmp_path / "identity", "draft", is_synced=True, keeps=True) as file:
        file.write(b"whole")
    assert contents(tmp_path) == {"identity": b"whole"}

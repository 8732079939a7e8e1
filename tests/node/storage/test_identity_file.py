"""The identity file is made once, is private and is never overwritten."""

import stat
from pathlib import Path

import pytest

from mycelia.node.storage.identity_file import IDENTITY_FILE, load_or_create_identity
from mycelia.proto.wire.errors import LocalError


def test_is_created_once_and_private(tmp_path: Path) -> None:
    first = load_or_create_identity(tmp_path / "data")
    path = tmp_path / "data" / IDENTITY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_identity(tmp_path / "data") == first
    assert [entry.name for entry in path.parent.iterdir()] == [IDENTITY_FILE]


def test_a_readable_file_is_made_private_again(tmp_path: Path) -> None:
    load_or_create_identity(tmp_path)
    (tmp_path / IDENTITY_FILE).chmod(0o644)
    load_or_create_identity(tmp_path)
    assert stat.S_IMODE((tmp_path / IDENTITY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:40], lambda data: data[:-3] + b"00\n"])
def test_a_damaged_file_is_reported_and_kept(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    load_or_create_identity(tmp_path)
    path = tmp_path / IDENTITY_FILE
    path.write_bytes(damaged := damage(path.read_bytes()))
    with pytest.raises(LocalError, match="is damaged; restore it from a backup"):
        load_or_create_identity(tmp_path)
    assert path.read_bytes() == damaged


def test_an_unusable_directory_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot use the identity file"):
        load_or_create_identity(tmp_path / "file")

"""The archive is whole or absent, and has nothing that was named as private."""

import tarfile
from pathlib import Path

import pytest

from mycelia.node.diagnostics.archive import pack
from mycelia.node.diagnostics.redact import Redactor


def test_what_one_part_shows_as_a_name_is_replaced_in_all(tmp_path: Path) -> None:
    parts = {"node.log": "node.example.org: no such name", "config.toml": 'bootstrap = ["/dns/node.example.org/tcp/1"]'}
    pack(parts, Redactor(texts=parts.values()), tmp_path / "report.tar.gz")
    with tarfile.open(tmp_path / "report.tar.gz") as packed:
        file = packed.extractfile("report/node.log")
        assert file is not None and file.read() == b"[name 1]: no such name"


def test_an_archive_that_was_not_finished_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.tar.gz"

    def full() -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mycelia.node.diagnostics.archive.time.time", full)
    with pytest.raises(OSError, match="No space"):
        pack({"node.log": "x"}, Redactor(), path)
    assert not path.exists(), "or the next try would be refused"
    path.touch()
    with pytest.raises(FileExistsError):
        pack({"node.log": "x"}, Redactor(), path)
    assert path.exists(), "it is somebody else's"

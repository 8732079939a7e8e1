"""All sealed files of a node: they are written atomically, checked on load and set aside when damaged."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing

from mycelia.node.storage.files import write_atomically
from mycelia.node.storage.known_peers import PEERS_FILE, KnownPeer
from mycelia.node.storage.rundir import next_epoch
from mycelia.node.storage.saving import FLOORS_FILE, TRUST_FILE, KeptTrust
from mycelia.node.storage.sealed import MAX_ASIDE, MAX_FILE_BYTES, SealedFile
from mycelia.proto.admission.trust import Offender
from mycelia.proto.digests.floors import Floor
from mycelia.proto.routing.observed import Observation
from mycelia.proto.wire.errors import LocalError
from tests.damage import contents, damaged, fill_disk

FLOORS = [Floor(bytes([number] * 38), bytes(16), 1_760_000_000_000, number, 1_760_000_000.5) for number in range(3)]
PEERS = [KnownPeer(b"p" * 38, ("/ip4/192.0.2.1/tcp/7117",), (bytes(16),), 60.0, 1_760_000_000.5)]
TRUST = KeptTrust([Offender(b"o" * 38, 10.5, 1.5, 601.5)], [Observation(b"p" * 38, 0.5, 2.5, 3, 1.5)])
FILES: list[tuple[SealedFile[Any], Any, Any]] = [
    (FLOORS_FILE, FLOORS[:1], FLOORS),
    (PEERS_FILE, PEERS[:1], PEERS * 2),
    (TRUST_FILE, TRUST, replace(TRUST, offenders=TRUST.offenders * 2)),
]
"""(file, a value for it, a later value for it)."""

every_file = pytest.mark.parametrize(("file", "value", "next_value"), FILES, ids=lambda one: getattr(one, "name", ""))


@every_file
def test_what_was_saved_is_loaded(tmp_path: Path, file: SealedFile[Any], value: Any, next_value: Any) -> None:
    assert file.load(tmp_path) is None and file.peek(tmp_path) is None
    for one in (next_value, value):
        file.save(tmp_path, one)
        assert file.load(tmp_path) == file.peek(tmp_path) == one
    assert contents(tmp_path).keys() == {file.name}
    assert (tmp_path / file.name).stat().st_mode & 0o777 == 0o600


@every_file
def test_every_damage_is_noticed_and_set_aside(
    tmp_path: Path, file: SealedFile[Any], value: Any, next_value: Any
) -> None:
    path = tmp_path / file.name
    file.save(tmp_path, value)
    whole = path.read_bytes()
    for data in damaged(whole):
        path.write_bytes(data)
        assert file.peek(tmp_path) is None and contents(tmp_path) == {file.name: data}
        with structlog.testing.capture_logs() as logs:
            assert file.load(tmp_path) is None
        aside = path.with_suffix(".damaged")
        assert contents(tmp_path) == {aside.name: data}
        assert [(line["event"], line["now"]) for line in logs] == [("file_set_aside", str(aside))]
        aside.unlink()
    path.write_bytes(whole)
    assert file.load(tmp_path) == value


@every_file
def test_what_cannot_be_read_is_set_aside_unchanged(
    tmp_path: Path, file: SealedFile[Any], value: Any, next_value: Any
) -> None:
    path = tmp_path / file.name
    path.mkdir()  # (root may read every file)
    (path / "inside").write_bytes(b"something")
    assert file.load(tmp_path) is None
    assert (path.with_suffix(".damaged") / "inside").read_bytes() == b"something"
    file.save(tmp_path, value)
    assert file.load(tmp_path) == value


@every_file
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: SealedFile[Any], value: Any, next_value: Any
) -> None:
    file.save(tmp_path, value)
    before = contents(tmp_path)
    with monkeypatch.context() as full:
        fill_disk(full, tmp_path)
        with pytest.raises(LocalError, match=f"cannot write .*{file.name}: No space left on device"):
            file.save(tmp_path, next_value)
    assert contents(tmp_path) == before
    file.save(tmp_path, next_value)
    assert file.load(tmp_path) == next_value


def test_a_value_of_another_kind_is_damage(tmp_path: Path) -> None:
    """An older or newer version may have written it."""
    SealedFile(FLOORS_FILE.name, dict[str, int], "").save(tmp_path, {"a": 1})
    assert FLOORS_FILE.load(tmp_path) is None and (tmp_path / "floors.damaged").exists()


def test_what_was_set_aside_before_is_kept_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / FLOORS_FILE.name
    for number in range(MAX_ASIDE + 3):
        path.write_bytes(b"%d" % number)
        assert FLOORS_FILE.load(tmp_path) is None
    kept = contents(tmp_path)
    assert len(kept) == MAX_ASIDE and kept["floors.damaged"] == b"0" and kept["floors.damaged-7"] == b"6"


def test_what_cannot_be_set_aside_stays_and_the_node_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FLOORS_FILE.name
    path.write_bytes(b"damaged")

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    assert FLOORS_FILE.load(tmp_path) is None and path.read_bytes() == b"damaged"


def test_a_file_of_any_size_costs_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / FLOORS_FILE.name
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES * 1_000)  # (sparse)
    assert FLOORS_FILE.load(tmp_path) is None
    with pytest.raises(LocalError, match="too many"):
        SealedFile("large", bytes, "").save(tmp_path, bytes(MAX_FILE_BYTES))


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    """The format is the BLAKE3 hash of the rest, then msgpack."""
    FLOORS_FILE.save(tmp_path, FLOORS)
    body = (tmp_path / FLOORS_FILE.name).read_bytes()[16:]
    assert msgspec.msgpack.decode(body)[0]["seq"] == 0


# --- the files that are not sealed ----------------------------------------------------------------------------------


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    path.with_name("epoch.tmp").write_bytes(b"half writ")
    write_atomically(path, b"whole")
    assert contents(tmp_path) == {"epoch": b"whole"}
    path.with_name("epoch.tmp").mkdir()
    with pytest.raises(LocalError, match="Is a directory"):
        write_atomically(path, b"new")
    assert contents(tmp_path) == {"epoch": b"whole"}


def test_a_damaged_epoch_is_made_anew_and_never_sinks(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    last = next_epoch(tmp_path, now)
    path = tmp_path / "epoch"
    whole = path.read_bytes()
    for data in damaged(whole):
        path.write_bytes(data)
        assert last < next_epoch(tmp_path, now + 1) < last + 3_700_000, data
        assert contents(tmp_path).keys() == {"epoch"}


def test_an_epoch_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next_epoch(tmp_path, 1_800_000_000.0)
    before = contents(tmp_path)
    with monkeypatch.context() as full:
        fill_disk(full, tmp_path)
        with pytest.raises(LocalError, match="No space left on device"):
            next_epoch(tmp_path, 1_800_000_001.0)
    assert contents(tmp_path) == before
    os.remove(tmp_path / "epoch")
    (tmp_path / "epoch").mkdir()
    with pytest.raises(LocalError, match="cannot write"):
        next_epoch(tmp_path, 1_800_000_001.0)

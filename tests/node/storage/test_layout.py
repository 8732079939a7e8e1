"""The layout of a data directory: earlier ones are read and brought to today's, later ones are refused."""

import json
import shutil
import time
from pathlib import Path

import pytest
import structlog
import structlog.testing

from mycelia.node.storage.files import write_atomically
from mycelia.node.storage.identity_file import load_or_create_identity
from mycelia.node.storage.layout import FIRST, LAYOUT, LAYOUT_FILE, layout_of, open_layout
from mycelia.node.storage.private_swarms import read_swarm, state_dir_of, swarm_names
from mycelia.node.storage.rundir import next_epoch
from mycelia.node.storage.saving import load_kept
from mycelia.node.telemetry.journal import read_journal
from mycelia.node.telemetry.usage import FOLDER as USAGE
from mycelia.node.telemetry.usage import read_usage
from mycelia.proto.wire.errors import LocalError

LAYOUTS = Path(__file__).parent / "layouts"
"""Data directories of earlier versions, as their nodes left them; made by ``make_layout.py`` there."""


@pytest.mark.parametrize("version", sorted(path.name for path in LAYOUTS.iterdir() if path.is_dir()))
def test_the_directory_of_an_earlier_version_is_read_whole(version: str, tmp_path: Path) -> None:
    """Each file that the earlier version wrote keeps its content, and none is set aside as damaged."""
    here = tmp_path / "data"
    shutil.copytree(LAYOUTS / version, here)
    expected = json.loads((here / "expected.json").read_text("utf-8"))
    (here / "expected.json").unlink()
    here.chmod(0o700)
    for path in here.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)  # (git keeps no other permissions)
    with structlog.testing.capture_logs() as logs:
        open_layout(here)
    assert [line["event"] for line in logs] == ["data_migrated"] * (LAYOUT - FIRST) and layout_of(here) == LAYOUT
    assert load_or_create_identity(here).peer_id.hex() == expected["peer"]
    now = time.time()
    kept = load_kept(here, now)
    found = {
        "known": [address for one in kept.known.rows(now) for address in one.addresses],
        "floors": len(kept.floors),
        "observations": len(kept.trust.observations),
        "offenders": len(kept.trust.offenders),
        "requests": list({record.row.id: None for record in read_journal(here)}),
        "usage": sum(row.requests for row in read_usage(here / USAGE, "")),
        "swarms": swarm_names(here),
    }
    assert found == {name: expected[name] for name in found}
    for name in swarm_names(here):
        assert len(read_swarm(here, name).roster.members) == expected["members"]
        assert len(load_kept(state_dir_of(here, name), now).known) == expected["known_members"]
    assert next_epoch(here, expected["epoch"] / 1000) > expected["epoch"]
    assert not list(here.rglob("*.damaged*"))


def test_a_new_directory_gets_todays_number(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        open_layout(tmp_path)
    assert not logs, "nothing is migrated"
    assert (tmp_path / LAYOUT_FILE).read_text() == f"{LAYOUT}\n"
    before = (tmp_path / LAYOUT_FILE).stat().st_ino
    open_layout(tmp_path)
    assert (tmp_path / LAYOUT_FILE).stat().st_ino == before  # (nothing is written again)


def test_a_later_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / LAYOUT_FILE).write_text(f"{LAYOUT + 1}\n")
    (tmp_path / "peers.msgpack").write_bytes(b"of tomorrow")
    with pytest.raises(LocalError, match=f"layout {LAYOUT + 1}; this version knows {LAYOUT}"):
        open_layout(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAYOUT_FILE, "peers.msgpack"]


@pytest.mark.parametrize("text", [b"", b"two", b"0", b"-1", b"9" * 50])
def test_a_damaged_number_is_no_guess(text: bytes, tmp_path: Path) -> None:
    (tmp_path / LAYOUT_FILE).write_bytes(text)
    with pytest.raises(LocalError, match="is damaged"):
        open_layout(tmp_path)


def test_every_step_runs_in_order_and_an_interrupted_one_again(tmp_path: Path) -> None:
    """As if there were two more layouts."""
    is_cut = True

    def first(data_dir: Path) -> None:
        write_atomically(data_dir / "one", b"1")

    def second(data_dir: Path) -> None:
        assert (data_dir / "one").read_bytes() == b"1"
        if is_cut:
            raise KeyboardInterrupt
        (data_dir / "one").rename(data_dir / "two")

    with pytest.raises(KeyboardInterrupt):
        open_layout(tmp_path, [first, second])
    assert layout_of(tmp_path) == FIRST + 1
    is_cut = False
    open_layout(tmp_path, [first, second])
    assert layout_of(tmp_path) == FIRST + 2 and (tmp_path / "two").exists()

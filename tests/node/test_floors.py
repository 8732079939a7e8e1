"""Version floors on disk."""

from pathlib import Path

import pytest
import trio

from node.floors import FLOORS_FILE, keep_floors, load_floors, save_floors
from proto.floors import Floor, Floors

FLOORS = [Floor(bytes([number] * 38), bytes(16), 1_760_000_000_000, number, 1_760_000_000.5) for number in range(3)]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert load_floors(tmp_path) == []
    save_floors(tmp_path, FLOORS)
    assert load_floors(tmp_path) == FLOORS


@pytest.mark.parametrize("damage", [b"", b"\x93", b"\xff" * 40, b"\xa1x"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FLOORS_FILE).write_bytes(damage)
    assert load_floors(tmp_path) == []
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [damage]
    save_floors(tmp_path, FLOORS)
    assert load_floors(tmp_path) == FLOORS


def test_every_changed_byte_and_every_cut_is_noticed(tmp_path: Path) -> None:
    """A flipped bit of a version would keep a peer's digests out for ever."""
    path = tmp_path / FLOORS_FILE
    save_floors(tmp_path, FLOORS)
    whole = path.read_bytes()
    damaged = [whole[:end] for end in range(0, len(whole), 8)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for data in [*damaged, whole + b"x"]:
        path.write_bytes(data)
        assert load_floors(tmp_path) == [], data
    path.write_bytes(whole)
    assert load_floors(tmp_path) == FLOORS


async def test_they_are_saved_by_and_by_and_at_the_end(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    floors = FLOORS[:1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_floors, tmp_path, lambda: list(floors))
        await trio.sleep(100)  # of virtual time
        assert load_floors(tmp_path) == FLOORS[:1]
        floors += FLOORS[1:]
        nursery.cancel_scope.cancel()
    assert load_floors(tmp_path) == FLOORS


async def test_a_directory_that_cannot_be_written_ends_nothing(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_floors, tmp_path / "gone", lambda: FLOORS)
        await trio.sleep(200)  # of virtual time
        nursery.cancel_scope.cancel()


def test_floors_never_sink_and_are_bounded() -> None:
    floors = Floors(2, keep_s=10.0)
    owner, namespace = FLOORS[0].owner, FLOORS[0].namespace
    for epoch, seq in [(5, 5), (5, 4), (4, 9)]:
        floors.set(Floor(owner, namespace, epoch, seq, 100.0))
    assert floors.refuse(owner, namespace, (5, 5)) and not floors.refuse(owner, namespace, (5, 6))
    for floor in FLOORS[1:]:
        floors.set(floor)
    assert list(floors) == FLOORS[1:]
    floors.expire(FLOORS[0].at + 11.0)
    assert len(floors) == 0

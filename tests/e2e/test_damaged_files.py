"""With any damage to its files, a node starts and reports what was lost, or reports in one line why it does not."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from mycelia.node.client.local import fetch_requests
from mycelia.node.local_swarm.processes import LocalSwarm
from mycelia.node.storage.layout import LAYOUT_FILE
from mycelia.node.telemetry.crashes import LOG_FILE
from mycelia.proto.wire.errors import LocalError
from tests.damage import contents
from tests.e2e.conftest import DEADLINE_S, ask, run_mycelia

pytestmark = pytest.mark.e2e

OPTIONS = ["--model", "fake"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1] = b"?"
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(b"\xff" * 2_000_000)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def aside_of(path: Path) -> Path:
    return path.with_suffix(".damaged")


def remove(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


DAMAGES: list[Callable[[Path], None]] = [cut, empty, flip, grow, become_a_folder]
SEALED = {"floors.msgpack", "trust.msgpack", "peers.msgpack"}
JOURNAL = "requests.journal"
TOGETHER: list[set[str]] = [
    *({"identity.key"}, {LAYOUT_FILE}, {"epoch"}, {"lock"}),
    *({JOURNAL, "node.json", LOG_FILE}, SEALED),
]
"""Files that are damaged before one start: each must be lost, or not, without the others."""
REFUSED: list[set[str]] = [{"identity.key"}, {LAYOUT_FILE}]
"""Without the content of these files a node does not start."""


@pytest.mark.parametrize(
    "damage",
    [pytest.param(one, marks=[] if one in (cut, become_a_folder) else pytest.mark.nightly) for one in DAMAGES],
    ids=lambda damage: damage.__name__,
)
async def test_a_node_with_a_damaged_file_starts_or_says_why_not(
    swarm: LocalSwarm, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The node is killed, so that files that exist only while it runs remain too. Undamaged files are used again."""
    with trio.fail_after(2 * DEADLINE_S):
        first = await swarm.start("damaged", options=OPTIONS)
        peer = (await first.wait_ready()).peer
        await ask(first, "Hi", "--max-tokens", "2")
        await first.stop()  # (this saves the state that is saved at the end)
        node = await swarm.start("damaged", options=OPTIONS)
        assert (await node.wait_ready()).peer == peer
        node.kill()
        await node.process.wait()
        files = filter(Path.is_file, node.data_dir.iterdir())  # (for the folder of usage: test_usage.py)
        left = {path.name: path.read_bytes() for path in files if path.name != "mycelia.node.log"}
        assert left.keys() == set[str]().union(*TOGETHER)
        for names in TOGETHER:
            for other, data in left.items():
                (node.data_dir / other).write_bytes(data)
            paths = [node.data_dir / name for name in sorted(names)]
            for path in paths:
                damage(path)
            damaged = contents(node.data_dir)
            again = await swarm.start("damaged", options=OPTIONS)
            try:
                info = await again.wait_ready()
            except LocalError:
                words = [str(event["event"]) for event in again.events]
                assert names in REFUSED or paths[0].is_dir(), (names, words)
                assert again.process.returncode == 1 and any(str(path) in words[-1] for path in paths), (names, words)
                assert not any("Traceback" in line for line in words)
            else:
                assert info.peer == peer and names != {"identity.key"}
                rows = await fetch_requests(info)
                assert JOURNAL in names or [row.status for row in rows] == ["answered"]
                again.kill()
                await again.process.wait()
            kept = contents(node.data_dir)
            for other in (SEALED | {JOURNAL, "lock", "identity.key", LAYOUT_FILE}) - names:
                assert kept[other] == left[other], f"{other} was intact"
            if names == SEALED:
                told = [event for event in again.events if event.get("event") == "file_set_aside"]
                aside = [(path.name, str(aside_of(path))) for path in paths]
                assert sorted((str(event["file"]), str(event["now"])) for event in told) == aside
                for path in paths:
                    assert path.name not in damaged or kept[aside_of(path).name] == damaged[path.name]
                    remove(aside_of(path))
            for path in filter(Path.is_dir, paths):
                remove(path)


@contextmanager
def small_disk(path: Path, num_bytes: int) -> Iterator[Path]:
    """A separate file system. Skips the test where mounting is not allowed."""
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes},mode=700", "none", str(path)]
    if shutil.which("mount") is None or subprocess.run(["mount", *options], check=False).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4_096))


async def test_a_full_disk_costs_nothing_that_was_there(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Neither at the start, which is refused in one line, nor while a node runs, which continues."""
    with trio.fail_after(3 * DEADLINE_S), small_disk(tmp_path / "disk", 512 * 1024) as disk:
        data_dir = disk / "data"
        options = [*OPTIONS, "--debug", "--data-dir", str(data_dir)]
        here = ("--data-dir", str(data_dir))
        node = await swarm.start("full", options=options)
        info = await node.wait_ready()
        assert (await run_mycelia("ask", *here, "--max-tokens", "2", "Hi")).returncode == 0
        fill(disk)
        while not node.counts["journal_not_written"]:  # (the last page of the disk takes a few more records)
            assert (await run_mycelia("ask", *here, "--max-tokens", "2", "Hi")).returncode == 0
        told = await node.wait_event(lambda event: event.get("event") == "journal_not_written")
        assert told["reason"] == "No space left on device"
        node.kill()
        await node.process.wait()

        (data_dir / "node.json").unlink()  # (it belongs to the killed node and is not needed)
        fill(disk)
        before = contents(data_dir) | {LOG_FILE: b""}
        refused = await swarm.start("full", options=options)
        with pytest.raises(LocalError, match=r"ended with exit code 1: .*epoch: No space left on device"):
            await refused.wait_ready()
        assert contents(data_dir) | {LOG_FILE: b""} == before

        (disk / "filler").unlink()
        again = await swarm.start("full", options=options)
        assert (await again.wait_ready()).peer == info.peer
        rows = await fetch_requests(await again.wait_ready())
        assert rows[0].status == "answered", "what was written before the disk was full"
        assert not [event for event in again.events if event.get("event") == "file_set_aside"]


async def test_commands_do_not_mind_a_damaged_run_file(swarm: LocalSwarm) -> None:
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("running", options=OPTIONS)
        await node.wait_ready()
        path = node.data_dir / "node.json"
        whole = path.read_bytes()
        for data in [whole[:end] for end in range(0, len(whole), 64)] + [b"{}", b"[]", b'{"pid": "x"}', b"\xff" * 100]:
            path.write_bytes(data)
            done = await run_mycelia("status", "--json", "--data-dir", str(node.data_dir))
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        path.write_bytes(whole)
        assert (await run_mycelia("status", "--json", "--data-dir", str(node.data_dir))).returncode == 0

"""Whatever happens to a node's files: it starts and says what was lost, or says in one line why it does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from node.swarm import LocalSwarm
from proto.errors import LocalError
from tests.e2e.conftest import DEADLINE_S, run_mycelia

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


DAMAGES: list[Callable[[Path], None]] = [cut, empty, flip, grow, become_a_folder]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_node_with_a_damaged_file_starts_or_says_why_not(
    swarm: LocalSwarm, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A killed one, so that also what is only there while it runs is left."""
    with trio.fail_after(2 * DEADLINE_S):
        first = await swarm.start("damaged", options=OPTIONS)
        peer = (await first.wait_ready()).peer
        await first.stop()  # (which saves what is saved at the end)
        node = await swarm.start("damaged", options=OPTIONS)
        assert (await node.wait_ready()).peer == peer
        node.kill()
        await node.process.wait()
        left = {path.name: path.read_bytes() for path in node.data_dir.iterdir() if path.name != "node.log"}
        assert {"identity.key", "epoch", "floors.msgpack", "lock", "node.json"} <= left.keys()
        for name, whole in left.items():
            path = node.data_dir / name
            path.write_bytes(whole)
            damage(path)
            again = await swarm.start("damaged", options=OPTIONS)
            try:
                info = await again.wait_ready()
            except LocalError:
                words = [str(event["event"]) for event in again.events]
                assert name == "identity.key" or path.is_dir(), (name, words)
                assert again.process.returncode == 1 and str(path) in words[-1], (name, words)
                assert not any("Traceback" in line for line in words)
            else:
                assert info.peer == peer and name != "identity.key"
                await again.stop()
            if path.is_dir():
                path.rmdir()
            if name == "identity.key":
                path.write_bytes(whole)


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

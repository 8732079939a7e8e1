"""Makes the data directory that a node of some commit leaves, for ``test_layout.py``.

    python -m tests.node.storage.make_layout 535b0bb

The directory gets the name of the commit's version. What is in its files is read here without the program's own code:
they are sealed (16 bytes) MessagePack, lines of JSON, and text.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import trio

from mycelia.bench.chaos.faults import of_version
from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.node.storage.files import SEAL_BYTES
from mycelia.node.storage.saving import NEW_PEER_S
from tests.e2e.releases import ROOT, packages_of

LAYOUTS = Path(__file__).parent / "layouts"
DEADLINE_S = 120.0
LONG = "Tell me about the ships that pass the lighthouse at night, one after the other. " * 8


def version_of(commit: str) -> str:
    """The version in that commit's setup.cfg."""
    command = ["git", "show", f"{commit}:setup.cfg"]
    config = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^version = (\S+)", config, re.MULTILINE)
    assert found is not None
    return found[1]


async def make(packages: Path, version: str) -> Path:
    """The folder that was made."""
    module = "mycelia.node" if (packages / "mycelia").exists() else "node"  # (as it was called before 0.1.0)
    if module == "node":
        version += "a1"
    command = (*of_version(packages), sys.executable, "-P", "-m", module, "--isolated")
    with tempfile.TemporaryDirectory() as root, trio.fail_after(DEADLINE_S):
        async with open_local_swarm(Path(root)) as swarm:
            node = await swarm.start("node", options=["--model", "fake"], command=command)
            other = await swarm.start("other", [await node.address()], ["--model", "fake"], command)
            for one in (node, other):
                await one.wait_ready()
                await one.wait_peers(1)
            has_swarms = "create" in (await told(command, "swarm", "--help"))
            if has_swarms:
                await told(command, "swarm", "create", "home", "--data-dir", str(node.data_dir))
            for number in range(6):
                await told(command, "ask", "--data-dir", str(node.data_dir), "--max-tokens", "8", f"{LONG}{number % 3}")
            await trio.sleep(NEW_PEER_S + 1)  # (so that the other node is remembered)
            await leave(node)
        target = LAYOUTS / version
        shutil.rmtree(target, ignore_errors=True)
        unused = shutil.ignore_patterns("*.log", "lock", "node.json")
        shutil.copytree(node.data_dir, target, ignore=unused)
    (target / "expected.json").write_text(json.dumps(content_of(target), indent=2) + "\n", "utf-8")
    return target


async def told(command: tuple[str, ...], *arguments: str) -> str:
    done = await trio.run_process([*command, *arguments], capture_stdout=True)
    return done.stdout.decode()


async def leave(node: LocalNode) -> None:
    node.process.terminate()
    await node.wait_ended()


def content_of(folder: Path) -> dict[str, Any]:
    def unsealed(path: Path) -> Any:
        return msgspec.msgpack.decode(path.read_bytes()[SEAL_BYTES:]) if path.exists() else []

    identity = (folder / "identity.key").read_text()
    known = unsealed(folder / "peers.msgpack")
    trust = unsealed(folder / "trust.msgpack") or {}
    journal = (folder / "requests.journal").read_text().splitlines()
    requests = {json.loads(line.partition(" ")[2])["row"]["id"]: None for line in journal if line}
    usage = [row["requests"] for path in sorted(folder.glob("usage/*.msgpack")) for row in unsealed(path)]
    return {
        "peer": identity.split("\npeer ")[1].strip(),
        "known": [address for one in known for address in one["addresses"]],
        "floors": len(unsealed(folder / "floors.msgpack")),
        "observations": len(trust.get("observations", [])),
        "offenders": len(trust.get("offenders", [])),
        "requests": list(requests),
        "usage": sum(usage),
        "swarms": sorted(path.stem for path in folder.glob("swarms/*.swarm")),
        "members": 1,
        "known_members": 0,
        "epoch": int((folder / "epoch").read_text()),
    }


if __name__ == "__main__":
    print(trio.run(make, packages_of(sys.argv[1]), version_of(sys.argv[1])))  # noqa: T201

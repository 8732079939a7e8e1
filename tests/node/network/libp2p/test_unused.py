"""Packages that libp2p imports for nothing are not loaded by a node, and can be imported by others afterwards."""

import subprocess
import sys

from mycelia.node.network.libp2p.unused import UNUSED

PROGRAM = """
import sys
import trio
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkSettings

async def main():
    async with open_network(NetworkSettings(new_identity(), listen=("/ip4/127.0.0.1/tcp/0",))) as network:
        print(*{name.partition(".")[0] for name in sys.modules})

trio.run(main)
import requests, websockets
assert requests.get.__module__ == "requests.api" and websockets.__file__
"""


def test_a_node_does_without_them() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "libp2p" in loaded and not loaded & UNUSED

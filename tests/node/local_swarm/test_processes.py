"""The part of a local node's log that is kept."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import trio

from mycelia.node.local_swarm.processes import LocalNode


async def test_where_a_node_is_stays_known_however_much_it_says() -> None:
    node = LocalNode("one", Path("one"), cast("trio.Process", SimpleNamespace(pid=1, returncode=None)))
    ready = {"event": "ready", "api": "http://127.0.0.1:1", "peer": "p", "listen": ["/ip4/127.0.0.1/tcp/2/p2p/p"]}
    node.note(json.dumps(ready).encode())
    for _ in range(10_000):
        node.note(b'{"event": "send_dropped"}')
    with trio.fail_after(5):
        assert (await node.wait_ready()).api_url == "http://127.0.0.1:1"
        assert await node.address() == "/ip4/127.0.0.1/tcp/2/p2p/p"
    assert node.counts["send_dropped"] == 10_000 > len(node.events)

"""Nodes join through names: a real name server in the namespace of the node that asks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S
from tests.e2e.internet import PORT, Internet, can_make_routers, inside, public_address

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.lab,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
]
DEAD = "12D3KooWAfZBCCDd6BbP7yJHgFv6FAzLRyDjVYDd9K7PhFBgnQ3L"


@asynccontextmanager
async def name_server(namespace: str, zone: dict[str, list[str] | str], folder: Path) -> AsyncIterator[None]:
    """The machine in ``namespace`` asks this server. Begin before the first process there."""
    file, settings = folder / "zone.json", Path("/etc/netns") / namespace
    file.write_text(json.dumps(zone))
    settings.mkdir(parents=True)
    try:
        (settings / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        words = ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.e2e.name_server", str(file)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        server = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, env=environment)
        assert server.stdout is not None
        async with server.stdout:
            assert await server.stdout.receive_some() == b"ready\n"
            yield
    finally:
        server.kill()
        await server.wait()
        shutil.rmtree(settings)


async def test_a_node_joins_through_names_of_which_most_are_dead(swarm: LocalSwarm, tmp_path: Path) -> None:
    internet = Internet(f"dn{os.getpid()}")
    try:
        with trio.fail_after(DEADLINE_S):
            options = ["--model", "fake", "--listen", f"/ip4/{public_address(1)}/tcp/{PORT}"]
            first = await swarm.start("first", options=options, command=inside(internet.namespace))
            peer = (await first.wait_ready()).peer
            listed = f'"dnsaddr=/dns/node.example/tcp/{PORT}/p2p/{peer}"'
            noise = [f'"dnsaddr=/ip4/10.9.{n}.1/tcp/1/p2p/{DEAD}"' for n in range(250)]
            noise += [f'"dnsaddr=/ip4/{n}"' for n in range(750)]  # (64 kB in all: DNS carries no more)
            zone: dict[str, list[str] | str] = {
                "node.example A": [public_address(1)],
                "node.example AAAA": "refused",
                "_dnsaddr.list.example TXT": [listed, '"v=spf1 -all"'],
                "_dnsaddr.long.example TXT": noise,
                "silent.example A": "silent",
                "silent.example AAAA": "silent",
            }
            home = internet.home()
            async with name_server(home.namespace, zone, tmp_path):
                dead = [f"/dns/{name}.example/tcp/{PORT}/p2p/{DEAD}" for name in ("silent", "nowhere")]
                for number, good in enumerate(("/dnsaddr/list.example", f"/dns/node.example/tcp/{PORT}/p2p/{peer}")):
                    node = await swarm.start(
                        f"home-{number}",
                        [*dead, "/dnsaddr/silent.example", "/dnsaddr/long.example", good],
                        ["--model", "fake"],
                        inside(home.namespace),
                    )
                    await node.wait_peers(1)
                    await node.stop()
                alone = await swarm.start("alone", dead, ["--model", "fake"], inside(home.namespace))
                await alone.wait_event(lambda event: event.get("event") == "found_nobody")
                tried = str([event["tried"] for event in alone.events if event.get("event") == "found_nobody"])
                words = [*inside(home.namespace), "ask", "--data-dir", str(tmp_path / "none"), "hello"]
                words += [word for address in dead for word in ("--bootstrap", address)]
                asked = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
                status = [*inside(home.namespace), "status", "--data-dir", str(alone.data_dir)]
                shown = (await trio.run_process(status, capture_stdout=True)).stdout.decode()
        assert b"nowhere.example: no such name (check the name)" in asked.stderr
        assert "found nobody" in shown and "nowhere.example: no such name" in shown
        assert "silent.example: no name server answers (check whether this machine is online)" in tried
        assert "nowhere.example: no such name (check the name)" in tried
    finally:
        internet.remove()

"""A private swarm of two homes behind routers that drop in silence, which only nodes of the open network connect."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm, open_local_swarm
from tests.e2e import internet as lab
from tests.e2e.conftest import DEADLINE_S, parse_answer
from tests.e2e.internet import Internet, Kind, can_make_routers, inside, public_address

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not can_make_routers(), reason="needs root, iproute2, nftables and a kernel that translates"),
]


@pytest.fixture
def internet() -> Iterator[Internet]:
    internet = Internet(f"mp{os.getpid()}")
    try:
        yield internet
    finally:
        internet.remove()


async def told(namespace: str, *arguments: str) -> str:
    done = await trio.run_process([*inside(namespace), *arguments], capture_stdout=True, stdin=subprocess.DEVNULL)
    return done.stdout.decode()


async def public_relays(swarm: LocalSwarm, internet: Internet) -> list[str]:
    """The addresses of nodes in the open."""
    relays: list[str] = []
    for number in lab.PEERS:
        listen = ["--listen", f"/ip4/{public_address(number)}/tcp/{lab.PORT}", "--model", "fake"]
        node = await swarm.start(f"open{number}", relays, listen, command=inside(internet.namespace))
        relays.append(await node.address())
    return relays


async def test_two_homes_form_a_private_swarm_through_relays_without_its_key(
    internet: Internet, tmp_path: Path
) -> None:
    homes = [internet.home(Kind.RESTRICTED), internet.home(Kind.RESTRICTED)]
    first, second = ["--data-dir", str(tmp_path / "first")], ["--data-dir", str(tmp_path / "second")]
    with trio.fail_after(DEADLINE_S):
        async with open_local_swarm(tmp_path) as swarm:
            relays = await public_relays(swarm, internet)
            await told(homes[0].namespace, "swarm", "create", "home", "--model", "fake", *first)
            options = ["--listen", f"/ip4/0.0.0.0/tcp/{lab.PORT}", "--swarm", "home", "--no-mdns"]
            admin = await swarm.start("first", relays, options, command=inside(homes[0].namespace))
            await admin.wait_ready()
            await admin.wait_event(lambda event: event.get("event") == "relays_changed")
            invitation = (await told(homes[0].namespace, "invite", *first)).strip()
            where = [*second, "--listen", f"/ip4/0.0.0.0/tcp/{lab.PORT}", "--api-port", "0", "--exit-with-parent"]
            bootstrap = [word for address in relays for word in ("--bootstrap", address)]
            guest = await trio.lowlevel.open_process(
                [*inside(homes[1].namespace), "join", invitation, "--name", "guest", "--no-mdns", *where, *bootstrap],
                stdin=subprocess.PIPE,
            )
            while not (tmp_path / "second" / "node.json").exists():  # noqa: ASYNC110
                await trio.sleep(0.05)
            answer = parse_answer(await told(homes[1].namespace, "ask", "--json", *second, "Say hello."))
            assert answer.text
            await admin.wait_event(lambda event: event.get("event") == "node_joined")
            guest.terminate()
            await guest.wait()


@pytest.mark.lab
async def test_both_homes_are_in_the_open_network_as_well(internet: Internet, tmp_path: Path) -> None:
    homes = {"first": internet.home(Kind.RESTRICTED), "second": internet.home(Kind.SYMMETRIC)}
    options = ["--listen", f"/ip4/0.0.0.0/tcp/{lab.PORT}", "--swarm", "home", "--public", "--no-mdns"]
    with trio.fail_after(DEADLINE_S):
        async with open_local_swarm(tmp_path) as swarm:
            relays = await public_relays(swarm, internet)

            async def at(name: str, *arguments: str) -> str:
                return await told(homes[name].namespace, *arguments, "--data-dir", str(tmp_path / name))

            await at("first", "swarm", "create", "home", "--model", "fake")
            admin = await swarm.start("first", relays, options, inside(homes["first"].namespace))
            await admin.wait_ready()
            await admin.wait_event(lambda e: e.get("event") == "relays_changed" and e.get("swarm") != "public")
            await at("second", "join", (await at("first", "invite")).strip(), "--no-start")
            await swarm.start("second", relays, options, inside(homes["second"].namespace))
            await admin.wait_event(lambda e: e.get("event") == "node_joined" and e.get("swarm") == "home")
            while True:  # (each is connected with the other in both swarms)
                states = [json.loads(await at(name, "status", "--json")) for name in homes]
                if all(one["peers"] and len(one["public"]["peers"]) == 3 for one in states):
                    break
            for name, other in (("first", 1), ("second", 0)):
                assert parse_answer(await at(name, "ask", "--json", "Say hello.")).text
                served = parse_answer(await at(name, "ask", "--json", "--public", "Say hello.")).answered.served_by
                assert served not in {one["peer"] for one in states}, "by the identity of the open network"
                assert states[other]["peer"] not in {peer["peer"] for peer in states[1 - other]["public"]["peers"]}

"""Private swarms of real processes: the commands that a user types, from the swarm's making to a member's removal."""

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mycelia.node.client.local import fetch_state, running_node
from mycelia.node.local_swarm.processes import COMMAND, LocalNode, LocalSwarm, open_local_swarm
from mycelia.node.storage.private_swarms import read_swarm, store_roster
from mycelia.proto.wire.errors import LocalError
from tests.e2e.conftest import DEADLINE_S, parse_answer, run_mycelia

pytestmark = pytest.mark.e2e


async def told(*arguments: str) -> str:
    done = await run_mycelia(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def becomes_ready(data_dir: Path) -> None:
    while True:
        try:
            await fetch_state(running_node(data_dir))
            return
        except LocalError:
            await trio.sleep(0.05)


@dataclass
class Home:
    """A private swarm, the node that made it, and an invitation."""

    nodes: LocalSwarm
    admin: LocalNode
    invitation: str


@asynccontextmanager
async def open_home(folder: Path) -> AsyncIterator[Home]:
    """The node's data is in ``folder/admin``."""
    where = ["--data-dir", str(folder / "admin")]
    await told("swarm", "create", "home", "--model", "fake", *where)
    async with open_local_swarm(folder) as nodes:
        admin = await nodes.start("admin", options=["--swarm", "home"])
        await admin.wait_ready()
        yield Home(nodes, admin, (await told("invite", *where)).strip())


async def test_one_word_is_enough_to_join_and_ask(tmp_path: Path) -> None:
    admin_dir, guest_dir = ["--data-dir", str(tmp_path / "admin")], ["--data-dir", str(tmp_path / "guest")]
    with trio.fail_after(DEADLINE_S):
        async with open_home(tmp_path) as home:
            admin = home.admin
            options = ["--listen", "/ip4/127.0.0.1/tcp/0", "--api-port", "0", "--exit-with-parent"]
            guest = await trio.lowlevel.open_process(
                [*COMMAND, "join", home.invitation, "--name", "guest", *guest_dir, *options], stdin=subprocess.PIPE
            )
            await becomes_ready(tmp_path / "guest")
            await admin.wait_event(lambda event: event.get("event") == "node_joined")
            answer = parse_answer(await told("ask", "--json", *guest_dir, "Say hello."))
            assert answer.text
            view = json.loads(await told("swarm", "members", "--json", *admin_dir))
            assert [(row["name"], row["state"]) for row in view["members"]] == [("", "this node"), ("guest", "online")]
            await told("swarm", "revoke", "guest", *admin_dir)
            await admin.wait_event(lambda event: event.get("event") == "member_removed")
            await admin.wait_event(lambda event: event.get("event") == "node_left")
            guest.terminate()
            await guest.wait()


async def test_a_node_in_both_swarms_answers_each_from_its_own_prefixes(tmp_path: Path) -> None:
    """The private one's prompts by default; the open network sees another identity, another port and nothing else."""
    first, prompt = ["--data-dir", str(tmp_path / "first")], "Say hello, and then say it again. " * 20
    with trio.fail_after(DEADLINE_S):
        await told("swarm", "create", "home", "--model", "fake", *first)
        async with open_local_swarm(tmp_path) as swarm:
            both = await swarm.start("first", options=["--swarm", "home", "--public"])
            ready = await both.wait_event(lambda event: event.get("event") == "ready")
            public_address = json.loads(json.dumps(ready["public_listen"]))[0]
            member_address = await both.address()
            assert public_address.split("/")[-1] != member_address.split("/")[-1], "two identities"
            stranger = await swarm.start("stranger", [public_address], options=["--model", "fake"])
            await stranger.wait_peers(1)
            state = await fetch_state(running_node(tmp_path / "first"))
            assert state.swarm == "home" and not state.peers
            assert state.public is not None and len(state.public.peers) == 1

            async def cached(*where: str) -> int:
                output = await told("ask", "--json", "--cache-salt", "public", *first, *where, prompt)
                return parse_answer(output).answered.cached_tokens

            assert [await cached(), await cached() > 640] == [0, True]
            assert await cached("--public") == 0
            assert await cached("--public") > 640
            peers = json.loads(await told("peers", "--json", *first))
            assert len(peers) == 1 and "home, private, and the open network" in await told("status", *first)
            known = json.dumps(list(stranger.events)).encode()
            assert b"home" not in known and member_address.encode() not in known
        assert not list((tmp_path / "stranger").rglob("*.swarm"))


async def test_an_invitation_is_enough_to_ask_without_a_node(tmp_path: Path) -> None:
    admin_dir, guest = ["--data-dir", str(tmp_path / "admin")], ["--data-dir", str(tmp_path / "guest")]
    with trio.fail_after(DEADLINE_S):
        async with open_home(tmp_path) as home:
            by_invitation = ["--invite", home.invitation]
            for arguments in (by_invitation, [], ["--swarm", "home"], by_invitation):
                assert parse_answer(await told("ask", "--json", *guest, *arguments, "Say hello.")).text
            members = json.loads(await told("swarm", "members", "--json", *admin_dir))["members"]
            assert len(members) == 2
            used_up = await run_mycelia("ask", "--data-dir", str(tmp_path / "late"), *by_invitation, "Hi")
            assert used_up.returncode == 1 and "has been used up" in used_up.stderr
            both = await run_mycelia("ask", *guest, "--swarm", "home", "--public", "Hi")
            assert both.returncode == 2 and "--swarm and --invite go with none of --public" in both.stderr
        alone = await run_mycelia("ask", *guest, "Hi")
        assert alone.returncode == 1 and "a member has to run where this machine can reach it" in alone.stderr


async def test_who_is_removed_from_a_private_swarm_stays_in_the_open_network(tmp_path: Path) -> None:
    admin_dir, guest_dir = ["--data-dir", str(tmp_path / "admin")], ["--data-dir", str(tmp_path / "guest")]
    with trio.fail_after(DEADLINE_S):
        async with open_home(tmp_path) as home:
            await told("join", home.invitation, "--name", "guest", "--no-start", *guest_dir)
            guest = await home.nodes.start("guest", options=["--swarm", "home", "--public"])
            await guest.wait_peers(1)
            await told("swarm", "revoke", "guest", *admin_dir)
            await guest.wait_event(lambda event: event.get("event") == "not_let_in")
            # (members tell it no more; it sees the list of members without it only in its file)
            store_roster(tmp_path / "guest", "home", read_swarm(tmp_path / "admin", "home").roster)
            await guest.wait_event(lambda event: event.get("event") == "left_swarm")
            answer = parse_answer(await told("ask", "--json", "--public", *guest_dir, "Say hello."))
            assert answer.text
            refused = await run_mycelia("ask", *guest_dir, "Say hello.")
            assert refused.returncode == 1 and "was removed from the private swarm home" in refused.stderr
            status = await told("status", *guest_dir)
            assert "home, private, and the open network" in status
            await guest.stop()
        assert guest.process.returncode == 0

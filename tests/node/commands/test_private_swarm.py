"""The commands about private swarms, without a running node: what they write and what they say."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mycelia.node.cli import cli
from mycelia.node.errors import one_line
from mycelia.node.peer_id import peer_text
from mycelia.node.storage.private_swarms import authority_of, read_swarm, swarm_path
from mycelia.proto.wire.errors import LocalError
from tests.proto.swarm.swarms import NOW, SECRET, peer, request


def mycelia(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--isolated", *words, "--data-dir", str(folder)])


def failure(folder: Path, *words: str) -> str:
    """The line with which a command fails."""
    done = mycelia(folder, *words)
    assert done.exit_code != 0
    text = str(done.exception) if isinstance(done.exception, LocalError) else done.output
    assert one_line(text) == text or not isinstance(done.exception, LocalError)
    return text


def test_a_swarm_is_made_and_listed(tmp_path: Path) -> None:
    assert mycelia(tmp_path, "swarm", "create", "home", "--model", "fake").exit_code == 0
    assert swarm_path(tmp_path, "home").stat().st_mode & 0o077 == 0
    assert json.loads(mycelia(tmp_path, "swarm", "list", "--json").output) == [
        {"name": "home", "members": 1, "models": ["fake"], "key_number": 1, "admin": True}
    ]
    assert "this node" in mycelia(tmp_path, "swarm", "members").output
    assert "there is a private swarm home already" in failure(tmp_path, "swarm", "create", "home")
    assert "cannot name a swarm" in failure(tmp_path, "swarm", "create", "../x")


def test_members_and_invitations_are_removed_by_name_or_id(tmp_path: Path) -> None:
    mycelia(tmp_path, "swarm", "create", "home")
    with authority_of(tmp_path, "home") as authority:
        issued = authority.invite(SECRET, 3_600, 5, NOW)
        for number in (1, 2, 3):
            asked = request(SECRET, peer(number), authority.roster.swarm, name=f"node{number // 2}")
            authority.join(asked, peer(number), NOW)
    assert "several members are called node1" in failure(tmp_path, "swarm", "revoke", "node1")
    assert "no member and no invitation is called nobody" in failure(tmp_path, "swarm", "revoke", "nobody")
    assert "has a new key" in mycelia(tmp_path, "swarm", "revoke", "node0").output
    assert "has a new key" in mycelia(tmp_path, "swarm", "revoke", peer_text(peer(2))).output
    assert "closed" in mycelia(tmp_path, "swarm", "revoke", issued.invitation_id.hex()).output
    assert "number 4" in mycelia(tmp_path, "swarm", "rotate").output
    shown = json.loads(mycelia(tmp_path, "swarm", "members", "--json").output)
    assert [row["name"] for row in shown["members"]] == ["", "node1"]
    assert [(one["id"], one["state"]) for one in shown["invitations"]] == [(issued.invitation_id.hex(), "revoked")]


def test_only_the_admin_decides(tmp_path: Path) -> None:
    mycelia(tmp_path, "swarm", "create", "home")
    path = swarm_path(tmp_path, "home")
    from mycelia.node.storage.private_swarms import SwarmFile, write_swarm

    write_swarm(tmp_path, "home", SwarmFile(read_swarm(tmp_path, "home").roster))
    assert "only the node that created home" in failure(tmp_path, "swarm", "rotate")
    path.chmod(0o644)
    assert f"chmod 600 {path}" in failure(tmp_path, "swarm", "members")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged; restore it" in failure(tmp_path, "swarm", "members")


def test_what_is_missing_is_named_with_the_fix(tmp_path: Path) -> None:
    assert "in no private swarms; make one" in failure(tmp_path, "invite")
    assert "make one with 'mycelia swarm create home'" in failure(tmp_path, "node", "--swarm", "home")
    mycelia(tmp_path, "swarm", "create", "home", "--model", "fake")
    assert "start 'mycelia node --swarm home'" in failure(tmp_path, "invite")
    assert "serves only fake" in failure(tmp_path, "node", "--swarm", "home", "--model", "smollm2")
    assert "not both" in failure(tmp_path, "node", "--swarm", "home", "--swarm-key", "x")
    mycelia(tmp_path, "swarm", "create", "work", "--model", "./folder/large.gguf")
    assert read_swarm(tmp_path, "work").roster.models == ("large",)
    assert "give the model's file with --model PATH" in failure(tmp_path, "node", "--swarm", "work")
    assert "serves only large" in failure(tmp_path, "node", "--swarm", "work", "--model", "/elsewhere/small.gguf")
    assert "cannot read the model" in failure(tmp_path, "node", "--swarm", "work", "--model", "/elsewhere/large.gguf")
    assert "name one of home, work" in failure(tmp_path, "swarm", "members")


@pytest.mark.parametrize(
    ("time", "says"), [("1y", "such as 30m"), ("", "such as 30m"), ("0h", "from 1m"), ("999d", "365d")]
)
def test_a_wrong_lifetime(time: str, says: str, tmp_path: Path) -> None:
    assert says in mycelia(tmp_path, "invite", "--expires", time).output


def test_a_wrong_invitation_reaches_no_network(tmp_path: Path) -> None:
    assert "begin with mycelia1" in failure(tmp_path, "join", "nonsense")
    assert "cut off" in failure(tmp_path, "join", "mycelia1abc")
    assert "no such option or argument: --slots" in mycelia(tmp_path, "join", "x", "--no-start", "--slots").output


def test_the_local_swarm_is_still_there() -> None:
    for words in (["swarm", "local", "--help"], ["swarm", "4", "--help"]):
        assert "Round trip between any two nodes" in CliRunner().invoke(cli, words).output
    done = CliRunner().invoke(cli, ["swarm", "membrs"])
    assert done.exit_code == 2 and "did you mean members?" in done.output
    assert "not in the range" in CliRunner().invoke(cli, ["swarm", "65"]).output

"""``mycelia upgrade``: the order of versions, and what peers' reports mean."""

import random
from pathlib import Path

import pytest

from mycelia.node.commands.upgrade import compared
from mycelia.node.doctor.installation import ARCHIVE_MARK, IMAGE_MARK, installation
from mycelia.node.version import AGENT, VERSION, order_of, version_in
from mycelia.node.views.state import PeerRow

IN_ORDER = ["0.1.0", "0.2.0.dev0", "0.2.0a1", "0.2.0b1", "0.2.0rc1", "0.2.0rc2", "0.2.0", "0.10.0", "1.0.0"]


def peer(version: str, address: str) -> PeerRow:
    return PeerRow("id", address, [], "live", 0, 0, 0, 0, 0, None, 1.0, version=version)


def test_versions_are_in_the_order_of_their_numbers() -> None:
    assert sorted(random.Random(1).sample(IN_ORDER, len(IN_ORDER)), key=order_of) == IN_ORDER
    assert len({order_of(version) for version in IN_ORDER}) == len(IN_ORDER)
    assert version_in(AGENT) == VERSION


@pytest.mark.parametrize(
    "agent", ["", "mycelia", "other/9.9.9", "mycelia/9.9", "mycelia/9.9.9\x1b[2J", "mycelia/99999.0.0"]
)
def test_other_programs_and_odd_texts_have_no_version(agent: str) -> None:
    assert version_in(agent) == ""
    assert order_of("99999.0.0") == order_of("9.9") == ()


def test_newer_versions_are_counted_by_peers_and_networks() -> None:
    peers = [
        peer("0.1.0", "/ip4/203.0.113.1/tcp/1"),
        peer("", "/ip4/192.0.2.7/tcp/1"),
        peer("0.4.0", "/ip4/198.18.0.1/tcp/1"),
        peer("0.3.0", "/ip4/8.8.8.8/tcp/1"),
        peer("0.4.0", "/ip4/8.8.8.9/tcp/1"),
    ]
    view = compared(peers, "0.2.0")
    assert (view.version, view.newest, view.is_newer) == ("0.2.0", "0.4.0", True)
    assert (view.peers, view.newer_peers, view.newer_networks) == (4, 3, 2)
    same = compared(peers[:2], "0.2.0")
    assert (same.newest, same.is_newer, same.newer_peers) == ("0.1.0", False, 0)
    nobody = compared([])
    assert (nobody.version, nobody.installed, nobody.newest, nobody.is_newer) == (VERSION, VERSION, "", False)


def test_each_way_of_installing_says_its_own_way_of_upgrading(tmp_path: Path) -> None:
    def kind(prefix: Path, package: Path = tmp_path / "site-packages" / "mycelia") -> str:
        found = installation(prefix, package)
        assert found.upgrade
        return found.kind

    assert kind(tmp_path) == "wheel"
    assert kind(tmp_path / "pipx" / "venvs" / "mycelia") == "pipx"
    assert kind(tmp_path / "uv" / "tools" / "mycelia") == "uv"
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "setup.cfg").touch()
    assert kind(tmp_path, checkout) == "checkout"
    (tmp_path / ARCHIVE_MARK).touch()
    assert kind(tmp_path) == "archive"
    (tmp_path / IMAGE_MARK).touch()
    assert kind(tmp_path) == "image"

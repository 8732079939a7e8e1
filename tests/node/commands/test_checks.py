"""The checks of a node's command line before anything starts."""

from pathlib import Path

import pytest

from mycelia.node.commands.checks import MAX_LIST_BYTES, check_cors, read_api_keys, read_bootstrap, read_swarm_key
from mycelia.node.settings import UsageError


def test_origins_are_those_that_browsers_send() -> None:
    good = ("*", "null", "https://chat.example", "http://localhost:3000", "http://[::1]:3000", "app://obsidian.md")
    assert check_cors(good) == good
    for wrong in ("chat.example", "https://a.example/", "https://A.example", "https://a https://b", "https://", ""):
        with pytest.raises(UsageError, match="not an origin of web pages"):
            check_cors((wrong,))


def test_lists_have_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("#" * MAX_LIST_BYTES)
    assert read_bootstrap((str(file),)) == ()
    for endless in (str(file), "/dev/zero"):
        with file.open("a") as more:
            more.write("#")
        with pytest.raises(UsageError, match=f"{endless} has more than"):
            read_bootstrap((endless,))
        with pytest.raises(UsageError, match=f"{endless} has more than"):
            read_api_keys("127.0.0.1", Path(endless), "")


KEY_FORM = "/key/swarm/psk/1.0.0/\n/base16/\n"


def test_a_swarm_key_is_a_file_of_libp2ps_form(tmp_path: Path) -> None:
    path, key = tmp_path / "swarm.key", bytes(range(32))
    path.write_text(KEY_FORM + key.hex() + "\n")
    assert read_swarm_key(path) == key
    assert read_swarm_key(None) == b""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 64,
        KEY_FORM + "0" * 62,
        KEY_FORM + "0" * 66,
        KEY_FORM + "g" * 64,
        KEY_FORM + "0" * 64 + "\nmore",
        KEY_FORM.replace("16", "64") + "0" * 64,
    ],
)
def test_what_is_no_swarm_key_is_refused_with_a_way_to_make_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    path.write_text(text)
    with pytest.raises(UsageError, match="openssl rand"):
        read_swarm_key(path)


def test_a_swarm_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_swarm_key(tmp_path / "none")

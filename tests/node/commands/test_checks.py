"""The checks of a node's command line before anything starts."""

from pathlib import Path

import click
import pytest

from mycelia.node.commands.checks import (
    MAX_LIST_BYTES,
    check_cors,
    check_hosts,
    check_tls,
    read_aliases,
    read_api_keys,
    read_bootstrap,
    read_loras,
    read_models,
    read_swarm_key,
)
from mycelia.node.network.identity import new_identity
from mycelia.node.peer_id import peer_text
from mycelia.node.settings import UsageError, WantedModel
from tests.node.engine.child.tiny_models import write_adapter, write_model


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
    path.chmod(0o640)
    with pytest.raises(UsageError, match=f"change that with: chmod 600 {path}"):
        read_swarm_key(path)
    path.chmod(0o600)
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
    path.chmod(0o600)
    with pytest.raises(UsageError, match="openssl rand"):
        read_swarm_key(path)


def test_a_swarm_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_swarm_key(tmp_path / "none")


ADDRESS = f"/ip4/203.0.113.7/tcp/7117/p2p/{peer_text(new_identity().peer_id)}"
NAME = "/dnsaddr/bootstrap.example.org"


def test_a_bootstrap_file_may_come_from_any_editor(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"# mine\r\n\r\n  {ADDRESS} # home\r\n{NAME}\r\n{ADDRESS}\r\n".encode())
    assert read_bootstrap((str(file),)) == (ADDRESS, NAME)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            f"{ADDRESS}\n{ADDRESS[:20]}\n".encode(),
            "bootstrap.txt, line 2: .* is not a ",
        ),
        (b"\n\nhttp://example.org\n", "bootstrap.txt, line 3: 'http://example.org' is not a multiaddr"),
        (b"/dnsaddr/a.example/tcp/1\n", "line 1: .* has too many parts"),
        (ADDRESS.encode("utf-16"), "not a text file in UTF-8"),
        (bytes(range(256)), "not a text file"),
    ],
)
def test_a_line_of_garbage_is_named(data: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.txt"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        read_bootstrap((str(file),))


def test_bootstrap_files_of_the_user_are_read_but_not_those_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = tmp_path / "config" / "mycelia", tmp_path / "here"
    for place in (folder, here):
        place.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.parent))
    monkeypatch.chdir(here)
    (here / "bootstrap.txt").write_text(f"{ADDRESS}\n")
    assert ADDRESS not in read_bootstrap(())
    (folder / "bootstrap.txt").write_text(f"{NAME}\n")
    assert read_bootstrap(())[0] == NAME
    assert read_bootstrap((ADDRESS,)) == (ADDRESS,)
    isolated = click.Context(click.Command("mycelia"))
    isolated.params["isolated"] = True
    with isolated:
        assert NAME not in read_bootstrap(())


def test_names_of_hosts() -> None:
    assert check_hosts(("Host.docker.internal", "[FD00::7]", "192.0.2.7")) == (
        "host.docker.internal",
        "fd00::7",
        "192.0.2.7",
    )
    for wrong in ("*", "", "host:7118", "http://host", "a b", "a/b", "-x" * 200):
        with pytest.raises(UsageError, match="--allow-host"):
            check_hosts((wrong,))


def test_aliases() -> None:
    assert read_aliases(("gpt-4o-mini=smollm2", "a = b=c")) == (("gpt-4o-mini", "smollm2"), ("a", "b=c"))
    for wrong, says in (
        (("gpt",), "is not a name and a model"),
        (("=x",), "is not a name"),
        (("x=",), "is not a name"),
        (("x" * 200 + "=y",), "is not a name"),
        (("a=b", "a=c"), "give one of them"),
        (("a=b", "b=c"), "is an alias itself"),
        (tuple(f"a{number}=m" for number in range(300)), "more than 256"),
    ):
        with pytest.raises(UsageError, match=says):
            read_aliases(wrong)


def test_models() -> None:
    assert read_models(("smollm2", "./a,b.gguf,load=demand")) == (
        WantedModel("smollm2"),
        WantedModel("./a,b.gguf", on_demand=True),
    )
    for wrong, says in (
        (("a,load=never",), "has to end in"),
        ((",load=start",), "has to end in"),
        (tuple(f"fake-{number}" for number in range(17)), "more than 16"),
    ):
        with pytest.raises(UsageError, match=says):
            read_models(wrong)


def test_adapters(tmp_path: Path) -> None:
    adapter, model = write_adapter(tmp_path / "a.gguf", "lfm2"), write_model(tmp_path / "m.gguf", "lfm2")
    (found,) = read_loras((f"poet={adapter}",), WantedModel("base"))
    assert found == WantedModel("base", called="poet", lora_path=adapter)
    for wrong, says in (
        ("poet", "is not a name and a file"),
        ("=x", "is not a name"),
        (f"poet={model}", "is no LoRA adapter"),
        (f"poet={tmp_path}/none", "cannot read"),
    ):
        with pytest.raises(UsageError, match=says):
            read_loras((wrong,), WantedModel("base"))


def test_tls_files_that_are_none(tmp_path: Path) -> None:
    assert check_tls(None, None) is None
    with pytest.raises(UsageError, match="--tls-key needs --tls-cert"):
        check_tls(None, tmp_path)
    with pytest.raises(UsageError, match=r"--tls-cert: .*No such file"):
        check_tls(tmp_path / "none", None)

"""``mycelia key``, ``mycelia usage``, and the keys of the configuration."""

import fcntl
import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mycelia.node.commands.key as key_commands
from mycelia.node.cli import cli
from mycelia.node.commands.checks import read_api_keys
from mycelia.node.commands.config_file import Schema
from mycelia.node.commands.configure import write_config
from mycelia.node.commands.key_texts import read_keys
from mycelia.node.serve.api_keys import MAX_KEYS, Limits, digest_of
from mycelia.node.settings import UsageError
from mycelia.node.telemetry.usage import MAX_DAYS, UsageMeter, Use

KEY = "0123456789abcdef0123456789abcdef"
HASH = digest_of(KEY.encode()).hex()


def run(file: Path, *arguments: str) -> Result:
    return CliRunner(env={"MYCELIA_CONFIG": None}).invoke(cli, ["--config", str(file), *arguments])


def configured(file: Path) -> list[str]:
    setting = Schema(cli).read_file(file)["node", "key"]
    assert isinstance(setting.value, list)
    return setting.value


def test_a_made_key_is_in_the_configuration_as_a_hash_alone(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "mycelia.toml"
    made = run(file, "key", "add", "alice", "--requests-per-minute", "60", "--concurrent", "2")
    assert made.exit_code == 0 and str(file) in made.stderr
    key = made.stdout.strip()
    assert len(key) == 48 and key not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    (known,) = read_keys(configured(file))
    assert known.name == "alice" and known.digest == digest_of(key.encode())
    assert known.limits == Limits(requests_per_minute=60, concurrent=2)
    listed = json.loads(run(file, "key", "list", "--json").stdout)
    assert listed == [{"name": "alice", "requests_per_minute": 60, "tokens_per_day": None, "concurrent": 2}]
    assert "alice" in run(file, "key", "list").stdout


def test_the_command_for_a_first_key_stands_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / ("a long name " * 8) / "config.toml"
    done = CliRunner().invoke(cli, ["--config", str(file), "key", "list"])
    assert done.output.endswith("config.toml; make one with: mycelia key add NAME\n") and done.output.count("\n") == 1


def test_nobody_else_changes_the_file_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some keys that were made at the same moment were lost."""
    file, written, write = tmp_path / "config.toml", [], write_config

    def checked(path: Path, text: str) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        write(path, text)
        written.append(path)

    monkeypatch.setattr(key_commands, "write_config", checked)
    for arguments in (("add", "alice"), ("add", "bob"), ("remove", "alice")):
        assert run(file, "key", *arguments).exit_code == 0
    assert written == [file] * 3 and list(tomllib.loads(file.read_text())["keys"]) == ["bob"]


def test_other_settings_stay_when_keys_come_and_go(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    before = '# mine\ndata_dir = "x"\n\n[node]\nthreads = 3 # few\n\n[keys.bob]\nfile = "bob.key"\n'
    file.write_text(before)
    (tmp_path / "bob.key").write_text(f"{KEY}\n")
    assert run(file, "key", "add", "alice").exit_code == 0
    assert [key.name for key in read_keys(configured(file))] == ["bob", "alice"]
    again = run(file, "key", "add", "alice")
    assert again.exit_code == 2 and "already" in again.output
    assert run(file, "key", "remove", "bob").exit_code == 0
    assert run(file, "key", "remove", "bob").exit_code == 2
    assert file.read_text().startswith('# mine\ndata_dir = "x"\n\n[node]\nthreads = 3 # few\n')
    assert [key.name for key in read_keys(configured(file))] == ["alice"]
    assert run(file, "key", "remove", "alice").exit_code == 0
    assert tomllib.loads(file.read_text()) == {"data_dir": "x", "node": {"threads": 3}}


@pytest.mark.parametrize(
    "text",
    [f'keys.bob = {{ sha256 = "{HASH}" }}\n', f'[keys]\nbob.sha256 = "{HASH}"\n', f'[keys."bob"]\nsha256 = "{HASH}"\n'],
)
def test_a_section_of_an_unusual_form_is_never_removed_in_part(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text(text)
    assert [key.name for key in read_keys(configured(file))] == ["bob"]
    removed = run(file, "key", "remove", "bob")
    if removed.exit_code:
        assert "by hand" in removed.output and file.read_text() == text
    else:
        assert "bob" not in file.read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys = 3", "group of sections"),
        ("[keys]\nalice = 3", "keys.alice must be a section"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nrequests = 3', "no setting 'requests'"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nconcurrent = "3"', "keys.alice.concurrent must be a whole number"),
        (f'[keys.alice]\nsha256 = "{HASH}"\nconcurrent = true', "keys.alice.concurrent must be a whole number"),
        ("[keys.alice]\nsha256 = 3", "keys.alice.sha256 must be a text"),
        (f'[keys.local]\nsha256 = "{HASH}"', "'local' cannot be the name"),
        ('[keys."a b"]\n', "'a b' cannot be the name"),
        ('[keys.alice]\nfile = "a,b"', "no comma"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text(text)
    refused = run(file, "status")
    assert refused.exit_code == 2 and says in refused.output and str(file) in refused.output


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["alice"], "needs its file or its hash"),
        ([f"alice,sha256={HASH},file=x"], "needs its file or its hash"),
        (["alice,sha256=12"], "64 hexadecimal digits"),
        (["alice,file=/nothing/here"], "No such file"),
        ([f"alice,sha256={HASH},concurrent=0"], "from 1 on"),
        ([f"alice,sha256={HASH},tokens_per_day=many"], "from 1 on"),
        ([f"alice,sha256={HASH},tokens_per_day={10**30}"], "from 1 on"),
        ([f"alice,sha256={HASH}"] * 2, "two API keys with the name alice"),
        ([f"alice,sha256={HASH}", f"bob,sha256={HASH}"], "the same API key"),
        ([f"k{number},sha256={number:064x}" for number in range(MAX_KEYS + 1)], "more than"),
    ],
)
def test_a_mistake_in_a_text_is_named(texts: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_keys(texts)


def test_keys_of_all_sources_are_one_list(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{KEY}  # bob's\nanother-key-of-many-characters\n")
    keys = read_api_keys("0.0.0.0", tmp_path / "keys", "", (f"bob,sha256={HASH},concurrent=1",))
    assert [(key.name.partition("-")[0], key.limits.concurrent) for key in keys] == [("bob", 1), ("key", None)]
    assert all(KEY not in repr(key) for key in keys)
    (tmp_path / "weak").write_text("password\n")
    for arguments in ((None, "short", ()), (None, "", (f"bob,file={tmp_path / 'weak'}",))):
        with pytest.raises(UsageError, match="16 or more") as refused:
            read_api_keys("127.0.0.1", *arguments)
        assert "password" not in str(refused.value) and "short" not in str(refused.value)


def test_usage_without_a_running_node_is_what_is_on_disk(tmp_path: Path) -> None:
    meter = UsageMeter(tmp_path)
    meter.add(b"", Use("fake", prompt_tokens=1_234, cached_tokens=1_000, completion_tokens=5))
    meter.save()
    file = tmp_path / "mycelia.toml"
    file.touch()
    shown = run(file, "usage", "--data-dir", str(tmp_path))
    assert shown.exit_code == 0 and "local" in shown.output and "1,234" in shown.output and "sum" in shown.output
    (row,) = json.loads(run(file, "usage", "--days", "3", "--json", "--data-dir", str(tmp_path)).stdout)
    assert row["key"] == "local" and row["cached_tokens"] == 1_000
    assert "nothing was used" in run(file, "usage", "--data-dir", str(tmp_path / "nothing")).output


def test_the_command_shows_as_many_days_as_are_kept() -> None:
    assert key_commands.MAX_DAYS == MAX_DAYS

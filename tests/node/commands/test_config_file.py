"""The configuration: its keys, its sources, and the errors about wrong ones."""

import importlib
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mycelia.node.cli import cli
from mycelia.node.commands.config_file import MAX_FILE_BYTES, Schema, Setting
from mycelia.node.plugins import COMMANDS, Program

cli.load(*COMMANDS)
KNOWN = Schema(cli)


def uncommented(template: str) -> str:
    return re.sub(r"^# (\[\w+\]|[a-z_]+ = )", r"\1", template, flags=re.MULTILINE)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"MYCELIA_CONFIG": None, **environment}).invoke(cli, arguments)


def shown(file: Path, **environment: str) -> dict[tuple[str, str], tuple[object, str]]:
    done = run("--config", str(file), "config", "show", "--json", **environment)
    assert done.exit_code == 0, done.output
    return {(row["section"], row["key"]): (row["value"], row["source"]) for row in json.loads(done.output)}


def test_a_new_file_has_every_key_and_sets_none(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "mycelia.toml"
    assert run("config", "init", str(file)).output.strip() == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text("utf-8")
    assert tomllib.loads(text).keys() == set(KNOWN.sections) - {""}  # (headings alone)
    assert KNOWN.read_file(file) == {}
    everything = tomllib.loads(uncommented(text))
    told = {(name, key) for name, keys in everything.items() if isinstance(keys, dict) for key in keys}
    told |= {("", key) for key, value in everything.items() if not isinstance(value, dict)}
    assert told == set(KNOWN.all_keys())
    assert {("node", "api_port"), ("ask", "temperature"), ("", "data_dir")} <= told


def test_a_file_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text("[node]\nthreads = 3\n")
    refused = run("config", "init", str(file))
    assert refused.exit_code == 2 and "--force" in refused.output and "threads" in file.read_text()
    assert run("config", "init", "--force", str(file)).exit_code == 0 and "# threads" in file.read_text()


def test_every_example_of_the_file_is_one_that_is_taken(tmp_path: Path) -> None:
    lines = uncommented(KNOWN.template()).splitlines()
    file = tmp_path / "all.toml"
    file.write_text("\n".join(line for line in lines if not line.startswith("data = ")))  # (that folder must exist)
    assert len(KNOWN.read_file(file)) == len(set(KNOWN.all_keys())) - 1


def test_an_example_is_the_default_where_there_is_one() -> None:
    everything = tomllib.loads(uncommented(KNOWN.template()))
    told = {key: everything["node"][key] for key in ("api_port", "api_host", "slots", "cells", "disk_tier", "model")}
    assert told == {
        "api_port": 7118,
        "api_host": "127.0.0.1",
        "slots": 8,
        "cells": 8192,
        "disk_tier": 8,
        "model": ["smollm2"],
    }


def test_aliases_are_a_table_or_options(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text('[aliases]\n"gpt-4o-mini" = "smollm2"\n[node]\nalias = ["a=b"]\n')
    assert shown(file)["node", "alias"] == (["a=b", "gpt-4o-mini=smollm2"], str(file))
    assert shown(file, MYCELIA_NODE_ALIAS="c=d")["node", "alias"][0] == ["c=d"]
    for wrong in ("[aliases]\na = 5\n", "aliases = 5\n", '[aliases.x]\na = "b"\n'):
        file.write_text(wrong)
        done = run("--config", str(file), "config", "show")
        assert done.exit_code == 2 and '"gpt-4o-mini" = "smollm2"' in done.output


def test_models_are_a_table_or_options(tmp_path: Path) -> None:
    file, model = tmp_path / "mycelia.toml", tmp_path / "a b.gguf"
    model.touch()
    file.write_text('[models]\n"smollm2" = "start"\n"a b.gguf" = "demand"\n[node]\nmodel = "fake"\n')
    given = ["fake", "smollm2,load=start", f"{model},load=demand"]
    assert shown(file)["node", "model"] == (given, str(file))
    assert shown(file, MYCELIA_NODE_MODEL="fake fake-b")["node", "model"][0] == ["fake", "fake-b"]
    assert shown(file, MYCELIA_NODE_MODEL=str(model))["node", "model"][0] == [str(model)]
    for wrong in ("[models]\na = 5\n", "models = 5\n", '[models]\na = "later"\n'):
        file.write_text(wrong)
        done = run("--config", str(file), "config", "show")
        assert done.exit_code == 2 and '"smollm2" = "start"' in done.output


def test_flags_go_before_variables_and_those_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text('data_dir = "here"\n[ask]\nseed = 1\ntop_k = 2\n[node]\nlisten = ["/ip4/127.0.0.1/tcp/1"]\n')
    rows = shown(file, MYCELIA_ASK_SEED="7", MYCELIA_NODE_CORS="https://a.example https://b.example")
    assert rows["ask", "seed"] == ("7", "MYCELIA_ASK_SEED")
    assert rows["ask", "top_k"] == (2, str(file))
    assert rows["ask", "top_p"] == (0.95, "default")
    assert rows["node", "exact"] == (False, "default") and rows["node", "relay"] == (True, "default")
    assert rows["node", "cors"] == (["https://a.example", "https://b.example"], "MYCELIA_NODE_CORS")
    assert rows["", "data_dir"] == (str(tmp_path / "here"), str(file)), "paths are relative to the file"

    seen: dict[str, object] = {}

    @click.group()
    def group() -> None: ...

    @group.command()
    @click.option("--seed", type=int, default=0)
    @click.option("--top-k", type=int, default=40)
    @click.option("--data-dir", type=click.Path(path_type=Path))
    def ask(**values: object) -> None:
        seen.update(values)

    schema = Schema(group)
    settings = schema.read_environment({"MYCELIA_ASK_SEED": "7", "MYCELIA_DATA_DIR": "/d"})
    settings = {("ask", "top_k"): Setting(2, "file"), ("ask", "seed"): Setting(1, "file")} | settings
    group.main(["ask"], standalone_mode=False, default_map=schema.default_map(settings))
    assert seen == {"seed": 7, "top_k": 2, "data_dir": Path("/d")}
    group.main(["ask", "--seed", "9"], standalone_mode=False, default_map=schema.default_map(settings))
    assert seen["seed"] == 9


def test_the_doctor_looks_at_what_the_node_would_do(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text("[doctor]\nmodel = 'other'\n[node]\nmodel = 'one'\napi_port = 9\nthreads = 2\n")
    told = KNOWN.default_map(KNOWN.read_file(file))
    assert told["doctor"] == {"model": "other", "api_port": 9} and told["node"]["models"] == ["one"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[node]\nthread = 3\n", "there is no key node.thread; did you mean threads?"),
        ("threads = 3\n", "there is no key threads; it belongs in [node] or [swarm]"),
        ("[node]\nbootstrap = []\n", "there is no key node.bootstrap; it belongs in the top, above all sections"),
        ("[nodes]\nthreads = 3\n", "there is no section nodes; did you mean node?"),
        ("data_dirs = 'x'\n", "there is no key data_dirs; did you mean data_dir?"),
        ("[node]\nthreads = '3'\n", 'node.threads must be a whole number, not "3"'),
        ("[node]\nthreads = true\n", "node.threads must be a whole number, not true"),
        ("[node]\nthreads = 0\n", "node.threads: 0 is not in the range"),
        ("[node]\nlisten = '/ip4/127.0.0.1/tcp/1'\n", "node.listen must be a list"),
        ("[node]\nlisten = [1]\n", "node.listen must be a text in quotes, not 1"),
        ("[ask]\ntemperature = 'hot'\n", "ask.temperature must be a number"),
        ("node = 3\n", "node is a section"),
        ("[node]\nthreads = \n", "not TOML: Invalid value (at line 2, column 11)"),
        ("x = " + "[" * 5_000, "not TOML"),
        ("# " + "x" * MAX_FILE_BYTES, f"more than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_what_is_wrong_is_told_with_the_file_and_the_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text(text)
    done = run("--config", str(file), "peers")
    assert done.exit_code == 2 and says in done.output and str(file) in done.output.replace("\n", "")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[node]\nmodel = '\xe9'\n")
    assert "is not UTF-8" in run("--config", str(tmp_path / "latin.toml"), "peers").output
    missing = run("--config", str(tmp_path / "no.toml"), "peers")
    assert missing.exit_code == 2 and "No such file" in missing.output


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MYCELIA_NODE_THREAD", "3", "variable MYCELIA_NODE_THREAD; did you mean MYCELIA_NODE_THREADS?"),
        ("MYCELIA_NODE_THREADS", "many", "MYCELIA_NODE_THREADS: 'many' is not a valid integer"),
        (
            "MYCELIA_NODE_EXACT",
            "perhaps",
            "MYCELIA_NODE_EXACT: 'perhaps' is not a valid boolean. Recognized values: 0, 1",
        ),
        ("MYCELIA_KEY", "x", "there is no setting for the environment variable MYCELIA_KEY"),
    ],
)
def test_variables_are_known_and_right_or_an_error(name: str, value: str, says: str) -> None:
    done = run("--config", os.devnull, "peers", **{name: value})
    assert done.exit_code == 2 and says in done.output


def test_programs_are_not_changed_by_what_their_user_configured(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("nonsense")
    isolated = run("--isolated", "peers", "--data-dir", str(tmp_path), MYCELIA_CONFIG=str(file), MYCELIA_NONSENSE="1")
    assert "no node is running" in repr(isolated.exception), isolated.output
    assert run("config", "path", MYCELIA_CONFIG=str(file)).output.strip() == str(file)


def test_help_reads_no_configuration_and_loads_little() -> None:
    heavy = "trio httpx msgspec rich structlog libp2p numpy starlette h11 prometheus_client tomllib"
    code = f"import sys, node.cli; sys.exit(' '.join(name for name in {heavy.split()} if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0 and "_MYCELIA_COMPLETE" in done.output
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.output, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "place", "known"),
    [("mycelia as", 1, "ask"), ("mycelia node --mod", 2, "--model"), ("mycelia up --mod", 2, "--model")],
)
def test_a_completion_knows_the_commands(words: str, place: int, known: str) -> None:
    environment = os.environ | {"_MYCELIA_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(place)}
    mycelia = str(Path(sys.executable).with_name("mycelia"))
    done = subprocess.run([mycelia], env=environment, capture_output=True, text=True, check=False)
    assert f"plain,{known}" in done.stdout.splitlines()


def every_command(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from every_command(inner, *names, name)


def test_what_is_printed_for_programs_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `mycelia ([a-z ]+?)(?: NAME)?` \| (.*)$", text, re.MULTILINE))
    told = {name: row for name, row in rows.items() if name != "node"}
    speaking = {
        "bench" if names[0] == "bench" else " ".join(names)
        for names in every_command(cli)
        if names and any("--json" in option.opts for option in command_of(names).params)
    }
    assert told.keys() == speaking
    for types, module in re.findall(r"(`\w+`(?: and `\w+`)*) in `([\w/]+)\.py`", "\n".join(told.values())):
        home = importlib.import_module(module.replace("/", "."))
        assert all(hasattr(home, name) for name in re.findall(r"\w+", types.replace(" and ", " ")))


def command_of(names: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in names:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.mark.parametrize("names", tuple(every_command(cli)), ids=" ".join)
def test_every_command_has_help_with_examples_of_itself(names: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*names, "--help"])
    assert done.exit_code == 0
    assert " ".join(("mycelia", *names)) in done.output.partition("Examples:")[2]


def test_what_the_file_says_for_commands_that_are_not_imported_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mycelia.toml"
    file.write_text("[simulate]\nno_such_key = 1\n")
    program = Program("mycelia")
    known = Schema(program)
    assert known.read_file(file) == {} and known.read_environment({"MYCELIA_SIMULATE_NO_SUCH_KEY": "1"}) == {}
    program.load("simulate")
    with pytest.raises(click.UsageError, match="no_such_key"):
        Schema(program).read_file(file)


def test_help_imports_neither_the_benchmarks_nor_the_simulator() -> None:
    code = (
        "import sys; from mycelia.node.cli import cli; cli.main(['--help'], standalone_mode=False);"
        "assert not [name for name in sys.modules if name.startswith(('mycelia.bench', 'mycelia.sim'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "bench" in done.stdout and "simulate" in done.stdout, done.stderr


def test_help_says_of_commands_that_are_not_imported_what_they_say_themselves() -> None:
    program = Program("mycelia")
    program.load(*COMMANDS)
    said = {name: (program.commands[name].help or "").partition("\n\n")[0] for name in COMMANDS}
    assert said == COMMANDS

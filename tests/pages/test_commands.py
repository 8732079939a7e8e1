"""Every command that the pages show is run by a test, or has a reason why not; and all of them can be given."""

import ast
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import click
import pytest

from mycelia.node.cli import cli
from tests.pages.blocks import PAGES, PROGRAMS, ROOT, Command, blocks, commands, mentions
from tests.pages.table import RULES, By, Run, Why, rule_of

COMMANDS = [command for page in PAGES for command in commands(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@cache
def functions_of(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return frozenset(one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))


def options_of(command: click.Command) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"-h", "--help"}


def unknown_words(words: list[str]) -> list[str]:
    """The options that the command with these words does not have, or its name if there is no such command."""
    command: click.Command = cli
    known, rest = options_of(cli), [word.strip("[]") for word in words]
    while isinstance(command, click.Group):
        name = next((word for word in rest if not word.startswith("-")), "")
        if name in ("bench", "simulate"):
            cli.load(name)
        found = command.get_command(click.Context(command), name)
        if found is None and (default := getattr(command, "default_cmd_name", None)):
            found = command.get_command(click.Context(command), default)
        elif name:
            rest.remove(name)
        if found is None:
            break  # (a group alone, or a part of a name)
        command = found
        known |= options_of(command)
        if command.name == "install":  # (it takes the options of 'mycelia node', too)
            known |= options_of(cli.commands["node"])
    given = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
    return [word for word in given if word not in known]


def test_blocks_that_are_not_taken_for_commands_have_none() -> None:
    others = [block for page in PAGES for block in blocks(page) if block.language == ""]
    assert len(others) > 5
    first_words = {line.split()[0] for block in others for line in block.text.splitlines() if line.strip()}
    assert not first_words & (PROGRAMS - {"mycelia"})


def test_every_command_is_run_or_has_a_reason(record_property: Callable[[str, object], None]) -> None:
    assert len(COMMANDS) > 100
    assert [f"{one.where}: {one.text}" for one in COMMANDS if rule_of(one.text) is None] == []
    found = [rule for one in COMMANDS if (rule := rule_of(one.text)) is not None]
    assert sorted({pattern for pattern, _ in RULES} - {pattern for pattern, _ in found}) == [], (
        "rules without a command"
    )
    kinds = Counter(type(how) for _, how in found)
    num_run = kinds[Run] + kinds[By]
    record_property(
        "commands in the pages",
        f"{len(found)}, of which tests run {kinds[Run]} as they stand there and {kinds[By]} with other values or in"
        f" small ({num_run / len(found):.0%}); the others have a reason",
    )
    reasons = Counter(how.reason for _, how in found if isinstance(how, Why))
    for reason, count in reasons.items():
        record_property("commands in the pages that nothing runs", f"{count}: {reason}")


@pytest.mark.parametrize("rule", [rule for rule in RULES if isinstance(rule[1], By)], ids=lambda rule: str(rule[0]))
def test_what_runs_a_command_is_there_and_has_its_options(rule: tuple[str, By]) -> None:
    pattern, by = rule
    text = (ROOT / by.file).read_text("utf-8")
    if by.name:
        assert by.name in functions_of(by.file)
    assert [part for part in by.has if part not in text] == []
    if by.has_options:
        matching = [one for one in COMMANDS if (found := rule_of(one.text)) and found[0] == pattern]
        options = {word for one in matching for word in one.words if word.startswith("--")}
        assert sorted(option for option in options if option not in text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    def wrong(command: Command) -> list[str]:
        program, *words = command.words
        if program == "mycelia":
            return unknown_words(words)
        if program == "make":
            return [word for word in words if re.fullmatch(r"[a-z][a-z-]+", word) and word not in TARGETS]
        return []

    found = [*commands(page), *mentions(page)]
    assert [(one.where, one.text, words) for one in found if (words := wrong(one))] == []


def test_wrong_options_are_found() -> None:
    assert unknown_words(["node", "--modle", "x"]) == ["--modle"]
    assert unknown_words(["swarm", "4", "--delay-ms", "80"]) == []
    assert unknown_words(["bench", "chaos", "--fault", "kill", "--no-such"]) == ["--no-such"]

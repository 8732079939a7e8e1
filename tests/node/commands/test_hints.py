"""What commands say to users of other programs, and of what is not set."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mycelia.node.cli import cli, main
from mycelia.node.doctor.machine import examine
from mycelia.node.plugins import OTHER_NAMES


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_command_of_another_program_is_told_its_name_here(name: str) -> None:
    done = CliRunner().invoke(cli, [name])
    assert done.exit_code == 2 and f"use 'mycelia {OTHER_NAMES[name]}'" in done.output
    assert CliRunner().invoke(cli, [*OTHER_NAMES[name].split(), "--help"]).exit_code == 0


def test_an_option_that_shows_nothing_is_refused() -> None:
    done = CliRunner().invoke(cli, ["ask", "hello", "--logprobs", "2"])
    assert done.exit_code == 2 and "--logprobs shows nothing without --json" in done.output


@pytest.mark.parametrize("length", ["0m", "367d"])
def test_a_pause_has_a_length(length: str) -> None:
    done = CliRunner().invoke(cli, ["pause", "--for", length])
    assert done.exit_code == 2 and "or without --for until 'mycelia resume'" in done.output


def test_defaults_in_words_are_shown() -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["config", "show"]).output
    assert "(all usable processor cores)" in shown


def test_an_error_of_click_is_one_line_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (
        ("completion", "bash, zsh, fish"),
        ("ask --temperature hot hi", "'hot' is not a number. (try"),
        ("ask --max-tokens 1.5 hi", "'1.5' is not a whole number. (try"),
    ):
        monkeypatch.setattr(sys, "argv", ["mycelia", *words.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and "\\" not in said and says in said


def test_a_file_system_without_files_is_not_called_full() -> None:
    report = examine("fake", Path("/proc/nowhere"))
    assert [problem for problem in report.problems if "/proc/nowhere" in problem] == [
        "cannot write to the data directory /proc/nowhere; choose another with --data-dir"
    ]

"""``mycelia setup``: its questions and what it writes, without a model and a node."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mycelia.node.cli import cli
from mycelia.node.commands import service
from mycelia.node.commands import setup as command
from mycelia.node.commands.config_file import Schema
from mycelia.node.service import manager
from mycelia.node.setup.offers import Machine, Offer

GB = 10**9


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    offered = [Offer(name, "good", GB, 2 * GB, is_here=False) for name in ("large", "small")]
    monkeypatch.setattr(command, "_machine", lambda: (Machine(16 * 2**30), offered))
    monkeypatch.setattr(command, "_fetch", lambda name: None)
    monkeypatch.setattr(command, "_first_answer", lambda context, where, data_dir, is_service: None)
    monkeypatch.setattr(command, "has_terminal", lambda: True)
    return tmp_path / "mycelia.toml"


def run(file: Path, *arguments: str, answers: str = "") -> Result:
    where = ["--data-dir", str(file.parent / "data")]
    return CliRunner(env={"MYCELIA_CONFIG": None}).invoke(
        cli, ["--config", str(file), "setup", *where, *arguments], input=answers
    )


def written(file: Path) -> object:
    Schema(cli).read_file(file)  # (its checks)
    return tomllib.loads(file.read_text())["node"]


def test_at_most_four_questions_lead_to_a_configuration(file: Path) -> None:
    file.write_text("[node]\nthreads = 2 # few\n")
    done = run(file, answers="2\n2\n\nn\n")
    assert done.exit_code == 0, done.output
    questions = [line for line in done.output.splitlines() if line.endswith(("?", ": "))]
    assert len(questions) <= 4 and "GiB of memory, and nothing while you use the machine" in done.output
    assert written(file) == {"threads": 2, "model": ["small"], "memory": 8.0, "hours": ["22:00-08:00"]}


def test_the_proposals_are_taken_and_changed_later(file: Path) -> None:
    file.write_text("")
    assert run(file, "--yes", "--no-boot").exit_code == 0
    assert written(file) == {"model": ["large"], "memory": 8.0, "polite": True}
    assert run(file, "--yes", "--no-boot", "--give", "all", "--model", "other").exit_code == 0
    assert written(file) == {"model": ["other"]}


def test_the_node_may_choose_its_model(file: Path) -> None:
    file.write_text('[node]\nmodel = ["small"]\n')
    assert run(file, "--yes", "--no-boot", "--auto").exit_code == 0
    assert written(file) == {"auto": True, "memory": 8.0, "polite": True}
    done = run(file, answers="auto\n1\n\nn\n")
    assert done.exit_code == 0 and written(file) == {"auto": True, "memory": 8.0, "polite": True}, done.output
    assert run(file, "--yes", "--no-boot", "--model", "small").exit_code == 0
    assert written(file) == {"model": ["small"], "memory": 8.0, "polite": True}
    assert "not both" in run(file, "--auto", "--model", "small").output


def test_a_wrong_answer_is_asked_for_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    model = file.parent / "own.gguf"
    model.touch()
    monkeypatch.setenv("HOME", str(file.parent))
    done = run(file, answers="9\nqwen9\n~/own.gguf\nbanana\n\x1b[A\nnights\nmycelia1cut\n\nn\n")
    assert done.exit_code == 0, done.output
    for says in (
        "'9' is none of 1 to 2",
        "unknown model 'qwen9'",
        "'banana' is none of 1 to 3",
        "'\\x1b[A' is none",
        "cut off",
    ):
        assert done.output.count(says) == 1, done.output
    assert written(file) == {"model": [str(model)], "memory": 8.0, "hours": ["22:00-08:00"]}


def test_without_a_terminal_nothing_is_asked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    monkeypatch.setattr(command, "has_terminal", lambda: False)
    done = run(file)
    assert done.exit_code == 2 and "give --yes" in done.output
    done = run(file, "--yes", "--open", "--invite", "mycelia1x")
    assert done.exit_code == 2 and "not both" in done.output


def test_all_answers_as_options(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``mycelia setup --model qwen3-4b --give nights --open --boot``, without a service manager."""
    file.write_text("")
    installed: list[list[str]] = []
    monkeypatch.setattr(service, "install_service", lambda context, arguments: installed.append(arguments))
    monkeypatch.setattr(manager, "is_system", lambda: False)
    done = run(file, "--model", "qwen3-4b", "--give", "nights", "--open", "--boot")
    assert done.exit_code == 0, done.output
    assert written(file) == {"model": ["qwen3-4b"], "memory": 8.0, "hours": ["22:00-08:00"]}
    assert installed == [["--data-dir", str(file.parent / "data")]]

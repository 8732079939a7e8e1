"""``mycelia service install``: what goes into the unit."""

import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mycelia.node.cli import cli
from mycelia.node.service import manager
from mycelia.node.storage.rundir import locked


@pytest.fixture(autouse=True)
def normal_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "is_system", lambda: False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["service", "install", "--print", *arguments])


def test_the_unit_runs_the_node_with_its_options_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").touch()
    done = run("--model", "fake", "--polite", "--drain", "5", "--data-dir", "data", "--api-key-file", "keys")
    assert done.exit_code == 0, done.output
    assert re.search(r'^ExecStart="?/.+ node --model fake --polite --drain 5 ', done.output, re.MULTILINE)
    assert f"--api-key-file {tmp_path}/keys\n" in done.output and "TimeoutStopSec=20\n" in done.output
    assert f"Environment=MYCELIA_DATA_DIR={tmp_path}/data\n" in done.output


def test_wrong_options_are_refused_before_anything_is_installed() -> None:
    for arguments, says in (
        (("--no-such",), "No such option"),
        (("--hours", "at night"), "no hours such as 22:00-08:00"),
        (("--share", "0"), "not in the range"),
    ):
        done = run("--model", "fake", *arguments)
        assert done.exit_code == 2 and says in done.output, done.output


def test_a_node_that_runs_by_itself_is_ended_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "SYSTEMD_RUNS", tmp_path)
    monkeypatch.setattr(manager.Manager, "is_active", lambda self: False)
    with locked(tmp_path):
        arguments = ["service", "install", "--model", "fake", "--data-dir", str(tmp_path)]
        done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1 and "end it with 'mycelia leave'" in done.output


def test_a_service_of_the_system_keeps_its_data_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "is_system", lambda: True)
    assert "MYCELIA_DATA_DIR=/var/lib/mycelia" in run("--model", "fake").output
    done = run("--model", "fake", "--data-dir", "/srv")
    assert done.exit_code == 2 and "leave out --data-dir" in done.output


def test_the_service_is_installed_looked_at_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of ``docs/running-a-node.md``, with a service manager that only notes what it is told."""
    told = tmp_path / "told"
    for name in ("systemctl", "loginctl", "journalctl"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{told}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(manager, "SYSTEMD_RUNS", tmp_path)
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda file, command: became.append(command))
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MYCELIA_NODE_MODEL", "fake")
    unit = tmp_path / "systemd" / "user" / "mycelia.service"

    def run(command: str) -> str:
        done = CliRunner().invoke(cli, command.split()[1:])
        assert done.exit_code == 0, done.output
        return done.output

    assert str(unit) in run("mycelia service install --polite") and "node --polite" in unit.read_text()
    assert "systemctl --user restart mycelia.service\n" in told.read_text()
    run("mycelia service status")
    run("mycelia service logs --follow")
    assert became == [
        ["systemctl", "--user", "status", "--no-pager", "mycelia.service"],
        ["journalctl", "--user", "--unit=mycelia.service", "--lines=100", "--follow"],
    ]
    assert "is removed" in run("mycelia service uninstall") and not unit.exists()
    assert "disable --now" in told.read_text()

"""Installing and removing a service, with a service manager that only listens."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mycelia.node.service import manager as manager_module
from mycelia.node.service.manager import Manager, check_readable, program
from mycelia.node.service.systemd import Installation
from mycelia.proto.wire.errors import LocalError


class Systemd:
    """Notes what is asked of it. failing: commands, by a word of them, and how often they fail."""

    def __init__(self, failing: dict[str, int] | None = None, exit_code: int = 0) -> None:
        self.failing = failing or {}
        self.exit_code = exit_code
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        self.asked.append(" ".join(command))
        word = next((word for word in command if self.failing.get(word)), "")
        if word:
            self.failing[word] -= 1
        return subprocess.CompletedProcess(command, int(bool(word)), f"{self.exit_code}\n", f"{word} did not work")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(manager_module, "SYSTEMD_RUNS", tmp_path)
    monkeypatch.setattr(manager_module, "is_system", lambda: False)
    return tmp_path


def installation(home: Path) -> Installation:
    return Installation(["/usr/bin/mycelia", "node"], False, home / "data", 30.0)


def test_a_user_installs_and_removes_a_service(home: Path) -> None:
    systemd = Systemd()
    manager = Manager(systemd)
    assert manager.install(installation(home)) == []
    assert manager.file == home / "systemd" / "user" / "mycelia.service" and "ProtectSystem" in manager.file.read_text()
    assert systemd.asked == [
        "systemctl --user daemon-reload",
        "systemctl --user enable mycelia.service",
        "systemctl --user reset-failed mycelia.service",
        "systemctl --user restart mycelia.service",
        "loginctl enable-linger",
    ]
    assert manager.uninstall() and not manager.file.exists()
    assert "systemctl --user disable --now mycelia.service" in systemd.asked
    assert not manager.uninstall()


def test_where_users_have_no_namespaces_the_service_runs_without(home: Path) -> None:
    manager = Manager(Systemd({"restart": 1, "enable-linger": 1}, exit_code=226))
    told = manager.install(installation(home))
    assert "ProtectSystem" not in manager.file.read_text() and "SystemCallFilter" in manager.file.read_text()
    assert "sees the whole file system" in told[0] and "sudo loginctl enable-linger" in told[1]


def test_a_service_that_does_not_start_is_an_error_that_says_where_to_look(home: Path) -> None:
    with pytest.raises(LocalError, match="does not start; see 'mycelia service logs'"):
        Manager(Systemd({"restart": 1}, exit_code=1)).install(installation(home))
    with pytest.raises(LocalError, match=r"enable mycelia\.service failed: enable did not work"):
        Manager(Systemd({"enable": 1})).install(installation(home))


def test_without_systemd_the_error_says_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "SYSTEMD_RUNS", home / "none")
    with pytest.raises(LocalError, match="runs no systemd: have its own service manager run 'mycelia node'"):
        Manager()


def test_the_service_runs_the_program_by_which_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def executable(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o755)
        return path

    monkeypatch.setenv("PATH", str(tmp_path / "links"))
    monkeypatch.setattr("sys.argv", ["/nowhere/node/__main__.py"])
    assert program() == [sys.executable, "-P", "-m", "mycelia.node"]
    script = executable(tmp_path / "venv" / "bin" / "mycelia")
    monkeypatch.setattr("sys.argv", [str(script)])
    assert program() == [str(script)]
    launcher = executable(tmp_path / "archive" / "bin" / "mycelia")
    executable(tmp_path / "archive" / "python" / "lib" / "start.py")
    monkeypatch.setattr("sys.prefix", str(tmp_path / "archive" / "python"))
    monkeypatch.setattr("sys.argv", ["mycelia"])
    assert program() == [str(launcher)]
    (tmp_path / "current").symlink_to("archive")  # (by which install.sh knows the version that is used)
    assert program() == [str(tmp_path / "current" / "bin" / "mycelia")]
    link = tmp_path / "links" / "mycelia"
    link.parent.mkdir()
    link.symlink_to(launcher)
    assert program() == [str(link)]


def test_a_model_that_the_services_user_cannot_read_is_told_before() -> None:
    with TemporaryDirectory(dir="/tmp") as folder:  # (pytest's own folder is closed to others)
        Path(folder).chmod(0o755)
        model = Path(folder) / "closed" / "model.gguf"
        model.parent.mkdir()
        model.write_bytes(b"GGUF")
        check_readable([model])
        model.parent.chmod(0o700)
        with pytest.raises(LocalError, match=f"as {model.parent} is closed to others"):
            check_readable([model])
        with pytest.raises(LocalError, match=r"cannot read .*none: No such file"):
            check_readable([model.parent / "none"])

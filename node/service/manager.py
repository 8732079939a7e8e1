"""Installs a node as a service: writes the file of the service manager, and has the manager start it.

Linux with systemd: as root a unit of the system, else one of the user. macOS: an agent of the user.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import platformdirs

from mycelia.node.service.launchd import LABEL, agent_text
from mycelia.node.service.systemd import STOP_SPARE_S, UNIT, Installation, lacks_sandbox, unit_text
from mycelia.node.storage.files import replacing
from mycelia.node.telemetry.crashes import LOG_FILE
from mycelia.proto.wire.errors import LocalError

SYSTEMD_RUNS = Path("/run/systemd/system")
SYSTEM_UNITS = Path("/etc/systemd/system")
_NO_MANAGER = (
    "this system runs no systemd: have its own service manager run 'mycelia node', and stop it with SIGTERM;"
    " 'mycelia service install --print' prints the unit for systemd"
)


def program() -> list[str]:
    """The command by which this program is called, with an absolute path: one in the PATH, if it is this program, as it
    stays the same when the program is upgraded."""
    called, found = Path(sys.argv[0]), shutil.which("mycelia")
    folder = Path(sys.prefix).parent
    newest = folder.with_name("current")  # (install.sh's link to the version that is used)
    launcher = (newest if newest.resolve() == folder.resolve() else folder) / "bin" / "mycelia"
    if (Path(sys.prefix) / "lib" / "start.py").is_file() and launcher.is_file():  # (the archive's own Python)
        is_same = found is not None and Path(found).resolve() == launcher.resolve()
        return [str(found if is_same else launcher)]
    for path in (called.absolute() if len(called.parts) > 1 else called, Path(found or "")):
        if path.name == "mycelia" and path.is_absolute() and os.access(path, os.X_OK):
            return [str(path)]
    return [sys.executable, "-P", "-m", "mycelia.node"]


def has_gpu_device() -> bool:
    """Whether a driver has made a device for computing: NVIDIA's, AMD's, or any that Vulkan can use."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists() or any(Path("/dev/dri").glob("render*"))


def is_system() -> bool:
    return sys.platform != "darwin" and os.geteuid() == 0


def own_folders(data_dir: Path) -> dict[str, str]:
    """The variables by which a service of the system keeps what it fetches in its data directory."""
    return {"HF_HOME": str(data_dir / "huggingface"), "XDG_CACHE_HOME": str(data_dir / "cache")}


def model_folders() -> list[Path]:
    """Where nodes of this user keep the models that they fetch."""
    hub = os.environ.get("HF_HOME") or platformdirs.user_cache_path("huggingface", appauthor=False)
    return [Path(hub).absolute(), platformdirs.user_cache_path("mycelia", appauthor=False)]


def file_text(made: Installation) -> str:
    """The content of the service manager's file."""
    if sys.platform == "darwin":
        return agent_text(made.command, made.environment, round(made.drain_s) + STOP_SPARE_S).decode()
    return unit_text(made)


class Manager:
    """The service manager of this machine. Raises LocalError when there is none."""

    def __init__(self, run: Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"] | None = None) -> None:
        """run: runs a program to its end."""
        self._run = run or _run
        self._is_mac = sys.platform == "darwin"
        if not (self._is_mac or SYSTEMD_RUNS.is_dir()):
            raise LocalError(_NO_MANAGER)
        self._scope = [] if is_system() else ["--user"]

    @property
    def file(self) -> Path:
        if self._is_mac:
            return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        folder = SYSTEM_UNITS if is_system() else platformdirs.user_config_path() / "systemd" / "user"
        return folder / UNIT

    def is_active(self) -> bool:
        """Whether the service runs now."""
        if self._is_mac:
            return not self._run(["launchctl", "print", f"gui/{os.getuid()}/{LABEL}"]).returncode
        return not self._run(["systemctl", *self._scope, "is-active", "--quiet", UNIT]).returncode

    def install(self, made: Installation) -> list[str]:
        """Writes the file and starts the service, again if it runs. Returns what the user should know. Raises
        LocalError."""
        if self._is_mac:
            self._write(file_text(made))
            self._run(["launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}"])
            self._must(["launchctl", "bootstrap", f"gui/{os.getuid()}", str(self.file)])
            return []
        told = []
        self._write(unit_text(made))
        if not self._start():
            if not (lacks_sandbox(self._exit_code()) and made.has_sandbox and not made.is_system):
                raise LocalError("the service does not start; see 'mycelia service logs'")
            self._write(unit_text(replace(made, has_sandbox=False)))
            if not self._start():
                raise LocalError("the service does not start; see 'mycelia service logs'")
            told.append("this system does not let users have namespaces: the service sees the whole file system")
        if self._scope and self._run(["loginctl", "enable-linger"]).returncode:
            told.append("it starts when you log in; to start it at boot: sudo loginctl enable-linger $USER")
        return told

    def uninstall(self) -> bool:
        """Stops the service, whose node finishes its answers, and removes the file. Returns whether there was one.
        Raises LocalError."""
        if not self.file.exists():
            return False
        if self._is_mac:
            self._run(["launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}"])
        else:
            self._must(["systemctl", *self._scope, "disable", "--now", UNIT])
        try:
            self.file.unlink(missing_ok=True)
        except OSError as exc:
            raise LocalError(f"cannot remove {self.file}: {exc.strerror}") from exc
        if not self._is_mac:
            self._run(["systemctl", *self._scope, "daemon-reload"])
        return True

    def status_command(self) -> list[str]:
        if self._is_mac:
            return ["launchctl", "print", f"gui/{os.getuid()}/{LABEL}"]
        return ["systemctl", *self._scope, "status", "--no-pager", UNIT]

    def logs_command(self, lines: int, follow: bool, data_dir: Path) -> list[str]:
        if self._is_mac:
            return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(data_dir / LOG_FILE)]
        return ["journalctl", *self._scope, f"--unit={UNIT}", f"--lines={lines}", *(["--follow"] if follow else [])]

    def _start(self) -> bool:
        self._must(["systemctl", *self._scope, "daemon-reload"])
        self._must(["systemctl", *self._scope, "enable", UNIT])
        self._run(["systemctl", *self._scope, "reset-failed", UNIT])
        return not self._run(["systemctl", *self._scope, "restart", UNIT]).returncode

    def _exit_code(self) -> int:
        told = self._run(["systemctl", *self._scope, "show", "--property=ExecMainStatus", "--value", UNIT]).stdout
        return int(told) if told.strip().isdecimal() else 0

    def _must(self, command: Sequence[str]) -> None:
        done = self._run(command)
        if done.returncode:
            said = (done.stderr or done.stdout or "").strip().splitlines()
            raise LocalError(f"{' '.join(command)} failed: {said[-1] if said else f'exit code {done.returncode}'}")

    def _write(self, text: str) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file, f".{self.file.name}.new", mode=0o644) as file:
                file.write(text.encode())
        except OSError as exc:
            raise LocalError(f"cannot write {self.file}: {exc.strerror}") from exc


def check_readable(paths: Sequence[Path]) -> None:
    """Raises LocalError when the user that systemd makes for the service could not read one of ``paths``."""
    for path in paths:
        for one in (path, *path.parents):
            try:
                mode = one.stat().st_mode
            except OSError as exc:
                raise LocalError(f"cannot read {one}: {exc.strerror}") from exc
            if not mode & (0o001 if one != path else 0o004):
                raise LocalError(
                    f"the service runs as a user of its own, which cannot read {path}, as {one} is closed to others:"
                    " move it to where all can read it, or install the service as a normal user"
                )


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise LocalError(f"cannot run {command[0]}: {exc.strerror}") from exc

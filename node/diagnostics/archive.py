"""What goes into the archive of ``mycelia diagnostics``. A part that cannot be had is a line that says why."""

import io
import os
import platform
import shlex
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from mycelia.node.diagnostics.redact import Redactor
from mycelia.node.doctor.machine import examine
from mycelia.node.errors import one_line
from mycelia.node.storage.rundir import RunInfo
from mycelia.node.telemetry.crashes import LOG_FILE, REPORTS, last_lines, reports
from mycelia.node.telemetry.days import DAYS_FILE
from mycelia.node.version import VERSION

LOG_LINES = 2_000
MAX_PART_BYTES = 2_000_000
_ABOUT = """\
What 'mycelia diagnostics' collected for a report of a fault. No prompts, answers, keys, invitations or identities are
in it; public addresses, names of hosts and your home folder are replaced by words. Look through it before you send it.
"""


def collected(
    model: str, data_dir: Path, config: Path, unit: Path | None, info: RunInfo | None, from_node: Mapping[str, str]
) -> dict[str, str]:
    """Name -> text. from_node: what the running node said, likewise."""
    parts = {"README.txt": _ABOUT, "about.txt": _about(info), "environment.txt": _environment()}
    parts["doctor.json"] = _json(examine(model, data_dir))
    parts["config.toml"] = _text(config)
    parts["files.txt"] = _files(data_dir)
    parts["days.json"] = _json(DAYS_FILE.peek(data_dir))
    parts[LOG_FILE] = _log(data_dir)
    if unit is not None:
        parts["service.txt"] = _text(unit)
    for path in reports(data_dir / REPORTS):
        parts[f"{REPORTS}/{path.name}"] = _text(path)
    return {**parts, **from_node}


def redactor(data_dir: Path, info: RunInfo | None, keys: list[str], hosts: list[str], texts: Iterable[str]) -> Redactor:
    """keys: further secrets, such as those of files with API keys. hosts: names of hosts. texts: see ``Redactor``."""
    secrets = [*keys, *([info.api_key] if info else []), os.environ.get("MYCELIA_API_KEY", "")]
    words = [(str(Path.home()), "~"), (str(data_dir), "[data]")]
    words += [(host, "[host]") for host in (platform.node(), *hosts)]
    return Redactor([secret for secret in secrets if secret], words, texts)


def pack(parts: Mapping[str, str], redact: Redactor, path: Path) -> None:
    """Writes the archive, readable by its owner alone. Raises OSError, also when the file exists; what is not finished
    is removed."""
    folder = path.name.partition(".")[0]
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, text in parts.items():
                    data = redact.text(text).encode("utf-8", "backslashreplace")[-MAX_PART_BYTES:]
                    entry = tarfile.TarInfo(f"{folder}/{name}")
                    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                    archive.addfile(entry, io.BytesIO(data))
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _about(info: RunInfo | None) -> str:
    memory = psutil.virtual_memory()
    lines = [
        f"mycelia   {VERSION}",
        f"python    {sys.version}",
        f"program   {sys.executable}",
        f"system    {platform.platform()}, {' '.join(platform.libc_ver())}",
        f"node      {_command(info)}",
        f"cores     {os.cpu_count()}",
        f"memory    {memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free",
        "",
        *sorted(f"{one.name} {one.version}" for one in metadata.distributions() if one.name),
    ]
    return "\n".join(lines) + "\n"


def _command(info: RunInfo | None) -> str:
    """How the running node was started."""
    try:
        return one_line(shlex.join(psutil.Process(info.pid).cmdline())) if info else "none is running"
    except psutil.Error as exc:
        return f"cannot be seen: {type(exc).__name__}"


def _environment() -> str:
    shown = ("MYCELIA_", "GGML_", "CUDA_", "OMP_", "HF_HUB", "LC_", "LANG", "TERM", "XDG_", "INVOCATION", "JOURNAL")
    found = {name: value for name, value in os.environ.items() if name.startswith(shown)}
    found |= {"MYCELIA_API_KEY": "[secret]"} if "MYCELIA_API_KEY" in found else {}
    return "".join(f"{name}={one_line(value)}\n" for name, value in sorted(found.items()))


def _files(data_dir: Path) -> str:
    """The names and sizes of what the node keeps."""
    try:
        paths = sorted(path for path in data_dir.rglob("*") if path.is_file())[:1_000]
        return "".join(f"{path.stat().st_size:>12} {path.relative_to(data_dir)}\n" for path in paths)
    except OSError as exc:
        return f"cannot be read: {exc.strerror}\n"


def _log(data_dir: Path) -> str:
    try:
        return "\n".join(last_lines(data_dir, LOG_LINES)) + "\n"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}\n"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_PART_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return "there is none\n"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}\n"


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n"

"""The unit of systemd: what it says, and what systemd thinks of it."""

import os
import plistlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mycelia.node.service.launchd import agent_text
from mycelia.node.service.systemd import Installation, unit_text

MOST_EXPOSED = 3.0


def made(is_system: bool = True, has_gpu: bool = False, has_sandbox: bool = True, **more: object) -> Installation:
    words = ["/usr/bin/env", "node", "--model", "/models/a b$c%d.gguf"]
    place = Path("/var/lib/mycelia") if is_system else Path("/home/me/.local/share/mycelia")
    return Installation(words, is_system, place, 30.0, has_gpu, has_sandbox=has_sandbox, **more)  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("is_system", [True, False])
@pytest.mark.parametrize("has_gpu", [True, False])
def test_systemd_finds_the_unit_right_and_closed(
    is_system: bool, has_gpu: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = tmp_path / "mycelia.service"
    path.write_text(unit_text(made(is_system, has_gpu)))
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"}

    def analyzed(*words: str) -> str:
        command = ["systemd-analyze", *([] if is_system else ["--user"]), *words, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "mycelia.service:" not in analyzed("verify")
    found = re.search(r"exposure level .*: ([\d.]+)", analyzed("security", "--offline=true"))
    assert found is not None
    kind = f"{'system' if is_system else 'user'}{', GPU' if has_gpu else ''}"
    record_property(f"systemd-analyze security ({kind})", found[1])
    assert float(found[1]) <= MOST_EXPOSED


def test_a_unit_says_how_the_node_starts_lives_and_stops() -> None:
    text = unit_text(made(environment={"MYCELIA_DATA_DIR": "/var/lib/mycelia"}))
    assert 'ExecStart=/usr/bin/env node --model "/models/a b$$c%%d.gguf"\n' in text
    for line in ("Type=notify", "Restart=on-failure", "WatchdogSec=60", "TimeoutStopSec=45", "KillMode=mixed"):
        assert f"\n{line}\n" in text
    assert "\nEnvironment=MYCELIA_DATA_DIR=/var/lib/mycelia\n" in text and "\nDynamicUser=yes\n" in text


def test_a_unit_opens_only_what_the_node_needs() -> None:
    home = unit_text(made(readable=[Path("/home/me/venv/bin/mycelia")]))
    assert "ProtectHome=read-only" in home and "ProtectHome=yes" in unit_text(made())
    user = unit_text(made(is_system=False, writable=[Path("/home/me/my cache")]))
    assert "ReadWritePaths=-/home/me/.local/share/mycelia\n" in user and 'ReadWritePaths="-/home/me/my cache"\n' in user
    assert "DynamicUser" not in user and "WantedBy=default.target" in user
    gpu, plain = unit_text(made(has_gpu=True)), unit_text(made())
    assert "DeviceAllow=char-nvidia rw" in gpu and "MemoryDenyWriteExecute" not in gpu and "PrivateDevices" not in gpu
    assert "MemoryDenyWriteExecute=yes" in plain and "PrivateDevices=yes" in plain
    bare = unit_text(made(is_system=False, has_sandbox=False))
    assert "ProtectSystem" not in bare and "CapabilityBoundingSet" not in bare and "SystemCallFilter" in bare


def test_launchd_gets_the_same_command() -> None:
    read = plistlib.loads(agent_text(["/usr/bin/env", "node"], {"MYCELIA_DATA_DIR": "/data"}, 45))
    assert read["ProgramArguments"] == ["/usr/bin/env", "node"] and read["KeepAlive"] == {"SuccessfulExit": False}
    assert read["ExitTimeOut"] == 45 and read["EnvironmentVariables"] == {"MYCELIA_DATA_DIR": "/data"}

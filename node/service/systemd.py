"""The systemd unit of a node, for a user's own service manager or for the system's.

Both are as closed as the node's work allows: it reads its program and the model, writes its data directory, and uses
the network. A GPU needs its devices and memory that is writable and executable. A user's manager can close the file
system only where the kernel lets users have namespaces; ``lacks_sandbox`` tells when it could not, and the unit
``without_sandbox`` goes without.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mycelia.node.storage.data_dir import STATE_DIR

SERVICE = "mycelia"
UNIT = f"{SERVICE}.service"
STOP_SPARE_S = 15
"""Time that a node takes to end after --drain has passed."""
WATCHDOG_S = 60
_NO_NAMESPACE, _NO_CAPABILITIES, _NO_SECCOMP = 226, 218, 228
"""Exit codes with which systemd says that it could not set up a service."""

_BEHAVIOUR = """\
Type=notify
ExecStart={command}
{environment}ExecReload=kill -HUP $MAINPID
Restart=on-failure
# (wrong options or a wrong configuration do not mend themselves)
RestartPreventExitStatus=2
RestartSec=5
TimeoutStartSec=infinity
TimeoutStopSec={stop_s}
WatchdogSec={watchdog_s}
KillMode=mixed
# A guest of the machine: its turn comes last, and if memory is short, it goes first.
Nice=5
CPUWeight=20
IOWeight=20
OOMScoreAdjust=500
# The node itself starts a lost engine again.
OOMPolicy=continue
"""
_CLOSED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077
"""
_SANDBOX = """\
CapabilityBoundingSet=
PrivateTmp=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
"""
_NO_GPU = """\
MemoryDenyWriteExecute=yes
"""
_GPU_DEVICES = ("char-nvidia-uvm", "char-nvidia-frontend", "char-nvidia", "char-nvidia-caps", "char-drm", "/dev/kfd")


@dataclass(frozen=True)
class Installation:
    """What the unit is made of."""

    command: Sequence[str]
    """The program and its arguments, the first one an absolute path."""
    is_system: bool
    data_dir: Path
    drain_s: float
    has_gpu: bool = False
    readable: Sequence[Path] = ()
    """Paths besides the system's that the node reads: its program, the model."""
    writable: Sequence[Path] = ()
    """Folders besides the data directory that the node writes."""
    environment: Mapping[str, str] = field(default_factory=dict)
    has_sandbox: bool = True


def unit_text(made: Installation) -> str:
    """The unit file."""
    lines = ["[Unit]", "Description=Mycelia, a node of a peer-to-peer network of language models"]
    if made.is_system:
        lines += ["Wants=network-online.target", "After=network-online.target"]
    # (a node that cannot start, such as one without its model, is not tried for ever)
    lines += ["StartLimitIntervalSec=600", "StartLimitBurst=10", "", "[Service]"]
    environment = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in made.environment.items())
    behaviour = _BEHAVIOUR.format(
        command=" ".join(map(_quoted, made.command)),
        environment=environment,
        stop_s=round(made.drain_s) + STOP_SPARE_S,
        watchdog_s=WATCHDOG_S,
    )
    lines.append(behaviour + _identity(made) + "# What it cannot do:\n" + _CLOSED + _sandbox(made))
    wanted_by = "multi-user.target" if made.is_system else "default.target"
    return "\n".join(lines) + f"\n[Install]\nWantedBy={wanted_by}\n"


def _identity(made: Installation) -> str:
    if not made.is_system:
        return "Slice=background.slice\n"
    # (in the root slice its weight is that beside all users' programs together)
    return f"Slice=-.slice\nDynamicUser=yes\nStateDirectory={STATE_DIR.name}\nStateDirectoryMode=0700\nRemoveIPC=yes\n"


def _sandbox(made: Installation) -> str:
    text = "" if made.has_gpu else _NO_GPU
    if not made.has_sandbox:
        return text
    text += _SANDBOX
    if made.has_gpu:
        text += "DevicePolicy=closed\n" + "".join(f"DeviceAllow={device} rw\n" for device in _GPU_DEVICES)
    else:
        text += "PrivateDevices=yes\n"
    if made.is_system:
        in_homes = any(_is_in_home(path) for path in made.readable)
        text += f"ProtectHome={'read-only' if in_homes else 'yes'}\n"
    else:
        text += "ProtectHome=read-only\n"
    writable = [*made.writable, *([] if made.is_system else [made.data_dir])]
    # (a folder that is not there is no reason not to start: the node makes it or says so)
    return text + "".join(f"ReadWritePaths={_quoted(f'-{path}')}\n" for path in writable)


def _is_in_home(path: Path) -> bool:
    return any(path.is_relative_to(home) for home in ("/home", "/root", "/run/user"))


def _quoted(word: str) -> str:
    """A word as in ``ExecStart=``: systemd reads %, $, quotes and backslashes in it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$").replace("\n", "\\n")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", escaped) else f'"{escaped}"'


def lacks_sandbox(exit_code: int) -> bool:
    """Whether systemd could not close the service as the unit says."""
    return exit_code in (_NO_NAMESPACE, _NO_CAPABILITIES, _NO_SECCOMP)

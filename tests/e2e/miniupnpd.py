"""A real router program, miniupnpd, which forwards ports for a home that asks in PCP, NAT-PMP or UPnP."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "miniupnpd"

_SETTINGS = """\
ext_ifname=wan
listening_ip=lan
http_port=5000
secure_mode=yes
uuid=00000000-0000-0000-0000-000000000001
upnp_table_name=filter
upnp_nat_table_name=filter
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
"""
ALL_PROTOCOLS = ("enable_upnp=yes", "enable_natpmp=yes")
ALL_PORTS = ("allow 1024-65535 0.0.0.0/0 1024-65535",)


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


class Miniupnpd:
    """The program in the namespace of a router with the interfaces ``lan`` and ``wan``, and with the chains of nftables
    that its settings name."""

    def __init__(self, namespace: str, settings: Sequence[str] = ()) -> None:
        """settings: lines of its configuration, instead of all protocols, all ports and its own leases."""
        self._folder = tempfile.TemporaryDirectory(prefix="mycelia-miniupnpd-")
        folder = Path(self._folder.name)
        self._leases = folder / "leases"
        lines = [f"lease_file={self._leases}", *(settings or (*ALL_PROTOCOLS, *ALL_PORTS))]
        (folder / "settings").write_text(_SETTINGS + "\n".join(lines) + "\n")
        command = ["ip", "netns", "exec", namespace, PROGRAM, "-d", "-f", str(folder / "settings")]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-P", str(folder / "pid")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def leases(self) -> dict[int, int]:
        """External port -> the time at which its mapping ends, in seconds since 1970."""
        lines = self._leases.read_text().splitlines() if self._leases.exists() else []
        return {int(line.split(":")[1]): int(line.split(":")[4]) for line in lines}

    def log(self) -> str:
        return (Path(self._folder.name) / "log").read_text(errors="replace")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

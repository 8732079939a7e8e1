"""The routers of this machine: the default gateways, which may let packets from the internet in."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import structlog
import trio

log = structlog.get_logger()

MAX_GATEWAYS = 3
"""A machine has one, and one more for each further line or VPN."""
_ROUTES = trio.Path("/proc/self/net/route")
_ROUTES_V6 = trio.Path("/proc/self/net/ipv6_route")
_IS_GATEWAY = 2
"""The flag RTF_GATEWAY of a route."""
_LIST_DEADLINE_S = 2.0


async def default_gateways() -> list[str]:
    """The IPv4 addresses of the default gateways, the preferred one first."""
    try:
        if await _ROUTES.exists():
            return in_linux_table(await _ROUTES.read_text())
        with trio.move_on_after(_LIST_DEADLINE_S):
            done = await trio.run_process(["netstat", "-rn"], capture_stdout=True, check=False)
            return in_netstat(done.stdout.decode(errors="replace"))
    except (OSError, ValueError) as exc:
        log.debug("no_routes", reason=repr(exc))
    return []


async def default_gateways_v6() -> list[str]:
    """The IPv6 addresses of the default gateways, link-local ones with their interface, the preferred one first. Known
    on Linux only."""
    try:
        return in_linux_table_v6(await _ROUTES_V6.read_text()) if await _ROUTES_V6.exists() else []
    except (OSError, ValueError) as exc:
        log.debug("no_routes", reason=repr(exc))
    return []


def in_linux_table_v6(table: str) -> list[str]:
    """The gateways in the kernel's table of IPv6 routes. Raises ValueError."""
    found: list[tuple[int, str]] = []
    for line in table.splitlines():
        destination, length, _, _, gateway, metric, _, _, flags, interface = line.split()
        if int(destination, 16) == int(length, 16) == 0 and int(flags, 16) & _IS_GATEWAY:
            ip = IPv6Address(bytes.fromhex(gateway))
            found.append((int(metric, 16), f"{ip}%{interface}" if ip.is_link_local else str(ip)))
    return _distinct([gateway for _, gateway in sorted(found, key=lambda one: one[0])])


def in_linux_table(table: str) -> list[str]:
    """The gateways in the kernel's table of IPv4 routes, whose numbers are in the machine's byte order. Raises
    ValueError."""
    found: list[tuple[int, str]] = []
    for line in table.splitlines()[1:]:
        _, destination, gateway, flags, _, _, metric, mask, *_ = line.split()
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & _IS_GATEWAY:
            found.append((int(metric), socket.inet_ntoa(struct.pack("=I", int(gateway, 16)))))
    return _distinct([gateway for _, gateway in sorted(found, key=lambda one: one[0])])


def in_netstat(table: str) -> list[str]:
    """The gateways in the output of ``netstat -rn`` on macOS, BSD ("default GATEWAY") and Windows ("0.0.0.0 0.0.0.0
    GATEWAY")."""
    rows = [line.split() for line in table.splitlines()]
    named = [row[1] for row in rows if len(row) > 1 and row[0] == "default"]
    numbered = [row[2] for row in rows if len(row) > 2 and row[:2] == ["0.0.0.0", "0.0.0.0"]]  # noqa: S104
    return _distinct([text for text in named + numbered if _is_ipv4(text)])


def _is_ipv4(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv4Address)
    except ValueError:
        return False


def _distinct(gateways: list[str]) -> list[str]:
    return list(dict.fromkeys(gateways))[:MAX_GATEWAYS]

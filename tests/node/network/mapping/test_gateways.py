"""The default gateways in the route tables of different systems."""

import pytest

from mycelia.node.network.mapping.gateways import (
    MAX_GATEWAYS,
    default_gateways,
    default_gateways_v6,
    in_linux_table,
    in_linux_table_v6,
    in_netstat,
)

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"


def route(gateway: str, metric: int, destination: str = "00000000", flags: str = "0003") -> str:
    return f"eth0\t{destination}\t{gateway}\t{flags}\t0\t0\t{metric}\t00000000\t0\t0\t0\n"


def test_linux() -> None:
    table = HEAD + route("0101A8C0", 600) + route("FE00000A", 100) + route("0100A8C0", 1, destination="0000A8C0")
    assert in_linux_table(table + route("0101A8C0", 700)) == ["10.0.0.254", "192.168.1.1"]
    assert in_linux_table(HEAD + route("00000000", 0, flags="0001")) == [], "a line without a router"
    assert in_linux_table("") == []
    assert len(in_linux_table(HEAD + "".join(route(f"0{number}01A8C0", number) for number in range(9)))) == MAX_GATEWAYS
    with pytest.raises(ValueError, match="not enough values"):
        in_linux_table(HEAD + "eth0\n")


def test_linux_and_ipv6() -> None:
    nowhere = "0" * 32

    def route(gateway: str, metric: int, destination: str = nowhere, length: int = 0, flags: int = 3) -> str:
        hops = f"{nowhere} 00 {gateway} {metric:08x} 00000001 00000000 {flags:08x}"
        return f"{destination} {length:02x} {hops}     eth0\n"

    near, public = "fe80" + "0" * 27 + "1", "2a10" + "0" * 27 + "f"
    table = route(near, 1024) + route(public, 100) + route(public, 1, "2a10" + "0" * 28, 32)
    assert in_linux_table_v6(table + route(near, 2048)) == ["2a10::f", "fe80::1%eth0"]
    assert in_linux_table_v6(route(nowhere, 0, flags=0x00200200)) == in_linux_table_v6("") == []
    with pytest.raises(ValueError, match="not enough values"):
        in_linux_table_v6("0 0\n")


def test_macos_and_windows() -> None:
    macos = "Routing tables\n\nInternet:\nDestination Gateway Flags Netif\ndefault 192.168.1.1 UGScg en0\n"
    assert in_netstat(macos + "default fe80::1%en0 UGcg en0\ndefault link#12 UCSg utun3\n") == ["192.168.1.1"]
    windows = "Network Destination  Netmask  Gateway  Interface  Metric\n  0.0.0.0  0.0.0.0  10.1.2.3  10.1.2.9  25\n"
    assert in_netstat(windows + "  127.0.0.0  255.0.0.0  On-link  127.0.0.1  331\n") == ["10.1.2.3"]
    assert in_netstat("") == []


async def test_this_machine() -> None:
    assert all(gateway.count(".") == 3 for gateway in await default_gateways())
    assert all(":" in gateway for gateway in await default_gateways_v6())

"""What a node tells systemd."""

import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from mycelia.node.service import notify as notify_module
from mycelia.node.service.notify import WATCHDOG_PARTS, keep_watchdog_calm, notify, watchdog_s


def test_lines_go_to_a_socket_by_its_path_and_by_an_abstract_name(tmp_path: Path) -> None:
    for address, name in ((str(tmp_path / "notify"), None), (f"\0mycelia-{os.getpid()}", f"@mycelia-{os.getpid()}")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(address)
            notify("READY=1", "STATUS=serves fake", environment={"NOTIFY_SOCKET": name or address})
            assert heard.recv(1024) == b"READY=1\nSTATUS=serves fake"


@pytest.mark.parametrize(
    "environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/no/such"}, {"NOTIFY_SOCKET": "tcp"}]
)
def test_nobody_who_listens_is_no_error(environment: dict[str, str]) -> None:
    notify("READY=1", environment=environment)


def test_the_watchdog_of_another_process_is_not_meant() -> None:
    assert watchdog_s({"WATCHDOG_USEC": "60000000"}) == 60.0
    assert watchdog_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}) == 60.0
    for environment in (
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
        {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"},
    ):
        assert watchdog_s(environment) is None


async def test_signs_of_life_come_well_before_the_watchdog_bites(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    sent: list[float] = []
    monkeypatch.setattr(notify_module, "notify", lambda *lines: sent.append(trio.current_time()))
    with trio.move_on_after(120):
        await keep_watchdog_calm()
    assert len(sent) == 2 * WATCHDOG_PARTS and sent[1] - sent[0] == 60 / WATCHDOG_PARTS

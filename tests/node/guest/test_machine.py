"""What is read of the machine and its desktop."""

import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from mycelia.node.guest.machine import OthersShare, active_window, is_full_screen, is_on_battery, keeps_display_on


def test_the_share_of_others_is_a_share() -> None:
    others = OthersShare()
    sum(range(10**6))
    assert 0.0 <= others.measured() <= 1.0 and is_on_battery() in (True, False)


def test_a_window_that_fills_an_x_screen_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    state = "_NET_WM_STATE(ATOM) = _NET_WM_STATE_FULLSCREEN, _NET_WM_STATE_FOCUSED"
    said = {"-root": "_NET_ACTIVE_WINDOW(WINDOW): window id # 0x3e00007", "-id": state}

    def run(command: Sequence[str], **_: Any) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.CompletedProcess(command, 0, said[command[1]].encode(), b"")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert is_full_screen()
    said["-id"] = "_NET_WM_STATE(ATOM) = _NET_WM_STATE_FOCUSED"
    assert not is_full_screen()
    said["-root"] = "_NET_ACTIVE_WINDOW(WINDOW): window id # 0x0"
    assert not is_full_screen() and active_window(said["-root"]) == ""


def test_a_service_asks_its_manager_for_the_desktop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def run(
        command: Sequence[str], env: dict[str, str] | None = None, **_: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        asked.append((command[0], (env or {}).get("WAYLAND_DISPLAY")))
        said = b"LANG=C\nWAYLAND_DISPLAY=wayland-0\n" if command[0] == "systemctl" else b"(true,)\n"
        return subprocess.CompletedProcess(command, 0, said, b"")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for display in ("WAYLAND_DISPLAY", "DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    assert not is_full_screen() and asked == [], "not a service"
    monkeypatch.setenv("INVOCATION_ID", "x")
    assert is_full_screen() and asked == [("systemctl", None), ("gdbus", "wayland-0")]


def test_a_machine_without_the_desktops_programs_has_no_such_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for display in ("WAYLAND_DISPLAY", "DISPLAY"):
        monkeypatch.setenv(display, ":0")
        assert not is_full_screen()


def test_a_mac_that_shows_a_film_keeps_its_display_on() -> None:
    said = "   BackgroundTask                 0\n   PreventUserIdleDisplaySleep    {}\n   PreventSystemSleep  0\n"
    assert keeps_display_on(said.format(1)) and not keeps_display_on(said.format(0))

"""Text from other people's nodes is shown, and never controls the terminal."""

import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import msgspec
import pytest
import trio
from rich.console import Console
from trio.testing import MockClock

from mycelia.node.client.light import LightClient
from mycelia.node.commands.ask import _ask
from mycelia.node.commands.running import console as make_console
from mycelia.node.terminal.state import _largest, panel, show_requests
from mycelia.node.terminal.tables import failure_text, printable, show_answered, show_peers, show_route, tokens_per_s
from mycelia.node.views.frames import AnsweredView, CandidateView, FailedView, FrameView, RouteView
from mycelia.node.views.history import RequestRow
from mycelia.node.views.state import NodeState, PeerRow, StatsView, TrafficView, TreeRowView
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Ask, Sampling

ROW = PeerRow(
    peer="12D3KooWexample",
    address="/ip4/127.0.0.1/tcp/1",
    models=["[/nonsense]\x1b]0;title\x07[red]model"],
    digest="live",
    digest_blocks=0,
    active_requests=0,
    slots=8,
    waiting_requests=0,
    prefill_rate=0,
    round_trip_ms=None,
    connected_s=1.0,
)
REQUEST = RequestRow(
    id="0" * 32,
    started_at=0.0,
    model="fake",
    client="",
    status="failed",
    code="unknown_model",
    served_by="12D3KooWon-other",
    reason="first token expected in 0.01 s, 0 of 29 tokens cached",
    prompt_tokens=100_000,
    cached_tokens=100_000,
    completion_tokens=1_000,
    ttft_ms=10_000,
    total_ms=20_000,
    resumed=0,
)
NOTHING = AnsweredView("peer", "stop", 5, 0, 0, 0, 0, 0, 0, 0)


def captured(console: Console) -> io.StringIO:
    console.file = io.StringIO()
    console.width = 200
    return console.file


def test_a_models_name_is_neither_markup_nor_an_escape_sequence() -> None:
    console = make_console()
    output = captured(console)
    show_peers(console, [ROW])
    assert "[/nonsense]]0;title[red]model" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_tables_fit_a_terminal_of_80_columns() -> None:
    console = make_console()
    output = captured(console)
    console.width = 80
    relayed = msgspec.structs.replace(ROW, models=["smollm2"], prefill_rate=5000, round_trip_ms=142.5, path="relayed")
    show_peers(console, [msgspec.structs.replace(relayed, relay="12D3KooWthe-relay")])
    show_requests(console, [REQUEST])
    shown = re.findall(r"…\S*", output.getvalue())
    assert sorted(shown) == ["…Wexample", "…he-relay", "…on-other"], "nothing is cut but ids"
    assert REQUEST.reason not in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 80
    console.width = 140
    show_requests(console, [REQUEST])
    assert REQUEST.reason in output.getvalue()


def test_every_term_of_a_route_is_whole_in_80_columns() -> None:
    console = make_console()
    output = captured(console)
    console.width = 80
    candidate = CandidateView(
        "12D3KooWexample", 131_072, 999, 123.456, 9_999, 99_999, 999_999, 1.25, 1.0, 99_999, 12_345
    )
    show_route(console, RouteView("12D3KooWexample", "soonest", 131_072, [candidate]))
    assert re.findall(r"…\S*", output.getvalue()) == ["…Wexample"] and "123.456" in output.getvalue()
    assert max(map(len, output.getvalue().splitlines())) <= 80


def a_state(peer: str, peers: list[PeerRow]) -> NodeState:
    stats = StatsView({}, {}, 100_000, 60_000, 0, 0, 0, 0, 0, 0, 0, 250, 1_250)
    traffic = TrafficView({}, {"digests": 123_456.0, "vitals": 1_234.5, "requests": 12_345.6}, {}, 0, {}, 0, 0)
    return NodeState(
        peer=peer,
        version="0.10.1+g1234567",
        addresses=[f"/ip4/203.0.113.200/udp/40001/quic-v1/p2p/{peer}"],
        model="Qwen3-4B-Instruct-2507-Q4_K_M",
        namespace="0" * 32,
        reuse="checkpoints",
        uptime_s=123_456.0,
        stats=stats,
        peers=peers,
        traffic=traffic,
        refused={},
        cell_bits=3,
        context_tokens=131_072,
        active_requests=8,
        waiting_requests=12,
        slots=8,
        exchanges=3,
        tasks=30,
        cached_tokens=100_000,
        cells=131_072,
    )


def test_the_panel_fits_a_terminal_of_80_columns() -> None:
    console = make_console()
    output = captured(console)
    console.width = 80
    peer = "12D3KooWD2czmHonvLrSvvEy5hZEHUuLgBjbXuTGskpKCVZe75oH"
    full = msgspec.structs.replace(ROW, peer=peer, models=["M" * 60], path="punched", digest="syncing")
    other = msgspec.structs.replace(full, digest_blocks=12_345, prefill_rate=12_345, round_trip_ms=142.5)
    state = a_state(peer, [other])
    tree = [TreeRowView(0, 100, 100, True, "You are " * 20)]
    console.print(panel(state, [REQUEST], tree, ["a line of the log " * 9], "http://127.0.0.1:7118", console.width))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.strip()]
    assert rows[0].endswith("Ctrl-C stops the node") and rows[1].split() == ["node", peer]
    assert [line.split()[0] for line in rows[1:5]] == ["node", "version", "swarm", "listens"]
    assert rows[4].split()[-1] + rows[5].strip() == state.addresses[0], "addresses are whole, for they are copied"
    assert [line.split()[0] for line in rows[6:12]] == ["model", "other", "load", "cache", "peers", "requests"]
    (row,) = [line for line in rows if "punched" in line]
    assert row.split()[0] == "…CVZe75oH" and row.split()[-5:] == ["syncing", "12345", "0", "12345", "142.5"]
    assert len(rows) == 21, "one line each"


def test_the_panel_tells_what_prompts_share() -> None:
    rows = [
        TreeRowView(0, 5, 5, True, "Hi"),
        TreeRowView(0, 100, 100, False, "You are\x1b[2J"),
        TreeRowView(1, 20, 120, True, "one"),
        TreeRowView(1, 30, 130, True, "two"),
    ]
    assert _largest(rows) == [
        "    150 tokens in 2 cached sequences  'You are\\x1b[2J'",
        "      5 tokens in 1 cached sequences  'Hi'",
    ]
    assert _largest([]) == [] and len(_largest(rows[:1] * 9)) == 3


def test_control_characters_are_left_out() -> None:
    assert printable("a\x1b[2Jb\x07\x9bc\r\nd\tü") == "a[2Jbc\nd\tü"


def test_an_answer_without_tokens_has_no_negative_rate() -> None:
    assert tokens_per_s(NOTHING) == 0
    console = make_console()
    output = captured(console)
    show_answered(console, NOTHING)
    assert "0.0 tokens/s" in output.getvalue()


def test_a_refusal_for_load_says_when_to_come_back() -> None:
    busy = FailedView("overloaded", "the queue is full", True, 2.4)
    assert failure_text(busy).startswith("all nodes are busy; try again in about 3 s")
    assert failure_text(FailedView("overloaded", "the engine is restarting", True)).endswith("ask again")
    assert failure_text(FailedView("too_long", "too long", False)) == "too long"


@pytest.mark.parametrize(("wait", "timeout_s", "num_asked"), [(True, None, 3), (True, 5.0, 2), (False, None, 1)])
async def test_asking_waits_for_a_place_if_it_may(
    wait: bool, timeout_s: float | None, num_asked: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asked: list[float] = []

    @asynccontextmanager
    async def ask_swarm(*_: object) -> AsyncIterator[AsyncIterator[FrameView]]:
        send, receive = trio.open_memory_channel[FrameView](1)
        asked.append(trio.current_time() - began)
        send.send_nowait(NOTHING if len(asked) == 3 else FailedView("overloaded", "full", True, 4.0))
        yield receive

    monkeypatch.setattr("mycelia.node.client.ask.ask_swarm", ask_swarm)
    began = trio.current_time()
    request = Ask(request_id=bytes(16), model="", messages=(), sampling=Sampling(max_tokens=1))
    is_answered = num_asked == 3
    with nullcontext() if is_answered else pytest.raises(LocalError, match="in about 4 s"):
        await _ask(request, Path(), (), LightClient(), timeout_s, wait=wait, explain=False, as_json=False)
    assert asked == [4.0 * number for number in range(num_asked)]

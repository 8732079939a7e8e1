"""Faults of peers, of clients and of this program: they cost a request or a log line, never the node."""

import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mycelia.node.driver import OverlayDriver
from mycelia.node.engine.engine import EngineRequest
from mycelia.node.network.events import EventQueue
from mycelia.node.network.identity import new_identity
from mycelia.node.network.memory import MemoryStream
from mycelia.node.network.network import MessageStream, NetworkSettings
from mycelia.node.requests.entry import ASK, GENERATE
from mycelia.node.storage.rundir import RunInfo, find_running, is_held, locked, write_run_info
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.cells.cells import ROOT, Cell
from mycelia.proto.effects import Disconnect, Effect, Publish, Send, SetTimer
from mycelia.proto.events import Connected, Event, Timer, TimerFired
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.errors import LimitExceeded, LocalError
from mycelia.proto.wire.messages import Accepted, Answered, Ask, Generate, Message, Text, Tokens, Vitals, VitalsUpdate
from tests.node.members import LONG, Member, an_ask, frames_of, open_members, text_of

PEER = b"\x01" * 38
NAMESPACE = bytes(16)


class ScriptedOverlay:
    """Answers every event with what the test put there, or raises it."""

    def __init__(self, *script: list[Effect] | Exception) -> None:
        self.script = list(script)
        self.events: list[Event] = []
        self.seen = trio.Event()

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.events.append(event)
        step = self.script.pop(0) if self.script else []
        if not self.script:
            self.seen.set()
        if isinstance(step, Exception):
            raise step
        return step


class BrokenNetwork:
    """Every call of it fails."""

    def __init__(self, error: Exception) -> None:
        self.queue = EventQueue()
        self.events = self.queue.read
        self._error = error

    async def publish(self, namespace: bytes, message: Message, cell: Cell = ROOT) -> None:
        raise self._error

    async def send(self, peer: bytes, message: Message) -> None:
        raise self._error

    async def disconnect(self, peer: bytes) -> None:
        raise self._error


@asynccontextmanager
async def running(overlay: ScriptedOverlay, network: BrokenNetwork) -> AsyncIterator[OverlayDriver]:
    """A driver between the two; the block ends with the error that ended it."""
    driver = OverlayDriver(overlay, network, lambda effect: None, RequestLog())  # type: ignore[arg-type]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(driver.run)
            yield driver
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [LimitExceeded("too large"), LocalError("no"), KeyError("a bug")], ids=repr)
async def test_effects_that_fail_end_nothing(error: Exception, autojump_clock: trio.testing.MockClock) -> None:
    vitals = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=1)
    update = VitalsUpdate(namespace=NAMESPACE, vitals=vitals)
    overlay = ScriptedOverlay([Publish(NAMESPACE, update), Send(PEER, update), Disconnect(PEER, "test", 0.0)], [])  # type: ignore[arg-type]
    network = BrokenNetwork(error)
    async with running(overlay, network) as driver:
        network.queue.put(Connected(PEER, ""))
        network.queue.put(Connected(PEER, ""))
        await overlay.seen.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not driver.num_sending, "nothing is under way any more"


async def test_an_event_that_cannot_be_handled_ends_nothing(autojump_clock: trio.testing.MockClock) -> None:
    overlay = ScriptedOverlay(AssertionError("a bug"), [])
    network = BrokenNetwork(KeyError())
    async with running(overlay, network):
        network.queue.put(Connected(PEER, "first"))
        network.queue.put(Connected(PEER, "second"))
        await overlay.seen.wait()
    assert overlay.events == [Connected(PEER, "first"), Connected(PEER, "second")]


async def test_timers_of_one_kind_may_be_due_at_one_instant(autojump_clock: trio.testing.MockClock) -> None:
    overlay = ScriptedOverlay([], ValueError("a bug"), [])
    network = BrokenNetwork(KeyError())
    async with running(overlay, network) as driver:
        at = driver.now() + 1
        overlay.script[0] = [SetTimer(Timer("suspect", b"one"), at), SetTimer(Timer("suspect", b"two"), at)]
        network.queue.put(Connected(PEER, ""))
        await overlay.seen.wait()
    assert {event.timer.subject for event in overlay.events if isinstance(event, TimerFired)} == {b"one", b"two"}


async def test_a_client_that_leaves_at_once_starts_no_attempt(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        requests = spy_on(one)
        async with one.node.ask(an_ask("hello", max_tokens=500)):
            pass
        await trio.testing.wait_all_tasks_blocked()
        assert one.engine.num_cancelled == len(requests)
        assert one.node.state().active_requests == 0
        assert not one.node.entry.num_running


async def test_an_error_inside_an_attempt_costs_the_attempt(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_members(2) as (_, (one, two)):
        expected = text_of(await frames_of(two, an_ask("hello")))
        monkeypatch.setattr(one.engine, "generate", broken_generate)
        frames = await frames_of(one, an_ask("hello"))
        answered = frames[-1]
        assert isinstance(answered, Answered) and answered.served_by == two.peer
        assert text_of(frames) == expected


def broken_generate(request: EngineRequest) -> None:
    raise ZeroDivisionError("a bug")


async def test_a_request_too_large_for_the_wire_moves_on(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_members(2) as (_, (one, two)):
        await frames_of(two, an_ask(LONG))
        await trio.sleep(3)
        monkeypatch.setattr(MemoryStream, "send", over_the_limit)
        frames = await frames_of(one, an_ask(LONG))
        answered = frames[-1]
        assert isinstance(answered, Answered) and answered.served_by == one.peer


async def over_the_limit(stream: MemoryStream, message: Message) -> None:
    raise LimitExceeded("a message over the limit")


async def test_a_peer_that_sends_text_without_tokens_is_left(autojump_clock: trio.testing.MockClock) -> None:
    """Otherwise its answer would have no end: ``max_tokens`` counts tokens."""
    async with open_members(2) as (_, (one, two)):
        await frames_of(two, an_ask(LONG))
        await trio.sleep(3)
        two.network.serve(GENERATE, flood)
        frames = await frames_of(one, an_ask(LONG))
        answered = frames[-1]
        assert isinstance(answered, Answered) and answered.served_by == one.peer
        assert "spam" not in text_of(frames)


async def flood(stream: MessageStream) -> None:
    await stream.receive()
    while True:
        await stream.send(Tokens(position=0, tokens=b"", text=b"spam"))


@pytest.mark.parametrize("protocol", [ASK, GENERATE])
async def test_clients_that_stall_leave_no_traceback(
    protocol: str, autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sends nothing, one never reads its answer, one leaves in the middle of it."""
    async with open_members(1, decode_rate=1_000.0) as (swarm, (one,)):
        async with swarm.open_network(NetworkSettings(identity=new_identity(), overlay=False)) as client:
            swarm.link(client.peer_id, one.peer)
            silent = await client.open(one.peer, protocol)
            deaf = await client.open(one.peer, protocol)
            await deaf.send(opening(protocol, one, max_tokens=50_000))
            leaving = await client.open(one.peer, protocol)
            await leaving.send(opening(protocol, one, max_tokens=1_000))
            while not isinstance(await leaving.receive(), Accepted | Text):
                pass
            await leaving.reset()
            await trio.sleep(70)  # of virtual time: more than the last answer takes
            await silent.reset()
            assert one.node.state().active_requests == 0
        assert "Traceback" not in capsys.readouterr().out
        assert not one.node.entry.num_running


def opening(protocol: str, member: Member, max_tokens: int) -> Ask | Generate:
    ask = an_ask("hello", max_tokens)
    if protocol == ASK:
        return ask
    return Generate(
        request_id=bytes(16),
        namespace=member.engine.info.namespace,
        prompt=pack_tokens([1, 2, 3]),
        sampling=ask.sampling,
        promised_tokens=0,
    )


def spy_on(member: Member) -> list[EngineRequest]:
    requests: list[EngineRequest] = []
    generate = member.engine.generate

    def spy(request: EngineRequest) -> object:
        requests.append(request)
        return generate(request)

    member.engine.generate = spy  # type: ignore[assignment,method-assign]
    return requests


# --- the data directory ---------------------------------------------------------------------------------------------


def test_looking_for_a_node_does_not_look_like_one(tmp_path: Path) -> None:
    """Two commands that look at the same time must not take each other for the node of a stale run file."""
    with locked(tmp_path):
        write_run_info(tmp_path, RunInfo(1, "http://127.0.0.1:1", "peer"))
        assert find_running(tmp_path) == RunInfo(1, "http://127.0.0.1:1", "peer")
    write_run_info(tmp_path, RunInfo(1, "http://127.0.0.1:1", "peer"))
    with (tmp_path / "lock").open() as other_command:
        fcntl.flock(other_command, fcntl.LOCK_SH)
        assert find_running(tmp_path) is None
        assert not is_held(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"pid": "1", "api_url": 5, "peer": null}'])
def test_a_damaged_run_file_is_no_running_node(tmp_path: Path, content: bytes) -> None:
    with locked(tmp_path):
        (tmp_path / "node.json").write_bytes(content)
        assert find_running(tmp_path) is None
        assert is_held(tmp_path), "though a node is there"
    assert not (tmp_path / "node.json").exists()


def test_a_run_file_that_cannot_be_removed_is_left(tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / "node.json").mkdir()

"""Drives an ``Overlay``: network and timers become events, effects become IO. Holds no rule of the protocol."""

import math
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import assert_never

import structlog
import trio

from mycelia.node.network.network import Network, NetworkError
from mycelia.node.peer_id import id_text, peer_text
from mycelia.node.signals import Signal
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.effects import (
    MAX_SENDS_PER_PEER,
    Abandon,
    Begin,
    CancelTimer,
    Connect,
    Deliver,
    DeliverPromptLogprobs,
    Disconnect,
    Dispatch,
    Effect,
    Emit,
    Fail,
    FindProviders,
    Finish,
    JoinCell,
    LeaveCell,
    Provide,
    Publish,
    RequestEffect,
    Send,
    SetTimer,
)
from mycelia.proto.events import Event, ProvidersFound, Timer, TimerFired
from mycelia.proto.overlay import Overlay
from mycelia.proto.wire.errors import MyceliaError

log = structlog.get_logger()

_LOUD = {"node_joined", "node_left", "peer_quarantined", "wire_version_refused", "attempt_failed", "cell_changed"}
"""Events for the person who runs the node; the others are for debugging."""


def slept_s() -> float:
    """For how long this machine has slept since it was started; 0 where the system does not say so."""
    if sys.platform != "linux":
        return 0.0
    total = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(total - time.clock_gettime(time.CLOCK_MONOTONIC), 0.0)  # (read last: a delay makes it less, never more)


class SteadyClock:
    """The time that the protocol runs on: Unix seconds that never go back.

    It starts at the wall clock and advances with trio's, so that a corrected wall clock does not move deadlines. trio's
    clock stands still while the machine sleeps, so that time is added: peers refuse what is dated minutes ago.
    """

    SHORTEST_SLEEP_S = 1.0
    """Shorter ones are taken for the time between two looks at clocks."""

    def __init__(self) -> None:
        self._offset_s = time.time() - trio.current_time()
        self._slept_s = slept_s()

    def now(self) -> float:
        slept = slept_s()
        if slept - self._slept_s >= self.SHORTEST_SLEEP_S:
            log.info("slept", seconds=round(slept - self._slept_s))
            self._offset_s += slept - self._slept_s
            self._slept_s = slept
        return trio.current_time() + self._offset_s

    def to_trio(self, at: float) -> float:
        """The same instant on trio's clock, for deadlines."""
        return at - self._offset_s


class OverlayDriver:
    """One overlay on one network. ``handle`` may be called from any task of the same trio run."""

    def __init__(
        self, overlay: Overlay, network: Network, perform_request: Callable[[RequestEffect], None], requests: RequestLog
    ) -> None:
        self._overlay = overlay
        self._requests = requests
        self._network = network
        self._perform_request = perform_request
        self._clock = SteadyClock()
        self._timers: dict[Timer, float] = {}
        self._wakes_at = math.inf
        """Time for which the task of the timers sleeps."""
        self._timers_changed = Signal()
        """Notified when a timer is due earlier than that."""
        self._sending: Counter[bytes] = Counter()
        self._complained: set[tuple[bytes, str]] = set()
        self._nursery: trio.Nursery | None = None
        self.joined = Signal()
        """A node's hello has arrived."""
        self.on_emit: Callable[[Emit], None] = lambda effect: None
        """Called with every event that the overlay emits."""

    def now(self) -> float:
        return self._clock.now()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled. ``handle`` works from ``started()`` on."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._run_timers)
            nursery.start_soon(self._read_network)
            task_status.started()

    @property
    def num_sending(self) -> int:
        return self._sending.total()

    def handle(self, event: Event) -> None:
        """Pass one event to the overlay and perform the resulting effects."""
        for effect in self._overlay.handle(event, self.now()):
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        assert self._nursery is not None, "handle() before run()"
        match effect:
            case Publish():
                self._nursery.start_soon(self._publish, effect)
            case Send():
                if self._sending[effect.peer] >= MAX_SENDS_PER_PEER:
                    log.debug("send_dropped", peer=peer_text(effect.peer), kind=type(effect.message).__name__)
                    return
                self._sending[effect.peer] += 1
                self._nursery.start_soon(self._send, effect)
            case SetTimer():
                self._timers[effect.timer] = effect.at
                if effect.at < self._wakes_at:
                    self._timers_changed.notify()
            case CancelTimer():
                self._timers.pop(effect.timer, None)
            case JoinCell():
                self._nursery.start_soon(
                    _attempt, "join_failed", self._network.join_cell(effect.namespace, effect.cell)
                )
            case LeaveCell():
                self._nursery.start_soon(
                    _attempt, "leave_failed", self._network.leave_cell(effect.namespace, effect.cell)
                )
            case Connect():
                self._nursery.start_soon(_attempt, "connect_failed", self._network.dial(effect.peer))
            case Provide():
                self._nursery.start_soon(_attempt, "provide_failed", self._network.provide(effect.key))
            case FindProviders():
                for key in effect.keys:
                    self._nursery.start_soon(self._find_providers, effect.request_id, key)
            case Disconnect():
                self._nursery.start_soon(self._disconnect, effect)
            case Emit():
                self._emit(effect)
            case Dispatch() | Begin() | DeliverPromptLogprobs() | Deliver() | Finish() | Fail() | Abandon():
                self._perform_request(effect)
            case _:
                assert_never(effect)

    async def _publish(self, effect: Publish) -> None:
        await _attempt("publish_failed", self._network.publish(effect.namespace, effect.message, effect.cell))

    async def _send(self, effect: Send) -> None:
        try:
            await _attempt("send_failed", self._network.send(effect.peer, effect.message))
        finally:
            self._sending[effect.peer] -= 1
            if not self._sending[effect.peer]:
                del self._sending[effect.peer]

    async def _find_providers(self, request_id: bytes, key: bytes) -> None:
        providers: list[bytes] = []
        try:
            providers = await self._network.find_providers(key)
        except NetworkError as exc:
            log.debug("lookup_failed", key=key.hex(), error=str(exc))
        self._handle_safely(ProvidersFound(request_id, key, providers))

    async def _disconnect(self, effect: Disconnect) -> None:
        log.info("disconnecting", peer=peer_text(effect.peer), reason=effect.reason)
        await _attempt("disconnect_failed", self._network.disconnect(effect.peer))

    async def _read_network(self) -> None:
        async for event in self._network.events():
            self._handle_safely(event)

    def _handle_safely(self, event: Event) -> None:
        """Peers can cause these events, so an error of ours in handling one must not end the node."""
        try:
            self.handle(event)
        except Exception:
            log.exception("event_failed", kind=type(event).__name__)

    async def _run_timers(self) -> None:
        while True:
            self._wakes_at = min(self._timers.values(), default=math.inf)
            with trio.move_on_at(self._clock.to_trio(self._wakes_at)):
                await self._timers_changed.wait()
            now = self.now()
            due = [(at, timer) for timer, at in self._timers.items() if at <= now]
            for _, timer in sorted(due, key=lambda pair: (pair[0], pair[1].kind)):
                if self._timers.get(timer, math.inf) <= now:
                    del self._timers[timer]
                    self._handle_safely(TimerFired(timer))

    def _emit(self, effect: Emit) -> None:
        fields = {name: id_text(value) if isinstance(value, bytes) else value for name, value in effect.fields.items()}
        self.on_emit(effect)
        if "request" in effect.fields:
            self._note_request(effect)
        if effect.event == "node_joined":
            self.joined.notify()
        if effect.event == "peer_offence":
            self._complain(effect, fields)
        elif effect.event in _LOUD:
            log.info(effect.event, **fields)
        else:
            log.debug(effect.event, **fields)

    def _note_request(self, effect: Emit) -> None:
        request_id, peer = effect.fields["request"], effect.fields.get("peer", b"")
        assert isinstance(request_id, bytes) and isinstance(peer, bytes)
        rest = [f"{name} {value}" for name, value in effect.fields.items() if name not in ("request", "peer", "reason")]
        self._requests.emitted(request_id, effect.event, peer, str(effect.fields.get("reason", ", ".join(rest))))

    def _complain(self, effect: Emit, fields: dict[str, object]) -> None:
        """Logs a peer's first offence of each kind; repetitions are only counted, by the overlay."""
        peer, reason = effect.fields["peer"], str(effect.fields["reason"])
        assert isinstance(peer, bytes)
        key = (peer, reason.partition(":")[0])
        if key not in self._complained and len(self._complained) < 4_096:
            self._complained.add(key)
            log.warning(effect.event, **fields)


async def _attempt(failure: str, work: Awaitable[None]) -> None:
    """Runs network IO. A failure is logged and ignored: the protocol recovers what was lost."""
    try:
        await work
    except (NetworkError, MyceliaError) as exc:
        log.debug(failure, error=str(exc))
    except Exception:
        log.exception(failure)

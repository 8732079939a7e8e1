"""Questions to the engine process about texts: in turn, bounded, and none that killed it asked again.

Reading a text takes time that somebody else waits for, so what is to be read waits in fair queues (service: a token for
every four bytes), one for short texts and one for long ones: nobody's question of an ordinary length waits for a long
text. The child has a thread for either (``renders.py``) and is sent little at a time.

When the child dies, what it was not at is asked again of the next one. The oldest question of a lane that was not
answered is what the child was at there, if it was at any: it ends with an error, unless the child is known to have died
of something else.

Questions that are alike, of one client at one time, are asked once: each choice of an answer asks for its prompt.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from mycelia.node.engine import ipc
from mycelia.node.engine.prompts import TooLongError
from mycelia.node.errors import BusyError
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.admission.fair_queue import FairQueue, share_of
from mycelia.proto.wire.errors import LimitExceeded, LocalError

MAX_WAITING = 256
"""Questions of each lane. What waits longer than proto.fair_queue.MAX_WAIT_S is refused before."""
MAX_WAITING_BYTES = 32 << 20
"""In each lane: 64 of the longest conversations."""
SHORT_WINDOW = 16
"""Short questions that the child has at once, so that it never waits for the next one: 16 kB are read in 10 ms."""
LONG_WINDOW = 1
GUESS_S = 0.1
"""Between two starts, before any was seen with others waiting."""
RETRY_S = 1.0
"""After a refusal for bytes, and after a death."""
BYTES_A_TOKEN = 4

Answer = ipc.Rendered | ipc.Spelled | ipc.Embedded
Question = ipc.Render | ipc.Parse | ipc.Spell | ipc.Embed


@dataclass(eq=False)
class Call:
    """One question."""

    key: int
    frame: bytes
    client: bytes
    subnet: str
    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    """None once it is done: the child died over it."""
    is_left: bool = False
    """Nobody waits for the answer any more."""

    @property
    def service(self) -> int:
        """In tokens of a prompt."""
        return len(self.frame) // BYTES_A_TOKEN

    def end(self, answer: Answer | None) -> None:
        self.answer = answer
        self.done.set()


class Lane:
    """Questions of one kind: those that wait, and those that the child has. Pure but for the events of the calls.

    Invariant: at most ``window`` are with the child; each of the others waits.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._waiting: FairQueue[Call] = FairQueue(MAX_WAITING)
        self._sent: dict[int, Call] = {}
        """By key, in the order in which they were sent."""
        self._bytes = ByteShares(MAX_WAITING_BYTES)
        """Of what waits."""

    def join(self, call: Call, now: float) -> float:
        """0.0: ``call`` waits. Else it is refused, and may come again after so many seconds. Mutates."""
        size, share = len(call.frame), share_of(call)
        if not self._bytes.take(share, size):
            return RETRY_S
        wait_s = self._waiting.join(call, now, GUESS_S)
        if wait_s:
            self._bytes.free(share, size)
        return wait_s

    def next_to_send(self, now: float) -> Call | None:
        """What the child is to be sent now; None: nothing, or it has enough. Mutates."""
        if not self._waiting:
            return None
        if len(self._sent) >= self._window:
            self._waiting.blocked(now)
            return None
        call = next(iter(self._waiting))
        self._waiting.start(call, call.service, now)
        self._count_out(call)
        self._sent[call.key] = call
        return call

    def leave(self, call: Call) -> bool:
        """Nobody waits for ``call`` any more. Whether the child has it: it keeps its place then. Mutates."""
        call.is_left = True
        if call in self._waiting:
            self._waiting.withdraw(call)
            self._count_out(call)
        return call.key in self._sent

    def answered(self, key: int, answer: Answer | None) -> bool:
        """The child is done with that question, if it had it. Mutates."""
        call = self._sent.pop(key, None)
        if call is not None:
            call.end(answer)
        return call is not None

    def lost(self, num_ended: int) -> None:
        """The child died: the first ``num_ended`` of what it had are over, the others wait again. Mutates."""
        sent = list(self._sent.values())
        self._sent.clear()
        for call in sent[:num_ended]:
            call.end(None)
        for call in reversed(sent[num_ended:]):
            if not call.is_left:
                self._waiting.put_back(call, call.service)
                self._bytes.force(share_of(call), len(call.frame))

    def _count_out(self, call: Call) -> None:
        self._bytes.free(share_of(call), len(call.frame))


class _Shared:
    """An answer that several wait for."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.answer: Answer | None = None
        self.error: LocalError | None = None


class Calls:
    """All questions about texts to one engine process after the other."""

    def __init__(self, keys: Iterator[int]) -> None:
        """keys: numbers that nothing else sent to the child has."""
        self._keys = keys
        self._short, self._long = Lane(SHORT_WINDOW), Lane(LONG_WINDOW)
        self._embeds = Lane(MAX_WAITING)
        """The child has a queue of its own for them."""
        self._send: Callable[[bytes], None] | None = None
        self._shared: dict[Hashable, _Shared] = {}

    async def ask(self, question: Callable[[int], Question], client: bytes = b"", subnet: str = "") -> Answer:
        """The child's answer, also over restarts of it. question: makes it, given its key.

        Raises TooLongError, BusyError when too much waits, LocalError for what the child refuses or died over.
        """
        message = question(next(self._keys))
        try:
            call = Call(message.key, ipc.encode(message), client, subnet)
        except (LimitExceeded, UnicodeEncodeError) as exc:
            raise LocalError(str(exc)) from exc
        lane = self._lane(message)
        wait_s = lane.join(call, trio.current_time())
        if wait_s:
            raise BusyError("too many texts wait to be read", wait_s)
        self._send_from(lane)
        with self._leaving(lane, call):
            await call.done.wait()
        if call.answer is None and lane is self._embeds:
            raise BusyError("the engine process died", RETRY_S)  # (of any of many)
        return _checked(call.answer)

    async def ask_once(
        self, identity: Hashable, question: Callable[[int], Question], client: bytes, subnet: str
    ) -> Answer:
        """As ``ask``; who asks the same meanwhile gets the same answer. identity: equal for the same question."""
        identity = identity, client, subnet
        while (shared := self._shared.get(identity)) is not None:
            await shared.over.wait()
            if shared.error is not None:
                raise shared.error
            if shared.answer is not None:
                return shared.answer  # (else who asked has left)
        shared = self._shared[identity] = _Shared()
        try:
            shared.answer = await self.ask(question, client, subnet)
        except LocalError as exc:
            shared.error = exc
            raise
        finally:
            del self._shared[identity]
            shared.over.set()
        return shared.answer

    def start(self, send: Callable[[bytes], None]) -> None:
        """There is a child, which takes questions by ``send``."""
        self._send = send
        for lane in (self._short, self._long, self._embeds):
            self._send_from(lane)

    def stop(self) -> None:
        """There is no child any more; ``lost`` is to follow."""
        self._send = None

    def lost(self, is_suspect: bool) -> None:
        """What the child that died had not answered is over or waits for the next. is_suspect: a question may have
        killed it."""
        self._short.lost(int(is_suspect))
        self._long.lost(int(is_suspect))
        self._embeds.lost(MAX_WAITING if is_suspect else 0)

    def answered(self, answer: Answer) -> None:
        """The child answered."""
        for lane in (self._short, self._long, self._embeds):
            if lane.answered(answer.key, answer):
                self._send_from(lane)

    def _lane(self, message: Question) -> Lane:
        if isinstance(message, ipc.Embed):
            return self._embeds
        return self._long if ipc.is_long(message) else self._short

    @contextmanager
    def _leaving(self, lane: Lane, call: Call) -> Iterator[None]:
        try:
            yield
        finally:
            if not call.done.is_set() and lane.leave(call) and lane is self._embeds:
                lane.answered(call.key, None)  # (the child says nothing more of what is cancelled)
                if self._send is not None:
                    self._send(ipc.encode(ipc.Cancel(call.key)))

    def _send_from(self, lane: Lane) -> None:
        while self._send is not None and (call := lane.next_to_send(trio.current_time())) is not None:
            self._send(call.frame)


def _checked(answer: Answer | None) -> Answer:
    if answer is None:
        raise LocalError("the engine process died while it read this text")
    if isinstance(answer, ipc.Embedded) and answer.is_busy:
        raise BusyError(answer.error, answer.retry_after_s)
    if isinstance(answer, ipc.Rendered) and answer.is_too_long:
        raise TooLongError(answer.error)
    if answer.error:
        raise LocalError(answer.error)
    return answer

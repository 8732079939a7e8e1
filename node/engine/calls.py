"""The parent's questions to the engine process about texts: in fair order, bounded, and not repeated if one killed it.

While the child reads one text, others wait. So questions wait in fair queues (service: one token for every four bytes),
one queue for short texts and one for long texts: a question of ordinary length never waits for a long text. The child
has a thread for each queue (``renders.py``), and the parent sends it few questions at a time.

When the child dies, the parent asks the next child the unanswered questions again, except those that the child may have
died of: the oldest unanswered question of each lane is the one the child was reading, if any. Those end with an error,
unless the child is known to have died of another cause.

Equal questions of one client at the same time are asked once: each choice of an answer asks for the same prompt.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import trio

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.prompts import TooLongError
from mycelia.node.errors import BusyError
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.admission.fair_queue import FairQueue, share_of
from mycelia.proto.wire.errors import LimitExceeded, LocalError

MAX_WAITING = 256
"""Questions that wait in a lane, at most. An expected wait over ``proto.fair_queue.MAX_WAIT_S`` is refused earlier."""
MAX_WAITING_BYTES = 32 << 20
"""Maximum bytes that wait in a lane: 64 of the longest conversations."""
SHORT_WINDOW = 16
"""Short questions that the child has at once, so that it never waits for the next one: it reads 16 kB in 10 ms."""
LONG_WINDOW = 1
GUESS_S = 0.1
"""Assumed seconds between two starts, before the first start with others waiting is measured."""
RETRY_S = 1.0
"""Retry time after a refusal for bytes, and for embeddings after the child's death."""
BYTES_A_TOKEN = 4

Answer = ipc.Rendered | ipc.Spelled | ipc.Embedded
Question = ipc.Render | ipc.Parse | ipc.Pair | ipc.Spell | ipc.Embed


@dataclass(eq=False)
class Call:
    key: int
    frame: bytes
    client: bytes
    subnet: str
    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    """None when the call is done: the child died over it."""
    is_left: bool = False
    """The caller does not wait for the answer any more."""

    @property
    def service(self) -> int:
        """The cost in prompt tokens."""
        return len(self.frame) // BYTES_A_TOKEN

    def end(self, answer: Answer | None) -> None:
        self.answer = answer
        self.done.set()


class Lane:
    """Questions of one kind, waiting or sent to the child. Pure except for the events of the calls. Invariant: the
    child has at most ``window`` of them; each of the others waits."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._waiting: FairQueue[Call] = FairQueue(MAX_WAITING)
        self._sent: dict[int, Call] = {}
        """Key -> call, in the order of sending."""
        self._bytes = ByteShares(MAX_WAITING_BYTES)

    def passes(self, call: Call) -> bool:
        """Whether ``call``, which has not joined, may be sent at once, as nothing waits. Then it counts as sent.
        Mutates."""
        if len(self._sent) >= self._window or not self._waiting.passes(call, call.service):
            return False
        self._sent[call.key] = call
        return True

    def join(self, call: Call, now: float) -> float:
        """Queue ``call`` and return 0.0, or refuse it and return the retry time in seconds. Mutates."""
        size, share = len(call.frame), share_of(call)
        if not self._bytes.take(share, size):
            return RETRY_S
        wait_s = self._waiting.join(call, now, GUESS_S)
        if wait_s:
            self._bytes.free(share, size)
        return wait_s

    def next_to_send(self, now: float) -> Call | None:
        """The call to send to the child now; None: nothing waits, or the child has enough. Mutates."""
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
        """Note that the caller of ``call`` left. True: the child has the call, which keeps its place. Mutates."""
        call.is_left = True
        if call in self._waiting:
            self._waiting.withdraw(call)
            self._count_out(call)
        return call.key in self._sent

    def answered(self, key: int, answer: Answer | None) -> bool:
        """End the call that the child is done with. False: the child did not have it. Mutates."""
        call = self._sent.pop(key, None)
        if call is not None:
            call.end(answer)
        return call is not None

    def lost(self, num_ended: int) -> None:
        """After the child's death, end the first ``num_ended`` calls it had and queue the others again. Mutates."""
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
    """An answer that several callers wait for."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.answer: Answer | None = None
        self.error: LocalError | None = None


class Calls:
    """All questions about texts, over restarts of the engine process."""

    def __init__(self, keys: Iterator[int]) -> None:
        """keys: numbers that no other message to the child uses."""
        self._keys = keys
        self._short, self._long = Lane(SHORT_WINDOW), Lane(LONG_WINDOW)
        self._embeds = Lane(MAX_WAITING)
        """The child has its own queue for embeddings."""
        self._send: Callable[[bytes], None] | None = None
        self._shared: dict[Hashable, _Shared] = {}

    async def ask(self, question: Callable[[int], Question], client: bytes = b"", subnet: str = "") -> Answer:
        """The child's answer, also over restarts of the child. question: makes the question, given its key. Raises
        TooLongError, BusyError when too much waits, LocalError for a question that the child refuses or died over."""
        message = question(next(self._keys))
        try:
            call = Call(message.key, pipe.encode(message), client, subnet)
        except (LimitExceeded, UnicodeEncodeError) as exc:
            raise LocalError(str(exc)) from exc
        lane = self._lane(message)
        if self._send is not None and lane.passes(call):
            self._send(call.frame)
        elif wait_s := lane.join(call, trio.current_time()):
            raise BusyError("too many texts wait to be read", wait_s)
        else:
            self._send_from(lane)
        try:
            await call.done.wait()
        finally:
            if not call.done.is_set():
                self._leave(lane, call)
        if call.answer is None and lane is self._embeds:
            raise BusyError("the engine process died", RETRY_S)  # (any of many questions may be the cause)
        return _checked(call.answer)

    async def ask_once(
        self, identity: Hashable, question: Callable[[int], Question], client: bytes, subnet: str
    ) -> Answer:
        """As ``ask``, but equal questions asked meanwhile get the same answer. identity: equal for equal questions."""
        identity = identity, client, subnet
        while (shared := self._shared.get(identity)) is not None:
            await shared.over.wait()
            if shared.error is not None:
                raise shared.error
            if shared.answer is not None:
                return shared.answer  # (None: the first caller left before the answer came)
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
        """Begin to send questions to a new child, with ``send``."""
        self._send = send
        for lane in (self._short, self._long, self._embeds):
            self._send_from(lane)

    def stop(self) -> None:
        """Send nothing more: the child is gone. Call ``lost`` next."""
        self._send = None

    def lost(self, is_suspect: bool) -> None:
        """End the unanswered questions of the dead child or queue them again. is_suspect: a question may have killed
        it."""
        self._short.lost(int(is_suspect))
        self._long.lost(int(is_suspect))
        self._embeds.lost(MAX_WAITING if is_suspect else 0)

    def answered(self, answer: Answer) -> None:
        for lane in (self._short, self._long, self._embeds):
            if lane.answered(answer.key, answer):
                self._send_from(lane)

    def _lane(self, message: Question) -> Lane:
        if isinstance(message, ipc.Embed):
            return self._embeds
        return self._long if ipc.is_long(message) else self._short

    def _leave(self, lane: Lane, call: Call) -> None:
        if lane.leave(call) and lane is self._embeds:
            lane.answered(call.key, None)  # (the child does not answer a cancelled call)
            if self._send is not None:
                self._send(pipe.encode(ipc.Cancel(call.key)))

    def _send_from(self, lane: Lane) -> None:
        while self._send is not None and (call := lane.next_to_send(trio.current_time())) is not None:
            self._send(call.frame)


def _checked(answer: Answer | None) -> Answer:
    if answer is None:
        raise LocalError("the engine process died while it read this text")
    if isinstance(answer, ipc.Embedded) and answer.is_busy:
        raise BusyError(answer.error, answer.retry_after_s)
    if isinstance(answer, ipc.Rendered | ipc.Embedded) and answer.is_too_long:
        raise TooLongError(answer.error)
    if answer.error:
        raise LocalError(answer.error)
    return answer

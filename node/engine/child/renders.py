"""Reads texts from strangers in the engine process: conversations and texts become tokens, tokens become text.

It has its own threads, so that neither the step loop nor the reply to a ping waits for a text: one for short texts and
one for long ones (``ipc.is_long``). Each thread keeps the order of arrival. The parent relies on it: when this process
dies, the first unanswered question of each thread may have killed it.

An error in a text is the answer to its question and never ends the process. The client pays for the time of a question,
also of a failed one (``accounts.py``), unless it was very short.
"""

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.prompts import TooLongError
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.errors import LimitExceeded, LocalError
from mycelia.proto.wire.messages import ChatMessage

NICENESS = 10
SWITCH_S = 0.0005
"""Switch interval of the interpreter's threads. The step loop needs the interpreter briefly, several times a step."""
CHARGED_S = 0.002
"""Minimum CPU time that is charged. Less is not worth waking the step loop."""
_MAX_ERROR_CHARS = 200

Question = ipc.Render | ipc.Parse | ipc.Pair | ipc.Spell
Charge = Callable[[bytes, str, float], None]
"""(client, subnet, seconds of CPU time)"""


class Texts(Protocol):
    """Makes tokens of texts; for any thread."""

    def tokens(
        self, messages: Sequence[ChatMessage], tools: str = "", options: str = "", continues_final: bool = False
    ) -> list[int]: ...

    def text_tokens(self, text: str) -> list[int]: ...

    def pair_tokens(self, query: str, document: str) -> list[int]: ...


class Renders:
    """Answers questions about texts, from its own threads."""

    def __init__(self, texts: Texts, spelling: Callable[[int], bytes], replies: pipe.Replies, charge: Charge) -> None:
        """spelling: the bytes of a token, also of a control token; raises ValueError for a token outside the
        vocabulary. charge: called from the threads."""
        self._texts = texts
        self._spelling = spelling
        self._replies = replies
        self._charge = charge
        self._short, self._long = _Thread(self._reply, gives_way=False), _Thread(self._reply, gives_way=True)

    def put(self, question: Question) -> None:
        (self._long if ipc.is_long(question) else self._short).questions.put(question)

    def busy_s(self) -> float:
        """Seconds since the start of the longest running question; 0: none runs."""
        return max(self._short.busy_s(), self._long.busy_s())

    def _reply(self, question: Question) -> None:
        began_s = time.thread_time()
        self._answer_it(question)
        cpu_s = time.thread_time() - began_s
        if cpu_s >= CHARGED_S and not isinstance(question, ipc.Spell):
            self._charge(question.client, question.subnet, cpu_s)

    def _answer_it(self, question: Question) -> None:
        try:
            self._replies.send(self._answer(question))
        except Exception as exc:  # noqa: BLE001  an error of this question only
            is_ours = not isinstance(exc, LocalError | LimitExceeded | ValueError)
            if is_ours:
                traceback.print_exc()
            error = f"the engine could not read this: {exc!r}"[:_MAX_ERROR_CHARS] if is_ours else str(exc)
            if isinstance(question, ipc.Spell):
                self._replies.send(ipc.Spelled(question.key, [], error))
            else:
                self._replies.send(ipc.Rendered(question.key, b"", error, isinstance(exc, TooLongError)))

    def _answer(self, question: Question) -> ipc.Rendered | ipc.Spelled:
        match question:
            case ipc.Render():
                tokens = self._texts.tokens(*question.conversation())
                return ipc.Rendered(question.key, pack_tokens(tokens), "")
            case ipc.Parse():
                return ipc.Rendered(question.key, pack_tokens(self._texts.text_tokens(question.text)), "")
            case ipc.Pair():
                tokens = self._texts.pair_tokens(question.query, question.document)
                return ipc.Rendered(question.key, pack_tokens(tokens), "")
            case ipc.Spell():
                spelled = [map(self._spelling, unpack_tokens(tokens)) for tokens in question.sequences]
                texts = [b"".join(sequence).decode("utf-8", "replace") for sequence in spelled]
                return ipc.Spelled(question.key, texts, "")


class _Thread:
    def __init__(self, reply: Callable[[Question], None], gives_way: bool) -> None:
        """gives_way: run at low priority, because answers are computed at the same time; at least a tenth of a core."""
        self.questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._reply = reply
        self._gives_way = gives_way
        self._since: float | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def busy_s(self) -> float:
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        if self._gives_way and sys.platform == "linux":  # (elsewhere threads have no priority of their own)
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            while True:
                question = self.questions.get()
                self._since = time.monotonic()
                self._reply(question)
                self._since = None
        except BaseException:  # noqa: BLE001  no question would be answered any more
            traceback.print_exc()
            os._exit(1)

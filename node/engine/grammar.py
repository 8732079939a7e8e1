"""Grammars, each in a process of its own: what a stranger's grammar costs or breaks, it costs and breaks there.

A grammar is a program. Thirty rules of two alternatives have 2^30 beginnings, thirty thousand parentheses overflow
llama.cpp's stack, and no bound on the text tells such grammars from honest ones. So llama.cpp's grammar sampler runs in
``grammar_worker.py`` under limits of CPU time and memory, with the vocabulary alone; when it dies the request is
refused and nothing else happens. The engine asks it which of the tokens at hand may come next.

Compiling takes a while (the process must start), so it is waited for on a thread and then announced in the inbox.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from node.engine import ipc
from proto.blocks import pack_tokens, unpack_tokens
from proto.messages import Sampling

COMMAND = (sys.executable, "-P", "-m", "node.engine.grammar_worker")

TOO_COSTLY = "the grammar is too large, too deep or too ambiguous"
NO_PROCESS = "this node cannot start a process for the grammar now"

_HEADER_BYTES = 4


class GrammarError(Exception):
    """The grammar cannot be read, or costs too much, or allows nothing: the request's fault. One line."""


class Compile(Struct, frozen=True, array_like=True):
    """First message to the process. ``tokens``: packed, of the answer so far."""

    model_path: str
    kind: str
    text: str
    tokens: bytes


class Compiled(Struct, frozen=True, array_like=True):
    """``error`` empty: ready for questions."""

    error: str


class Filter(Struct, frozen=True, array_like=True):
    """Asks which of ``candidates`` may follow once ``accepted`` are accepted (int32 each)."""

    accepted: list[int]
    candidates: bytes


class Filtered(Struct, frozen=True, array_like=True):
    """One byte a candidate: 1 if it may come next."""

    passed: bytes


_Message = TypeVar("_Message", bound=Struct)


def write_message(stream: IO[bytes], message: Struct) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(_HEADER_BYTES, "little") + body)
    stream.flush()


def read_message(stream: IO[bytes], kind: type[_Message]) -> _Message | None:
    """The next message, blocking; None at the end, also in the middle of one."""
    header = stream.read(_HEADER_BYTES)
    length = int.from_bytes(header, "little")
    body = stream.read(length) if len(header) == _HEADER_BYTES else b""
    return msgspec.msgpack.decode(body, type=kind) if header and len(body) == length else None


class Grammar:
    """One answer's grammar. Everything but ``wait`` is for one thread."""

    def __init__(self, model_path: Path, sampling: Sampling, tokens: Sequence[int]) -> None:
        """Start the process; ``wait`` says when there can be none. tokens: of the answer so far."""
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._accepted: list[int] = []
        self._compile = Compile(str(model_path), sampling.grammar_kind, sampling.grammar, pack_tokens(tokens))

    def wait(self) -> str:
        """Block until the grammar is compiled; what is wrong with it, empty if nothing. Once, first, from any
        thread."""
        if self._process is None:
            return NO_PROCESS
        compiled = self._exchange(self._compile, Compiled)
        return TOO_COSTLY if compiled is None else compiled.error

    def accept(self, token: int) -> None:
        """``token`` was chosen."""
        self._accepted.append(token)

    def allowed(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of ``tokens`` may come next. Blocks, for as long as the process's limit of CPU time lets it.

        Raises GrammarError when the process died over it.
        """
        question = Filter(self._accepted, tokens.astype(np.int32).tobytes())
        self._accepted = []
        answer = self._exchange(question, Filtered)
        if answer is None:
            raise GrammarError(TOO_COSTLY)
        return np.frombuffer(answer.passed, np.bool_)

    def _exchange(self, question: Struct, kind: type[_Message]) -> _Message | None:
        """The process's answer; None when it died."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            write_message(self._process.stdin, question)
            return read_message(self._process.stdout, kind)
        except OSError:
            return None

    def kill(self) -> None:
        """End the process; ``wait`` returns then."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process and forget it. Not while another thread is in ``wait``."""
        if self._process is not None:
            self._process.kill()
            with suppress(OSError):  # Leaving closes the pipes; it may not have been told everything.
                self._process.__exit__(None, None, None)
            self._process.wait()


class GrammarReady(Struct, frozen=True):
    """In the engine's inbox: the grammar of this request is compiled, or cannot be (``error``)."""

    key: int
    error: str


OpenGrammar = Callable[[Sampling, Sequence[int]], Grammar]


class GrammarDesk:
    """The grammars of all requests that are compiled, waiting or running; for the engine's main thread.

    At most ``limit`` processes live; further requests wait here.
    """

    def __init__(self, open_grammar: OpenGrammar, limit: int, announce: Callable[[GrammarReady], None]) -> None:
        """announce: called from other threads, once for every key that is not dropped before."""
        self._open = open_grammar
        self._limit = limit
        self._announce = announce
        self._pending: dict[int, ipc.Submit] = {}
        self._compiling: dict[int, tuple[ipc.Submit, Grammar]] = {}
        self._ready: dict[int, Grammar] = {}
        self._dropped: dict[int, Grammar] = {}
        """Killed while a thread waits for them; closed when it announces."""

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is not ready."""
        return len(self._pending) + len(self._compiling)

    def num_waiting_of(self, client: bytes) -> int:
        """As ``num_waiting``, of one client."""
        waiting = [*self._pending.values(), *(message for message, _ in self._compiling.values())]
        return sum(message.client == client for message in waiting)

    def add(self, message: ipc.Submit) -> None:
        """Begin, now or when another is dropped."""
        self._pending[message.key] = message
        self._start_pending()

    def ready(self, event: GrammarReady) -> ipc.Submit | None:
        """Take note of an announcement. The request, None if it was dropped meanwhile."""
        gone = self._dropped.pop(event.key, None)
        if gone is not None:
            gone.close()
            self._start_pending()
            return None
        message, grammar = self._compiling.pop(event.key)
        self._ready[event.key] = grammar
        return message

    def get(self, key: int) -> Grammar | None:
        """The compiled grammar of a request that has one."""
        return self._ready.get(key)

    def drop_waiting(self, key: int) -> bool:
        """Forget a request that still waits for its grammar. False: it does not."""
        if self._pending.pop(key, None) is not None:
            return True
        if key in self._compiling:
            self._dropped[key] = self._compiling.pop(key)[1]
            self._dropped[key].kill()
            return True
        return False

    def expired(self, now: float) -> list[int]:
        """Keys of those that still wait for their grammar and whose time is over. Changes nothing."""
        waiting = [*self._pending.values(), *(message for message, _ in self._compiling.values())]
        return [message.key for message in waiting if message.due_s is not None and message.due_s <= now]

    def drop(self, key: int) -> None:
        """Forget the compiled grammar of a request, if it has one."""
        grammar = self._ready.pop(key, None)
        if grammar is not None:
            grammar.close()
            self._start_pending()

    def _start_pending(self) -> None:
        while self._pending and len(self._compiling) + len(self._ready) + len(self._dropped) < self._limit:
            key = next(iter(self._pending))
            message = self._pending.pop(key)
            prompt = unpack_tokens(message.prompt)
            resumed = prompt[len(prompt) - message.resumed_tokens :]
            grammar = self._open(message.sampling, resumed)
            self._compiling[key] = message, grammar
            threading.Thread(target=self._wait, args=(key, grammar), daemon=True).start()

    def _wait(self, key: int, grammar: Grammar) -> None:
        self._announce(GrammarReady(key, grammar.wait()))

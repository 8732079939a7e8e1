"""Grammars, each in a process of its own: what a stranger's grammar costs or breaks, it costs and breaks there.

A grammar is a program. Thirty rules of two alternatives have 2^30 beginnings, thirty thousand parentheses overflow
llama.cpp's stack, and no bound on the text tells such grammars from honest ones. So llama.cpp's grammar sampler runs in
``grammar_worker.py`` under limits of CPU time and memory, with the vocabulary alone; when it dies the request is
refused and nothing else happens. The engine asks it which of the tokens at hand may come next.

Compiling and asking take a while, so they are waited for on a thread: see ``grammar_pool.py``.
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Sampling

COMMAND = (sys.executable, "-P", "-m", "mycelia.node.engine.child.grammar.grammar_worker")

MAX_START_CPU_S = 1.5
"""CPU time of compiling, at most; the kernel ends the process then."""
TOO_COSTLY = "the grammar is too large, too deep or too ambiguous"
NO_PROCESS = "this node cannot start a process for the grammar now"

_HEADER_BYTES = 4


class GrammarError(Exception):
    """The grammar cannot be read, or costs too much, or allows nothing: the request's fault. One line."""


class Compile(Struct, frozen=True, array_like=True):
    """First message to the process. ``tokens``: packed, of the answer so far."""

    kind: str
    text: str
    tokens: bytes


class Compiled(Struct, frozen=True, array_like=True):
    """``error`` empty: ready for questions."""

    error: str
    cpu_s: float = 0.0
    """CPU time of the process so far."""


class Filter(Struct, frozen=True, array_like=True):
    """Asks which of ``candidates`` may follow once ``accepted`` are accepted (int32 each)."""

    accepted: list[int]
    candidates: bytes


class Filtered(Struct, frozen=True, array_like=True):
    """One byte a candidate: 1 if it may come next."""

    passed: bytes
    cpu_s: float
    """See ``Compiled``."""


_Message = TypeVar("_Message", bound=Struct)


class Stream(Protocol):
    """Both directions of a connection."""

    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def write_message(stream: Stream, message: Struct) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(_HEADER_BYTES, "little") + body)
    stream.flush()


def read_message(stream: Stream, kind: type[_Message]) -> _Message | None:
    """The next message, blocking; None at the end, also in the middle of one."""
    header = stream.read(_HEADER_BYTES)
    length = int.from_bytes(header, "little")
    body = stream.read(length) if len(header) == _HEADER_BYTES else b""
    return msgspec.msgpack.decode(body, type=kind) if header and len(body) == length else None


class GrammarServer:
    """The process from which those of grammars are forked: it has the vocabulary, so that one more costs milliseconds.
    Started with the first grammar, and again when it died. For any thread."""

    def __init__(self, model_path: Path) -> None:
        self._model_path = model_path
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def open(self, sampling: Sampling, tokens: Sequence[int]) -> "Grammar":
        """A grammar of an answer that has ``tokens`` already."""
        return Grammar(self, sampling, tokens)

    def connect(self) -> socket.socket:
        """A new process's socket. Raises OSError when there can be none."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            try:
                self._send(theirs)
            except OSError:
                self._restart()
                self._send(theirs)
        return ours

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _send(self, end: socket.socket) -> None:
        if self._control is None:
            raise BrokenPipeError
        socket.send_fds(self._control, [b"+"], [end.fileno()])

    def _restart(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [*COMMAND, str(theirs.fileno()), str(self._model_path)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])


class Grammar:
    """One answer's grammar. ``kill`` may be called at any time; else there is one call at a time, in any thread."""

    cpu_s = 0.0
    """CPU time that the process said to have used."""

    def __init__(self, server: GrammarServer, sampling: Sampling, tokens: Sequence[int]) -> None:
        """tokens: of the answer so far. ``wait`` begins."""
        self._server = server
        self._lock = threading.Lock()
        self._is_killed = False
        self._socket: socket.socket | None = None
        self._stream: Stream | None = None
        self._accepted: list[int] = []
        self._compile = Compile(sampling.grammar_kind, sampling.grammar, pack_tokens(tokens))

    def wait(self) -> str:
        """Block until the grammar is compiled; what is wrong with it, empty if nothing. Once, first."""
        try:
            connection = self._server.connect()
        except OSError:
            return NO_PROCESS
        with self._lock:
            self._socket, self._stream = connection, connection.makefile("rwb")
            if self._is_killed:
                connection.shutdown(socket.SHUT_RDWR)
        compiled = self._exchange(self._compile, Compiled)
        self.cpu_s = MAX_START_CPU_S if compiled is None else compiled.cpu_s
        if compiled is not None:
            return compiled.error
        return TOO_COSTLY if self._server.is_running else NO_PROCESS

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
        self.cpu_s = answer.cpu_s
        return np.frombuffer(answer.passed, np.bool_)

    def _exchange(self, question: Struct, kind: type[_Message]) -> _Message | None:
        """The process's answer; None when it died."""
        assert self._stream is not None
        try:
            write_message(self._stream, question)
            return read_message(self._stream, kind)
        except OSError:
            return None

    def kill(self) -> None:
        """End the process; what waits for it returns then."""
        with self._lock:
            self._is_killed = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the process and forget it; the last call."""
        self.kill()
        with self._lock:
            if self._stream is not None and self._socket is not None:
                with suppress(OSError):  # It may not have been told everything.
                    self._stream.close()
                self._socket.close()

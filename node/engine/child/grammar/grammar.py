"""Grammars, each in its own process, so that a stranger's grammar cannot harm the engine.

A grammar is a program. Thirty rules of two alternatives have 2^30 beginnings, thirty thousand parentheses overflow
llama.cpp's stack, and no bound on the text separates such grammars from honest ones. So llama.cpp's grammar sampler
runs in ``grammar_worker.py`` under limits of CPU time and memory, with only the vocabulary. If the process dies, the
request is refused and nothing else happens. The engine asks the process which of some tokens may come next.

Compiling and asking take time, so a thread waits for them: see ``grammar_pool.py``.
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
"""Maximum CPU time for compiling; then the kernel ends the process."""
TOO_COSTLY = "the grammar is too large, too deep or too ambiguous"
NO_PROCESS = "this node cannot start a process for the grammar now"

_HEADER_BYTES = 4


class GrammarError(Exception):
    """The grammar is invalid, too costly, or allows no token: the fault of the request. One line."""


class Compile(Struct, frozen=True, array_like=True):
    """The first message to the process. ``tokens``: those of the answer so far, packed."""

    kind: str
    text: str
    tokens: bytes


class Compiled(Struct, frozen=True, array_like=True):
    """The reply to Compile. An empty ``error`` means ready for questions. cpu_s: CPU time of the process so far."""

    error: str
    cpu_s: float = 0.0


class Filter(Struct, frozen=True, array_like=True):
    """The question which of ``candidates`` (int32 each) may follow after ``accepted``."""

    accepted: list[int]
    candidates: bytes


class Filtered(Struct, frozen=True, array_like=True):
    """The reply to Filter: one byte per candidate, 1 if it may come next. cpu_s: see ``Compiled``."""

    passed: bytes
    cpu_s: float


_Message = TypeVar("_Message", bound=Struct)


class Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def write_message(stream: Stream, message: Struct) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(_HEADER_BYTES, "little") + body)
    stream.flush()


def read_message(stream: Stream, kind: type[_Message]) -> _Message | None:
    """The next message, blocking; None at the end of the stream, also in the middle of a message."""
    header = stream.read(_HEADER_BYTES)
    length = int.from_bytes(header, "little")
    body = stream.read(length) if len(header) == _HEADER_BYTES else b""
    return msgspec.msgpack.decode(body, type=kind) if header and len(body) == length else None


class GrammarServer:
    """The process that forks one process per grammar. It has the vocabulary, so that a fork takes only milliseconds.
    It is started with the first grammar, and again after its death. For any thread."""

    def __init__(self, model_path: Path) -> None:
        self._model_path = model_path
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def open(self, sampling: Sampling, tokens: Sequence[int]) -> "Grammar":
        """The grammar of an answer that already has ``tokens``."""
        return Grammar(self, sampling, tokens)

    def connect(self) -> socket.socket:
        """The socket of a new process. Raises OSError when no process can be started."""
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
    """The grammar of one answer. ``kill`` may be called at any time, the other methods one at a time, in any thread."""

    cpu_s = 0.0
    """CPU time of the process, as last reported."""

    def __init__(self, server: GrammarServer, sampling: Sampling, tokens: Sequence[int]) -> None:
        """tokens: those of the answer so far. Starts nothing: call ``wait``."""
        self._server = server
        self._lock = threading.Lock()
        self._is_killed = False
        self._socket: socket.socket | None = None
        self._stream: Stream | None = None
        self._accepted: list[int] = []
        self._compile = Compile(sampling.grammar_kind, sampling.grammar, pack_tokens(tokens))

    def wait(self) -> str:
        """Block until the grammar is compiled; returns the error, empty if none. The first call, made once."""
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
        self._accepted.append(token)

    def allowed(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of ``tokens`` may come next. Blocks, bounded by the process's CPU limit. Raises GrammarError when the
        process dies."""
        question = Filter(self._accepted, tokens.astype(np.int32).tobytes())
        self._accepted = []
        answer = self._exchange(question, Filtered)
        if answer is None:
            raise GrammarError(TOO_COSTLY)
        self.cpu_s = answer.cpu_s
        return np.frombuffer(answer.passed, np.bool_)

    def _exchange(self, question: Struct, kind: type[_Message]) -> _Message | None:
        """The reply of the process; None when it died."""
        assert self._stream is not None
        try:
            write_message(self._stream, question)
            return read_message(self._stream, kind)
        except OSError:
            return None

    def kill(self) -> None:
        """End the process; a call that waits for it then returns."""
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
                with suppress(OSError):  # (unsent data may be left)
                    self._stream.close()
                self._socket.close()

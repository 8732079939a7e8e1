"""A process that reads each grammar first, under limits, so that no grammar can stall or end the engine.

A grammar is a program from a stranger. llguidance bounds the size of most of what it builds, but not the time: 800
``patternProperties`` keep it busy for ten minutes, and a thread in it cannot be stopped. So the grammar is read here
first, with single bytes as vocabulary: what takes more than ``MAX_CPU_S`` or ``MEMORY_BYTES`` ends this process, not
the engine. What passes takes the engine no longer. The process also translates the grammar, away from the engine's
interpreter lock. It runs at low priority.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from msgspec import Struct

from mycelia.node.engine.child.grammar.guidance import (
    ONE_OF,
    STACK_BYTES,
    TOO_COSTLY,
    GrammarError,
    guidance,
    matcher,
    reason,
)

COMMAND = (sys.executable, "-P", "-m", "mycelia.node.engine.child.grammar.checker")
MAX_CPU_S = 1.0
"""Measured: ordinary grammars take 1 to 5 ms, an object with 500 properties 40 ms."""
MEMORY_BYTES = 256 * 1024 * 1024
"""Beyond what the process takes when it is ready (Linux; elsewhere only the CPU time bounds it)."""
NICENESS = 10
NO_PROCESS = "this node cannot start a process to read the grammar now"
_HEADER_BYTES = 4


class Check(Struct, frozen=True, array_like=True):
    """To the process: a grammar, as in ``Sampling``."""

    kind: str
    text: str


class Checked(Struct, frozen=True, array_like=True):
    """From the process: the grammar in llguidance's form, or why it is refused. cpu_s: CPU time for it."""

    guidance: str
    error: str = ""
    cpu_s: float = 0.0


class Checker:
    """The processes that read grammars: as many as are asked at once. For any thread."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def check(self, kind: str, text: str) -> Checked:
        """Read a grammar; blocks, bounded by the CPU time of the process."""
        with self._lock:
            process = self._idle.pop() if self._idle else None
        try:
            process = process or subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError:
            return Checked("", NO_PROCESS)
        assert process.stdin is not None and process.stdout is not None
        checked = None
        with suppress(OSError):
            _write(process.stdin, Check(kind, text))
            body = _read(process.stdout)
            checked = None if body is None else msgspec.msgpack.decode(body, type=Checked)
        if checked is None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # (unsent data may be left)
                    stream.close()
            return Checked("", TOO_COSTLY, MAX_CPU_S)
        with self._lock:
            self._idle.append(process)
        return checked

    def close(self) -> None:
        """End the processes, for tests: they end with the engine."""
        with self._lock:
            for process in self._idle:
                process.kill()
                process.communicate()
            self._idle.clear()


def _write(stream: IO[bytes], message: Struct) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(len(body).to_bytes(_HEADER_BYTES, "little") + body)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """The next message, blocking; None at the end of the stream, also in the middle of a message."""
    header: bytes = stream.read(_HEADER_BYTES)
    length = int.from_bytes(header, "little")
    body: bytes = stream.read(length) if len(header) == _HEADER_BYTES else b""
    return body if header and len(body) == length else None


def read(tokenizer: object, kind: str, text: str) -> str:
    """The grammar in llguidance's form. Raises GrammarError, also for one that allows no text."""
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    translated = guidance(kind, text)
    try:
        made = matcher(tokenizer, translated)
    except GrammarError as exc:
        if kind != "json_schema" or repr(ONE_OF) not in str(exc):
            raise
        translated = guidance(kind, text, expands_one_of=True)
        try:
            made = matcher(tokenizer, translated)
        except GrammarError:
            raise exc from None
    bits = allocate_token_bitmask(1, 257)
    try:
        fill_next_token_bitmask(made, bits)
    except ValueError as exc:
        raise GrammarError(reason(str(exc))) from exc
    if made.is_error():
        raise GrammarError(reason(made.get_error()))
    if not np.any(bits):
        raise GrammarError(reason("NoExtension"))
    return translated


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES + STACK_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve() -> None:
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    _limit_memory()
    while (body := _read(sys.stdin.buffer)) is not None:
        message = msgspec.msgpack.decode(body, type=Check)
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)  # Its signal ends the process.
        began_s = time.process_time()
        try:
            checked = Checked(read(tokenizer, message.kind, message.text))
        except GrammarError as exc:
            checked = Checked("", str(exc))
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        cpu_s = time.process_time() - began_s
        _write(sys.stdout.buffer, msgspec.structs.replace(checked, cpu_s=cpu_s))


def main() -> None:
    """Read grammars from stdin until it ends, as it does when the engine ends."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()

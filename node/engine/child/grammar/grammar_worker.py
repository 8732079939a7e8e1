"""The process of one grammar, forked from this module, which ``grammar.py`` starts.

Its purpose is to set limits. CPU time: a little for compiling, then more with every question, by the number of tokens
asked about; beyond it the kernel ends the process, also inside llama.cpp and however busy the machine is. Memory: a
fixed amount beyond the vocabulary (on Linux; elsewhere only the CPU time bounds it). The process also ends with its
connection. It runs at low priority, so that the engine comes first.
"""

import ctypes
import json
import math
import os
import re
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.grammar.grammar import (
    MAX_START_CPU_S,
    Compile,
    Compiled,
    Filter,
    Filtered,
    GrammarError,
    read_message,
    write_message,
)
from mycelia.node.engine.child.llama.bindings import Candidates, L, Log, SchemaConverter
from mycelia.node.engine.settings import available_memory_bytes
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.errors import LocalError

QUESTION_CPU_S, TOKEN_CPU_S = 0.05, 2e-6
"""Together 150 ms for the 49,152 tokens of SmolLM2. Measured: 10 to 20 ms with an ordinary grammar."""
NICENESS = 10
"""Leaves a tenth of a core if the engine uses all cores."""
MEMORY_BYTES = 512 * 1024 * 1024
MEMORY_PART = 16
"""A process gets at most the free memory divided by this: all slots together at most half of it."""


_REGEX_PART = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{[^}]*\}|[\]}]", re.DOTALL)
"""A part of a pattern that may contain brackets, or a single bracket."""


class GrammarSampler:
    """llama.cpp's grammar, for the life of the process."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def allowed(self, tokens: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which of ``tokens`` may come next. Tokens that end the answer may if the answer matches as it is."""
        candidates = Candidates(tokens, np.zeros(len(tokens), np.float32))
        L.llama_sampler_apply(self._sampler, ctypes.byref(candidates.array))
        passed: NDArray[np.bool_] = np.isfinite(candidates.data["logit"])
        return passed

    def accept(self, token: int) -> None:
        """Advance by ``token``, which must be allowed: otherwise llama.cpp abort()s."""
        L.llama_sampler_accept(self._sampler, token)


class Vocabulary:
    """The vocabulary of a model file without its weights: 0.1 s to load."""

    def __init__(self, path: Path) -> None:
        """Raises LocalError when the file is unusable."""
        self._log = Log()
        params = L.llama_model_default_params()
        params.vocab_only = True
        self._model = L.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise LocalError(f"cannot load the vocabulary of {path}: {self._log.reason('llama.cpp gave no reason')}")
        self._vocab = L.llama_model_get_vocab(self._model)

    def reason(self) -> str:
        return self._log.reason("it must have a rule root and no left recursion")[:200]

    def grammar(self, text: str) -> GrammarSampler | None:
        """A sampler for GBNF with a rule ``root``. None when the text cannot be parsed: llama.cpp writes the reason to
        stderr. May kill the process."""
        sampler = L.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        return GrammarSampler(sampler) if sampler else None


class _Budget:
    """The limits of this process: memory, and CPU time, which ``grant`` extends."""

    def __init__(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        except OSError:
            pass  # No Linux.
        else:
            free = available_memory_bytes()
            more = MEMORY_BYTES if free is None else min(MEMORY_BYTES, free // MEMORY_PART)
            most = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._seconds = usage.ru_utime + usage.ru_stime
        self.grant(MAX_START_CPU_S)

    def grant(self, seconds: float) -> None:
        self._seconds += seconds
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(self._seconds), hard))


class _Converter(SchemaConverter):
    """The converter of llama-cpp-python with two fixes: literals with quotes, backslashes and line ends are correct,
    and a ``]`` or ``}`` in a pattern that closes nothing is a literal instead of an endless loop."""

    def _visit_pattern(self, pattern: str, name: str) -> Any:
        literal = _REGEX_PART.sub(lambda part: "\\" + part[0] if part[0] in ("]", "}") else part[0], pattern)
        return super()._visit_pattern(literal, name)  # type: ignore[no-untyped-call]

    def _format_literal(self, literal: str) -> str:
        """literal: a JSON value."""
        text = json.dumps(json.loads(literal), ensure_ascii=False)
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def schema_to_gbnf(text: str) -> str:
    """GBNF whose rule ``root`` matches the JSON values of a schema. Raises GrammarError."""
    try:
        converter: Any = _Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)  # type: ignore[no-untyped-call]
        schema = converter.resolve_refs(json.loads(text), "schema")
        converter.visit(schema, "")
        return str(converter.format_grammar())
    except json.JSONDecodeError as exc:
        raise GrammarError(f"the JSON schema is no JSON: {exc}") from exc
    except RecursionError as exc:
        raise GrammarError("the JSON schema is nested too deep") from exc
    except MemoryError as exc:
        raise GrammarError("the JSON schema is too large") from exc
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError) as exc:
        # The converter checks nothing: anything in the wrong place becomes one of Python's own errors.
        raise GrammarError(f"the JSON schema is not supported: {str(exc)[:200] or type(exc).__name__}") from exc


def _compile(message: Compile, vocabulary: Vocabulary, said: IO[bytes]) -> GrammarSampler:
    """The sampler, after the tokens so far. Raises GrammarError with llama.cpp's message."""
    text = schema_to_gbnf(message.text) if message.kind == "json_schema" else message.text
    sampler = vocabulary.grammar(text)
    if sampler is None:
        said.seek(0)
        words = said.read(400).decode("utf-8", "replace").strip().split("\n")[0].rpartition("grammar: ")[2]
        raise GrammarError(f"the grammar cannot be read: {words or vocabulary.reason()}")
    for token in unpack_tokens(message.tokens):
        if not sampler.allowed(np.array([token]))[0]:
            raise GrammarError("the tokens generated before do not match the grammar")
        sampler.accept(token)
    return sampler


def _serve(connection: socket.socket, vocabulary: Vocabulary) -> None:
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    stream = connection.makefile("rwb")
    message = read_message(stream, Compile)
    if message is None:
        return
    budget = _Budget()
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)  # llama.cpp's parser writes its errors there.
        try:
            sampler = _compile(message, vocabulary, said)
        except GrammarError as exc:
            write_message(stream, Compiled(str(exc), time.process_time()))
            return
    write_message(stream, Compiled("", time.process_time()))
    while (question := read_message(stream, Filter)) is not None:
        tokens = np.frombuffer(question.candidates, np.int32)
        budget.grant(QUESTION_CPU_S + TOKEN_CPU_S * len(tokens))
        for token in question.accepted:
            sampler.accept(token)
        passed = sampler.allowed(tokens).tobytes()
        write_message(stream, Filtered(passed, time.process_time()))


def _end_with(connection: socket.socket) -> None:
    """Run a thread that ends the process with its connection, also inside llama.cpp."""
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    os._exit(1)


def main() -> None:
    """Load the vocabulary, then fork a process for each received connection until the other end closes."""
    control, path = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    os.nice(NICENESS)
    os.dup2(2, 1)
    vocabulary = Vocabulary(path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # No zombies.
    while True:
        said, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not said:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                control.close()
                try:
                    _serve(connection, vocabulary)
                finally:
                    os._exit(0)


if __name__ == "__main__":
    main()

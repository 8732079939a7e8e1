"""The process of one grammar: ``python -m node.engine.grammar_worker``, started by ``grammar.py``, never by hand.

Its limits are its purpose. CPU time: a little for compiling, then a little more with every question, by the number of
tokens asked about; the kernel ends the process beyond it, also inside llama.cpp, and however busy the machine is.
Memory: so much more than the vocabulary takes (on Linux; elsewhere the time bounds it). It also ends with its input.
"""

import json
import math
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from node.engine.grammar import Compile, Compiled, Filter, Filtered, GrammarError, read_message, write_message
from node.engine.llama import GrammarSampler, SchemaConverter, Vocabulary
from proto.blocks import unpack_tokens

START_CPU_S = 2.0
QUESTION_CPU_S, TOKEN_CPU_S = 0.05, 2e-6
"""Measured: 10 to 20 ms for the 49,152 tokens of SmolLM2 with an ordinary grammar; this is 150 ms."""
MEMORY_BYTES = 512 * 1024 * 1024


class _Budget:
    """CPU seconds this process may still use."""

    def __init__(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        except OSError:
            pass  # No Linux.
        else:
            most = pages * resource.getpagesize() + MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._seconds = usage.ru_utime + usage.ru_stime
        self.grant(START_CPU_S)

    def grant(self, seconds: float) -> None:
        self._seconds += seconds
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(self._seconds), hard))


class _Converter(SchemaConverter):
    """The converter of llama-cpp-python, with literals that are also right with quotes, backslashes and line ends."""

    def _format_literal(self, literal: str) -> str:
        """literal: a JSON value."""
        text = json.dumps(json.loads(literal), ensure_ascii=False)
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def schema_to_gbnf(text: str) -> str:
    """GBNF whose rule ``root`` matches the JSON values of a schema. Raises GrammarError."""
    try:
        converter = _Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
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
    """Raises GrammarError, with llama.cpp's own words."""
    text = schema_to_gbnf(message.text) if message.kind == "json_schema" else message.text
    sampler = vocabulary.grammar(text)
    if sampler is None:
        said.seek(0)
        words = said.read(400).decode("utf-8", "replace").strip().split("\n")[0]
        raise GrammarError(f"the grammar cannot be read: {words.rpartition('grammar: ')[2] or 'no reason given'}")
    for token in unpack_tokens(message.tokens):
        if not sampler.allowed(np.array([token]))[0]:
            raise GrammarError("the tokens generated before do not match the grammar")
        sampler.accept(token)
    return sampler


def main() -> None:
    """Serve one grammar until stdin ends."""
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # A stray print must not land in the protocol.
    message = read_message(stdin, Compile)
    if message is None:
        return
    vocabulary = Vocabulary(Path(message.model_path))
    budget = _Budget()
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)  # llama.cpp's parser says there what is wrong.
        try:
            sampler = _compile(message, vocabulary, said)
        except GrammarError as exc:
            write_message(stdout, Compiled(str(exc)))
            return
    write_message(stdout, Compiled(""))
    while (question := read_message(stdin, Filter)) is not None:
        tokens = np.frombuffer(question.candidates, np.int32)
        budget.grant(QUESTION_CPU_S + TOKEN_CPU_S * len(tokens))
        for token in question.accepted:
            sampler.accept(token)
        write_message(stdout, Filtered(sampler.allowed(tokens).tobytes()))


if __name__ == "__main__":
    main()

"""Vocabularies and chat templates of many model families, from llama.cpp's own sources.

``make test`` copies them to ``.venv/llama.cpp`` (scripts/test_models.py). A vocabulary there has the control tokens of
one family; ``with_controls`` makes another file with those of all templates.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mycelia.node.engine.child.llama.bindings import L, Log
from mycelia.node.engine.child.llama.models import load_model
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary

FOLDER = Path(__file__).parents[4] / ".venv" / "llama.cpp" / "models"
NEEDED = pytest.mark.skipif(
    not (FOLDER / "templates").is_dir(),
    reason="needs the chat templates in llama.cpp's sources: python scripts/test_models.py",
)
_CONTROL, _USER_DEFINED = 3, 4
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_CONTROL_PATTERN = re.compile(
    r"<\|(?!NONE)[^<>|{}'\"\s]+\|?>|<[^<>|{}'\"\s]+\|>|<\uff5c[^<>{}'\"]+\uff5c>|\[/?[A-Z_]+\]|\]~!?b[\[\]]|\[e~\[|\]<\]minimax\[>\["
    r"|</?s>|<(?:start|end)_of_turn>|<[a-z]*_?(?:bos|eos)>|<\|?(?:bos|eos)\|?>|<(?:begin|end)▁of▁sentence>"
    r"|<seed:[a-z]+>|<SPECIAL_\d+>|<Assistant>|<User>|<extra_id_\d>"
)
_USER_DEFINED_PATTERN = re.compile(r"</?(?:think|tool_call|tool_response|tools|tool_result)>")


def template_sources() -> dict[str, str]:
    """Name -> source of each template."""
    return {path.stem: path.read_text() for path in sorted((FOLDER / "templates").glob("*.jinja"))}


def spelled_controls(sources: Iterable[str]) -> list[str]:
    """What looks like a control token in ``sources``."""
    return sorted({found for source in sources for found in _CONTROL_PATTERN.findall(source)})


def user_defined(sources: Iterable[str]) -> list[str]:
    return sorted({found for source in sources for found in _USER_DEFINED_PATTERN.findall(source)})


def load(path: Path) -> ModelVocabulary:
    """A vocabulary without a model. It stays loaded."""
    params = L.llama_model_default_params()
    params.vocab_only = True
    L.llama_backend_init()
    return ModelVocabulary(load_model(path, params, Log()))


def with_controls(base: str, controls: Sequence[str], others: Sequence[str], to: Path) -> Path:
    """The file ``to``: the vocabulary ``base`` with more control tokens, and with ``others`` as user-defined tokens."""
    data = (FOLDER / f"ggml-vocab-{base}.gguf").read_bytes()
    magic, version, num_tensors, num_values = struct.unpack_from("<4sIQQ", data)
    at, values = 24, {}
    for _ in range(num_values):
        key, at = _read_string(data, at)
        start = at
        at = _end_of_value(data, at)
        values[key] = data[start:at]
    known = set(_strings(values["tokenizer.ggml.tokens"]))
    added = [(text, _CONTROL) for text in controls] + [(text, _USER_DEFINED) for text in others]
    added = [(text, kind) for text, kind in added if text.encode() not in known]
    for key, items in {
        "tokenizer.ggml.tokens": [_string(text) for text, _ in added],
        "tokenizer.ggml.token_type": [struct.pack("<i", kind) for _, kind in added],
        "tokenizer.ggml.scores": [struct.pack("<f", 0.0) for _ in added],
    }.items():
        if key in values:
            values[key] = _longer(values[key], items)
    body = b"".join(_string(key) + value for key, value in values.items())
    to.write_bytes(struct.pack("<4sIQQ", magic, version, num_tensors, len(values)) + body)
    return to


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length


def _end_of_value(data: bytes, at: int) -> int:
    (kind,) = struct.unpack_from("<I", data, at)
    at += 4
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != _ARRAY:
        return at + _SIZES[kind]
    item, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if item != _STRING:
        return at + _SIZES[item] * int(count)
    for _ in range(count):
        at += 8 + int(struct.unpack_from("<Q", data, at)[0])
    return at


def _strings(value: bytes) -> list[bytes]:
    count, at, strings = struct.unpack_from("<Q", value, 8)[0], 16, []
    for _ in range(count):
        length = struct.unpack_from("<Q", value, at)[0]
        strings.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    return strings


def _longer(array: bytes, items: Sequence[bytes]) -> bytes:
    kind, item, count = struct.unpack_from("<IIQ", array)
    return struct.pack("<IIQ", kind, item, count + len(items)) + array[16:] + b"".join(items)


Json = dict[str, Any]

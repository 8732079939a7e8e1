"""Reads the function calls of a model from an answer's text, and passes on the rest as it comes.

Models write calls in different ways; these are read:

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>      Hermes, Qwen, and our own tool prompt
    [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]          Mistral
    {"name": ..., "parameters": {...}}                            Llama 3, and answers made to fit one schema

Anything that is not a call of a known function is text. Text that may still become a call is held back, so that no
client gets the beginning of one.
"""

import json
from collections.abc import Collection
from typing import Any

import msgspec

from mycelia.node.serve.openai.types import CalledFunction

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_WHOLE = ("{", "[TOOL_CALLS]", "<|python_tag|>")
"""An answer that begins like this may be one call, or a list of calls, as a whole."""


class ToolCallReader:
    """Reads one answer. ``feed`` it all text, then call ``end``."""

    def __init__(self, names: Collection[str]) -> None:
        """names: the functions that may be called; with none, everything is text."""
        self._names = frozenset(names)
        self._held = ""
        self._is_whole: bool | None = None
        """Whether the whole answer is held back; None: not known yet."""
        self._follows_call = False
        """Only white space has come since the last call."""
        self.calls: list[CalledFunction] = []

    def feed(self, text: str) -> str:
        """The next part of the answer that is certainly text."""
        if not self._names:
            return text
        self._held += text
        if self._is_whole is None:
            self._is_whole = _begins_whole(self._held)
        return self._split() if self._is_whole is False else ""

    def end(self) -> str:
        """The rest of the answer that turns out to be text."""
        held, self._held = self._held, ""
        if not held or not self._names:
            return held
        found = self._read(held)
        if found is None:
            return held
        self.calls += found
        return ""

    def _split(self) -> str:
        """Takes complete calls out of the held text. Returns the text before the next possible call. White space around
        a call belongs to the call, not to the text."""
        said = ""
        while True:
            if self._follows_call:
                self._held = self._held.lstrip()
                self._follows_call = not self._held
            at = self._held.find(_OPEN)
            if at < 0:
                kept = len(self._held) - _overlap(self._held, _OPEN)
                kept = len(self._held[:kept].rstrip())
                said, self._held = said + self._held[:kept], self._held[kept:]
                return said
            end = self._held.find(_CLOSE, at)
            if end < 0:
                kept = len(self._held[:at].rstrip())
                said, self._held = said + self._held[:kept], self._held[kept:]
                return said
            end += len(_CLOSE)
            found = self._read(self._held[at:end])
            if found is None:
                said, self._held = said + self._held[:end], self._held[end:]
            else:
                said, self._held = said + self._held[:at].rstrip(), self._held[end:]
                self.calls += found
                self._follows_call = True

    def _read(self, text: str) -> list[CalledFunction] | None:
        """The calls that ``text`` consists of; None: it is no call."""
        body = text.strip()
        for mark in ("[TOOL_CALLS]", "<|python_tag|>", _OPEN):
            body = body.removeprefix(mark)
        body = body.removesuffix(_CLOSE).strip()
        try:
            value = msgspec.json.decode(body)
            found = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        except (msgspec.DecodeError, RecursionError):
            return None
        calls = [call for call in found if call is not None]
        return calls if calls and len(calls) == len(found) else None

    def _call(self, value: Any) -> CalledFunction | None:
        """None: ``value`` is no call. Raises RecursionError."""
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return CalledFunction(name, arguments)


def _begins_whole(text: str) -> bool | None:
    """None: the text is too short to know."""
    text = text.lstrip()
    if any(text.startswith(mark) for mark in _WHOLE):
        return True
    return None if not text or any(mark.startswith(text) for mark in _WHOLE) else False


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``mark``."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)

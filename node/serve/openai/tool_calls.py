"""Reads from an answer's text which functions the model calls, while the rest is passed on as it comes.

Models write calls in different ways; these are read:

    <tool_call>{"name": ..., "arguments": {...}}</tool_call>      Hermes, Qwen, and our own words
    [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]          Mistral
    {"name": ..., "parameters": {...}}                            Llama 3, and answers made to fit one schema

Whatever turns out to be no call of a known function is text. What may still become a call is held back, so nobody sees
the beginning of one.
"""

import json
from collections.abc import Collection
from typing import Any

import msgspec

from mycelia.node.serve.openai.types import CalledFunction

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_WHOLE = ("{", "[TOOL_CALLS]", "<|python_tag|>")
"""Answers that begin like this may be calls from the first to the last character."""


class ToolCallReader:
    """Of one answer. Feed it all text, then ``end``."""

    def __init__(self, names: Collection[str]) -> None:
        """names: of the functions that may be called; without any, all text is text."""
        self._names = frozenset(names)
        self._held = ""
        self._is_whole: bool | None = None
        """Whether all of the answer is held; None: not known yet."""
        self._follows_call = False
        """Nothing but white space has come since the last call."""
        self.calls: list[CalledFunction] = []
        """Read so far."""

    def feed(self, text: str) -> str:
        """What of the answer is surely text by now."""
        if not self._names:
            return text
        self._held += text
        if self._is_whole is None:
            self._is_whole = _begins_whole(self._held)
        return self._split() if self._is_whole is False else ""

    def end(self) -> str:
        """What is left and is text after all."""
        held, self._held = self._held, ""
        if not held or not self._names:
            return held
        found = self._read(held)
        if found is None:
            return held
        self.calls += found
        return ""

    def _split(self) -> str:
        """Takes whole calls out of what is held; returns the text before what may be the next one. White space around
        a call is its frame, not something said."""
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
        """The calls that ``text`` is; None: it is none."""
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
        """None: it is none. Raises RecursionError."""
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return CalledFunction(name, arguments)


def _begins_whole(text: str) -> bool | None:
    """None: too short to tell."""
    text = text.lstrip()
    if any(text.startswith(mark) for mark in _WHOLE):
        return True
    return None if not text or any(mark.startswith(text) for mark in _WHOLE) else False


def _overlap(text: str, mark: str) -> int:
    """Characters at the end of ``text`` that may be the beginning of ``mark``."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)

"""Readers of function calls, one for each kind of notation. Each is a generator that reads ``Source`` and hands over
what it finds to ``Calls``; it raises BrokenError where the text is no call."""

from collections.abc import Generator
from dataclasses import dataclass

import msgspec

from mycelia.node.formats.calls import MAX_HELD_CHARS, Calls
from mycelia.node.formats.forms import Form
from mycelia.node.formats.patterns import Match, Pattern
from mycelia.node.formats.source import Reading, Source, after_space
from mycelia.node.formats.tagged import Tagged
from mycelia.node.formats.values import BrokenError, Notation, Values, as_json, json_of

_NAME_KEYS = {"name", "tool_name", "function", "function_name", "tool"}
_ARGUMENT_KEYS = {"arguments", "parameters", "args"}
_OTHER_KEYS = {"id", "tool_call_id", "type", "index"}


def read_call(form: Form, begun: Match, source: Source, calls: Calls) -> Reading:
    """Reads a call, or several, after the beginning ``begun``."""
    if form.next_chars:
        yield from source.skip_space()
        if not source.next or source.next not in form.next_chars:
            raise BrokenError("no call")
    if form.body == "calls":
        yield from _Objects(form, source, calls).read()
    elif form.body == "python":
        source.at = begun.end - len(begun.fields["name"]) - 1
        yield from _python(source, calls)
    else:
        written = begun.fields["name"]
        name, call_id = calls.known(written), begun.fields.get("id", "")
        if not call_id and ":" in written:
            call_id = written  # (Kimi's ids have the name in them)
        if form.body == "tagged":
            yield from Tagged(form, source, calls, name).read()
        else:
            yield from _arguments(form, source, calls, name, call_id)


def _arguments(form: Form, source: Source, calls: Calls, name: str, call_id: str) -> Reading:
    yield from source.skip_space()
    if source.next == "{":
        calls.begin(name, call_id)
        yield from _stream(source, Values("gemma" if form.body == "gemma" else "json"), calls)
        calls.end()
        return
    if source.next and (not form.ends or (yield from source.match(form.ends)) is None):
        raise BrokenError("no arguments")
    calls.begin(name, call_id)
    calls.write("{}")
    calls.end()


def _python(source: Source, calls: Calls) -> Reading:
    is_first = True
    while True:
        yield from source.skip_space()
        found = yield from source.match((_PYTHON_CALL,))
        if found is None and is_first:
            raise BrokenError("no call")
        if found is None:
            break
        source.at -= 1
        is_first = False
        name = calls.known(found[1].fields["name"])
        calls.begin(name)
        yield from _stream(source, Values("call"), calls)
        calls.end()
        yield from source.skip_space()
        if source.next == ",":
            source.at += 1
        elif source.next == "]":
            source.at += 1
            break


_PYTHON_CALL = Pattern("{name}(")


def _stream(source: Source, values: Values, calls: Calls) -> Reading:
    while True:
        said = _next_part(source, values)
        calls.write(said)
        if values.is_done:
            return
        if source.is_end:
            raise BrokenError("the text ends in a value")
        yield


def _next_part(source: Source, values: Values) -> str:
    try:
        said, source.at = values.read(source.text, source.at, source.is_end)
    except BrokenError:
        source.at = values.broken_at
        raise
    return said


def _collected(source: Source, notation: Notation = "json") -> Generator[None, None, str]:
    """A whole value."""
    values, said, size = Values(notation), list[str](), 0
    while True:
        part = _next_part(source, values)
        said.append(part)
        size += len(part)
        if values.is_done:
            return "".join(said)
        if source.is_end or size > MAX_HELD_CHARS:
            raise BrokenError("the text ends in a value, or the value is too long")
        yield


class _Objects:
    """JSON objects, each with the name and the arguments of a call, one after the other or in a list."""

    def __init__(self, form: Form, source: Source, calls: Calls) -> None:
        self._form = form
        self._source = source
        self._calls = calls

    def read(self) -> Reading:
        source, is_list, has_call = self._source, False, False
        while True:
            yield from source.skip_space()
            char = source.next
            if char == "{":
                yield from self._object()
                has_call = True
            elif char == "[" and not has_call and not is_list:
                is_list = True
                source.at += 1
            elif char and char in ",;" and has_call:
                if not is_list and not (yield from self._another_follows()):
                    return
                source.at += 1
            elif char == "]" and is_list and has_call:
                source.at += 1
                return
            elif has_call and not (char and is_list):
                return
            else:
                raise BrokenError("no call")

    def _another_follows(self) -> Generator[None, None, bool]:
        """Whether an object comes after the separator here."""
        source = self._source
        while (place := after_space(source.text, source.at + 1)) == len(source.text) and not source.is_end:
            yield
        return source.text.startswith("{", place)

    def _object(self) -> Reading:
        source, calls = self._source, self._calls
        call = _Call(calls)
        level = 0
        while True:
            yield from source.skip_space()
            char = source.next
            if char == "{" and not level:
                level = 1
                source.at += 1
            elif char == "}":
                level -= 1
                source.at += 1
                if not level:
                    call.end()
                    return
            elif char == ",":
                source.at += 1
            elif char and char in "\"'":
                key = _text(json=(yield from _collected(source)))
                yield from source.skip_space()
                if source.next != ":":
                    raise BrokenError("no value after a key")
                source.at += 1
                yield from source.skip_space()
                if key == "function" and source.next == "{" and level == 1:
                    level = 2
                    source.at += 1
                else:
                    yield from self._value(key, call)
            else:
                raise BrokenError("no key")

    def _value(self, key: str, call: "_Call") -> Reading:
        source, calls = self._source, self._calls
        is_object = source.next == "{"
        if self._form.names_are_keys and not call.name:
            call.name = calls.known(key)
            key = "arguments"
        if key in _ARGUMENT_KEYS and is_object and call.name and not call.has_begun:
            call.begin()
            yield from _stream(source, Values(), calls)
            return
        is_known = key in _NAME_KEYS or key in _ARGUMENT_KEYS or key in _OTHER_KEYS
        if not is_known and not call.has_begun:
            raise BrokenError("an object that is no call")
        value = yield from _collected(source)
        if call.has_begun:
            return
        if key in _NAME_KEYS:
            call.name = calls.known(_text(json=value))
        elif key in _ARGUMENT_KEYS:
            call.arguments = value
        elif key in ("id", "tool_call_id") and value[0] == '"':
            call.id = _text(json=value)[:128]


@dataclass
class _Call:
    """A call whose name may come after its arguments."""

    calls: Calls
    name: str = ""
    id: str = ""
    arguments: str = ""
    has_begun: bool = False

    def begin(self) -> None:
        self.calls.begin(self.name, self.id)
        self.has_begun = True

    def end(self) -> None:
        if not self.has_begun:
            self.name = self.calls.known(self.name)
            arguments = self._as_meant()
            self.begin()
            self.calls.write(arguments)
        self.calls.end()

    def _as_meant(self) -> str:
        """Arguments that did not come as an object: none, an object inside a string, or the only argument's value."""
        value = self.arguments
        if value[:1] == '"':
            text = _text(json=value)
            value = json_of(text) or (value if text.strip() else "")
        if value in ("", "null", "[]"):
            return "{}"
        if value[0] == "{":
            return value
        only = self.calls.schemas[self.name].only_argument()
        if only is None:
            raise BrokenError("arguments that are no object")
        return f"{{{as_json(only)}: {value}}}"


def _text(json: str) -> str:
    """The text of a JSON string. Raises BrokenError for any other value."""
    try:
        return msgspec.json.decode(json, type=str)
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise BrokenError("no string") from exc

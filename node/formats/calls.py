"""Readers of function calls, one for each kind of notation. Each is a generator that reads ``Source`` and hands over
what it finds to ``Calls``; it raises BrokenError where the text is no call."""

from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from mycelia.node.formats.patterns import Match, Pattern
from mycelia.node.formats.pieces import CallArguments, CallBegun, CallEnded, Piece
from mycelia.node.formats.schemas import NO_STRING, STRING, Schema, Types, typed
from mycelia.node.formats.source import Reading, Source
from mycelia.node.formats.values import BrokenError, Notation, Values, as_json, json_of, overlap

MAX_HELD_CHARS = 1 << 20
"""Text of a call that is held back: a value that is no string, or arguments that come before the function's name."""
MAX_CALLS = 256
"""Calls of one answer."""

_NAME_KEYS = {"name", "tool_name", "function", "function_name", "tool"}
_ARGUMENT_KEYS = {"arguments", "parameters", "args"}
_OTHER_KEYS = {"id", "tool_call_id", "type", "index"}
_CDATA, _CDATA_END = "<![CDATA[", "]]>"

Body = Literal["calls", "json", "tagged", "gemma", "python"]
"""How a call goes on after its beginning. calls: JSON objects with the name and the arguments, or lists of such. json:
the arguments as JSON. tagged: each argument between tags. gemma: Gemma's notation of a JSON object. python: a list of
Python's calls."""


@dataclass(frozen=True)
class Form:
    """One way to write calls."""

    begins: tuple[Pattern, ...]
    body: Body
    next_chars: str = ""
    """The body begins with one of these characters; empty: any."""
    ends: tuple[Pattern, ...] = ()
    """Comes after the body; may be missing at the end of an answer, except with body "tagged"."""
    after: tuple[Pattern, ...] = ()
    """Marks between and after calls, which belong to them."""
    argument: Pattern = field(default_factory=lambda: Pattern(""))
    """Tagged: the mark before an argument's value."""
    argument_end: str = ""
    """Tagged: the mark after it; "{key}" stands for the argument's name."""
    padding: str = ""
    """Tagged: comes before and after each value."""
    nested: str = ""
    """Tagged: the mark before each tag inside a value that is an object or a list."""
    names_are_keys: bool = False
    """Calls: the object's only key is the name of the function."""
    only_at_start: bool = False
    """Only where an answer, or what follows a thought or a call, begins."""


class Calls:
    """What the readers of calls report to: checks names, counts, and makes the pieces."""

    def __init__(self, schemas: dict[str, Schema], source: Source, out: list[Piece]) -> None:
        """schemas: the functions that may be called."""
        self._source = source
        self.schemas = schemas
        self.num_ended = 0
        self.is_open = False
        """A call has begun and not ended."""
        self._out = out

    def known(self, name: str) -> str:
        """The name of the offered function that ``name`` means. Raises BrokenError."""
        for candidate in (name, name.removeprefix("functions."), name.removeprefix("functions.").rpartition(":")[0]):
            if candidate in self.schemas:
                return candidate
        raise BrokenError("a function that is not offered")

    def begin(self, name: str, call_id: str = "") -> None:
        if self.num_ended >= MAX_CALLS:
            raise BrokenError("too many calls")
        self.is_open = True
        self._out.append(CallBegun(name, call_id))

    def write(self, json: str) -> None:
        if json:
            self._out.append(CallArguments(json))

    def end(self) -> None:
        self.is_open = False
        self.num_ended += 1
        self._out.append(CallEnded())
        self._source.keep()


def read_call(form: Form, begun: Match, source: Source, calls: Calls) -> Reading:
    """Reads a call, or several, after the beginning ``begun``."""
    if form.next_chars:
        yield from source.skip_space()
        if source.rest[:1] not in form.next_chars or not source.rest:
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
            yield from _Tagged(form, source, calls, name).read()
        else:
            yield from _arguments(form, source, calls, name, call_id)


def _arguments(form: Form, source: Source, calls: Calls, name: str, call_id: str) -> Reading:
    yield from source.skip_space()
    if source.rest[:1] == "{":
        calls.begin(name, call_id)
        yield from _stream(source, Values("gemma" if form.body == "gemma" else "json"), calls)
        calls.end()
        return
    if source.rest and (not form.ends or (yield from source.match(form.ends)) is None):
        raise BrokenError("no arguments")
    calls.begin(name, call_id)
    calls.write("{}")
    calls.end()


def _python(source: Source, calls: Calls) -> Reading:
    while True:
        yield from source.skip_space()
        found = yield from source.match((_PYTHON_CALL,))
        if found is None:
            raise BrokenError("no call")
        source.at -= 1
        name = calls.known(found[1].fields["name"])
        calls.begin(name)
        yield from _stream(source, Values("call"), calls)
        calls.end()
        yield from source.skip_space()
        if source.rest[:1] != ",":
            break
        source.at += 1
    if source.rest[:1] == "]":
        source.at += 1


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
            char = source.rest[:1]
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
        while not (following := self._source.rest[1:].lstrip()) and not self._source.is_end:
            yield
        return following.startswith("{")

    def _object(self) -> Reading:
        source, calls = self._source, self._calls
        call = _Call(calls)
        level = 0
        while True:
            yield from source.skip_space()
            char = source.rest[:1]
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
                if source.rest[:1] != ":":
                    raise BrokenError("no value after a key")
                source.at += 1
                yield from source.skip_space()
                if key == "function" and source.rest[:1] == "{" and level == 1:
                    level = 2
                    source.at += 1
                else:
                    yield from self._value(key, call)
            else:
                raise BrokenError("no key")

    def _value(self, key: str, call: "_Call") -> Reading:
        source, calls = self._source, self._calls
        is_object = source.rest[:1] == "{"
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


class _Tagged:
    """Arguments between tags, with types from the function's schema. Strings stream, other values are held back."""

    def __init__(self, form: Form, source: Source, calls: Calls, name: str) -> None:
        self._form = form
        self._source = source
        self._calls = calls
        self._name = name
        self._schema = calls.schemas[name]
        self._is_first = True

    def read(self) -> Reading:
        form, source, calls = self._form, self._source, self._calls
        while True:
            yield from source.skip_space()
            found = yield from source.match((form.argument, *form.ends))
            if found is None:
                raise BrokenError("no argument")
            place, match = found
            if place:
                break
            yield from self._argument(match)
        if self._is_first:
            calls.begin(self._name)
        calls.write("{}" if self._is_first else "}")
        calls.end()

    def _argument(self, match: Match) -> Reading:
        calls, key = self._calls, match.fields["key"].strip()
        if self._is_first:
            calls.begin(self._name)
        types = self._types(key, match.fields.get("type", ""))
        calls.write(f"{'{' if self._is_first else ', '}{as_json(key)}: ")
        self._is_first = False
        parts, size = list[str](), 0
        if types == STRING:
            calls.write('"')
        reading = self._value(key)
        while (part := next(reading, None)) is not None:
            if not part:
                yield
            elif types == STRING:
                calls.write(as_json(part)[1:-1])
            else:
                parts.append(part)
                size += len(part)
                if size > MAX_HELD_CHARS:
                    raise BrokenError("a value that is too long")
        calls.write('"' if types == STRING else self._converted("".join(parts), types, key))

    def _converted(self, text: str, types: Types, key: str) -> str:
        form = self._form
        if form.nested and text.lstrip().startswith(f"{form.nested}<"):
            return nested_json(text, form.nested, self._schema, (key,))
        if form.nested and not text.strip() and "array" in types:
            return "[]"
        return typed(text, types)

    def _types(self, key: str, written: str) -> Types:
        """written: the type that the model wrote, in formats that have it."""
        if written in ("true", "string"):
            return STRING
        known = self._schema.types(self._schema.property(key))
        return (known - STRING) or NO_STRING if written else known

    def _value(self, key: str) -> Generator[str, None, None]:
        """The parts of the value's text; an empty one where more text is needed. Reads the mark after it, too."""
        form, source, padding = self._form, self._source, self._form.padding
        while len(source.rest) < len(padding or _CDATA) and not source.is_end:
            if not (padding or _CDATA).startswith(source.rest):
                break
            yield ""
        close = form.argument_end.replace("{key}", key)
        if padding and source.rest.startswith(padding):
            source.at += len(padding)
        elif not padding and source.rest.startswith(_CDATA):
            source.at += len(_CDATA)
            close = _CDATA_END + close
        while True:
            text, at = source.text, source.at
            end = text.find(close, at)
            if end < 0:
                stop = len(text) - max(overlap(text, at, padding + close), overlap(text, at, close))
                source.at = stop
                if stop > at:
                    yield text[at:stop]
                if source.is_end:
                    raise BrokenError("the text ends in a value")
                yield ""
                continue
            is_close = self._ends_value(end + len(close))
            if is_close is None:
                if end - len(padding) > at:
                    source.at = end - len(padding)
                    yield text[at : source.at]
                yield ""
                continue
            if is_close:
                source.at = end + len(close)
                stop = end - len(padding) if padding and text.endswith(padding, at, end) else end
                if stop > at:
                    yield text[at:stop]
                return
            source.at = end + 1
            yield text[at : source.at]

    def _ends_value(self, at: int) -> bool | None:
        """Whether a value really ends before ``at``: another argument or the end of the call must follow, because a
        value may contain its own end mark. None: more text is needed."""
        form, source = self._form, self._source
        following = source.text[at:].lstrip()
        marks = [form.argument.first, *(end.first for end in form.ends)]
        if any(following.startswith(mark) for mark in marks):
            return True
        if any(mark.startswith(following) for mark in marks):
            return True if source.is_end else None
        return False


def nested_json(text: str, mark: str, schema: Schema, path: tuple[str, ...]) -> str:
    """A value written in tags inside tags, as JSON. Raises BrokenError for what is not written so."""
    if len(path) > 32:
        raise BrokenError("too many tags inside tags")
    members, at = list[tuple[str, str]](), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        if not text.startswith(f"{mark}<", at):
            raise BrokenError("text between tags")
        name_at = at + len(mark) + 1
        name_end = text.find(">", name_at)
        name = text[name_at:name_end]
        end = _closing(text, name_end, f"{mark}<{name}>", f"{mark}</{name}>")
        if name_end < 0 or not name or end < 0:
            raise BrokenError("a tag without its end")
        inner, inner_path = text[name_end + 1 : end], (*path, "[]" if name == "item" else name)
        if inner.lstrip().startswith(f"{mark}<"):
            value = nested_json(inner, mark, schema, inner_path)
        else:
            value = typed(inner, schema.types(schema.property(*inner_path)))
        members.append((name, value))
        at = end + len(mark) + len(name) + 3
    if all(name == "item" for name, _ in members):
        return f"[{', '.join(value for _, value in members)}]"
    return f"{{{', '.join(f'{as_json(name)}: {value}' for name, value in members)}}}"


def _closing(text: str, at: int, opening: str, closing: str) -> int:
    """Where the end tag is that belongs to a tag before ``at``; -1: nowhere."""
    depth = 1
    while depth:
        end, inner = text.find(closing, at), text.find(opening, at)
        if end < 0:
            return -1
        if 0 <= inner < end:
            depth, at = depth + 1, inner + len(opening)
        else:
            depth, at = depth - 1, end + len(closing)
    return at - len(closing)


def names_in(forms: Collection[Form]) -> set[str]:
    """The literal marks of ``forms``."""
    patterns = [pattern for form in forms for pattern in (*form.begins, *form.ends, *form.after, form.argument)]
    return {pattern.source for pattern in patterns} | {form.argument_end for form in forms}

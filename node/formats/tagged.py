"""Reads arguments that stand between tags."""

from collections.abc import Generator

from mycelia.node.formats.calls import MAX_HELD_CHARS, Calls
from mycelia.node.formats.forms import Form
from mycelia.node.formats.patterns import PARTIAL, Match, Pattern
from mycelia.node.formats.schemas import NO_STRING, STRING, Schema, Types, typed
from mycelia.node.formats.source import Reading, Source, after_space
from mycelia.node.formats.values import BrokenError, as_json, overlap

_CDATA, _CDATA_END = "<![CDATA[", "]]>"


class Tagged:
    """Arguments between tags, with types from the function's schema. Strings stream, other values are held back."""

    def __init__(self, form: Form, source: Source, calls: Calls, name: str) -> None:
        self._form = form
        self._source = source
        self._calls = calls
        self._name = name
        self._schema = calls.schemas[name]
        self._is_first = True
        self._stray_end = Pattern(form.argument_end.replace("{key}", "{...}") or "{...}")
        """An end mark too many, as some models write it."""
        self._call_end = Pattern("{_}".join(mark.source for mark in (*form.ends[:1], *form.after[:1])))
        """Ends also a value whose own end mark the model left out."""

    def read(self) -> Reading:
        form, source, calls = self._form, self._source, self._calls
        while True:
            yield from source.skip_space()
            found = yield from source.match((*form.arguments, *form.ends, self._stray_end))
            if found is None:
                raise BrokenError("no argument")
            place, match = found
            if place < len(form.arguments):
                yield from self._argument(match)
            elif place < len(form.arguments) + len(form.ends):
                break
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
        while len(source.text) - source.at < len(padding or _CDATA) and not source.is_end:
            if not (padding or _CDATA).startswith(source.text[source.at :]):
                break
            yield ""
        close = form.argument_end.replace("{key}", key)
        if padding and source.text.startswith(padding, source.at):
            source.at += len(padding)
        elif not padding and source.text.startswith(_CDATA, source.at):
            source.at += len(_CDATA)
            close = _CDATA_END + close
        while True:
            text, at = source.text, source.at
            end = text.find(close, at)
            call_end, is_open = self._end_of_call(text, at, len(text) if end < 0 else end)
            if call_end >= 0:
                stop = call_end - len(padding) if padding and text.endswith(padding, at, call_end) else call_end
                source.at = stop if is_open else call_end
                if stop > at:
                    yield text[at:stop]
                if not is_open:
                    return
                yield ""
                continue
            if end < 0:
                marks = [close, *(end.first for end in form.ends if form.after and padding)]
                held = max(overlap(text, at, pad + mark) for mark in marks for pad in (padding, ""))
                stop = len(text) - held
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

    def _end_of_call(self, text: str, at: int, before: int) -> tuple[int, bool]:
        """(where the whole call ends before ``before`` though its value does not, whether more text is needed to know);
        (-1, False): nowhere."""
        form = self._form
        if not form.after or not form.padding:
            return -1, False
        while 0 <= (place := text.find(form.ends[0].first, at)) < before:
            found = self._call_end.match(text, place, self._source.is_end)
            if found is not None:
                return place, found == PARTIAL
            at = place + 1
        return -1, False

    def _ends_value(self, at: int) -> bool | None:
        """Whether a value really ends before ``at``: another argument or the end of the call must follow, because a
        value may contain its own end mark. None: more text is needed."""
        form, source = self._form, self._source
        place = after_space(source.text, at)
        marks = [mark.first for mark in (*form.arguments, *form.ends)]
        marks.append(form.argument_end)
        if any(source.text.startswith(mark, place) for mark in marks):
            return True
        following = source.text[place : place + max(map(len, marks))]
        if any(mark.startswith(following) for mark in marks):
            return True if source.is_end else None
        return False


def nested_json(text: str, mark: str, schema: Schema, path: tuple[str, ...]) -> str:
    """A value written in tags inside tags, as JSON. Raises BrokenError for what is not written so."""
    if len(path) > 32:
        raise BrokenError("too many tags inside tags")
    members, at = list[tuple[str, str]](), 0
    while (at := after_space(text, at)) < len(text):
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

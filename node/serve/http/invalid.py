"""What is wrong with a body, in words."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from msgspec import inspect

_ENUM = "Invalid enum value "
_STEP = re.compile(r"\.(\w+)|\[[^]]*\]")
_type_info = lru_cache(maxsize=32)(inspect.type_info)
"""Kept for each kind of body, since it takes a millisecond."""


def mistake(exc: Exception, kind: type) -> str:
    """The message of ``exc``, raised by msgspec when it read a ``kind``, with the choices where there are some."""
    message = str(exc)
    if not message.startswith(_ENUM):
        return message
    _, _, path = message.rpartition(" - at `$")
    found: list[inspect.Type] = [_type_info(kind)]
    for step in _STEP.finditer(path):
        found = [inner for one in _flat(found) for inner in _inside(one, step[1])]
    choices = [str(value) for one in _flat(found) if isinstance(one, inspect.LiteralType) for value in one.values]
    return f"{message}: it must be one of {', '.join(sorted(choices))}" if choices else message


def _flat(kinds: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    for kind in kinds:
        if isinstance(kind, inspect.UnionType):
            yield from _flat(kind.types)
        elif isinstance(kind, inspect.Metadata):
            yield from _flat([kind.type])
        else:
            yield kind


def _inside(kind: inspect.Type, name: str | None) -> Iterator[inspect.Type]:
    """name: of a field; None: any item."""
    if isinstance(kind, inspect.StructType):
        yield from (field.type for field in kind.fields if field.encode_name == name)
    elif isinstance(kind, inspect.CollectionType) and name is None:
        yield kind.item_type
    elif isinstance(kind, inspect.DictType):
        yield kind.value_type

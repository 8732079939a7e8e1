"""What is evaluated by applying a schema, on which ``unevaluatedProperties`` and ``unevaluatedItems`` depend."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mycelia.node.schemas.document import Schema, SchemaError
from mycelia.node.schemas.negation import any_of

MAX_BRANCHES = 64
"""Ways in which parts of one schema can apply together."""
COPIED_A_STEP = 64
"""Schemas, names and characters that are copied in the time of a step."""


@dataclass(frozen=True)
class Seen:
    """What is evaluated in one way to apply a schema: properties by name and pattern, and items."""

    names: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    all_names: bool = False
    num_items: int = 0
    all_items: bool = False
    contained: tuple[Schema, ...] = ()

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(
            self.names + other.names,
            self.patterns + other.patterns,
            self.all_names or other.all_names,
            max(self.num_items, other.num_items),
            self.all_items or other.all_items,
            self.contained + other.contained,
        )

    def rest(self, keyword: str, value: Schema, contained: Sequence[Schema]) -> Schema:
        """``value`` holds for what this does not include. contained: ``self.contained`` as they are enforced; only for
        ``unevaluatedItems``."""
        if keyword == "unevaluatedProperties":
            if self.all_names:
                return True
            rest: dict[str, Any] = {"properties": dict.fromkeys(self.names, True), "additionalProperties": value}
            return rest | ({"patternProperties": dict.fromkeys(self.patterns, True)} if self.patterns else {})
        if self.all_items:
            return True
        items = any_of([*contained, value])
        return {"prefixItems": [True] * self.num_items, "items": items} if self.num_items else {"items": items}


Branch = tuple[list[Schema], Seen]
"""One way to apply a schema: what must hold, and what is evaluated by it."""


def seen_of(schema: dict[str, Any]) -> Seen:
    """What the keywords of ``schema`` itself evaluate."""
    return Seen(
        tuple(schema.get("properties", ())),
        tuple(schema.get("patternProperties", ())),
        "additionalProperties" in schema,
        len(schema.get("prefixItems", ())),
        "items" in schema,
        (schema["contains"],) if "contains" in schema else (),
    )


def product(ways: Sequence[Sequence[Branch]], count: Callable[[int], None]) -> list[Branch]:
    """All combinations of one branch of each of ``ways``. count: is told the work. Raises SchemaError when it is too
    much."""
    branches: list[Branch] = [([], Seen())]
    for way in ways:
        branches = [([*held, *more], seen | other) for held, seen in branches for more, other in way]
        if len(branches) > MAX_BRANCHES:
            raise SchemaError("the parts of the JSON schema apply together in too many ways")
        num_copied = sum(len(held) + len(seen.names) + len(seen.patterns) for held, seen in branches)
        count(1 + num_copied // COPIED_A_STEP)
    return branches

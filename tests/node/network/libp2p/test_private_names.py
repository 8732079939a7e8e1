"""The number of libp2p's private names that the node uses, which may change with any version."""

import ast
from collections.abc import Callable
from pathlib import Path

from mycelia.node.network.libp2p import fixes

MAX_PRIVATE_NAMES = 35
"""Lower it when a name is no longer needed. Before adding a name, look for a public one."""


def listed() -> list[str]:
    """Every private name of libp2p that ``fixes.py`` checks at the start of a node, with its module or class."""
    tables = (fixes.PRIVATE_NAMES, fixes.ATTRIBUTES)
    return [f"{place}.{name}" for table in tables for place, names in table.items() for name in names]


def test_the_number_of_private_names_does_not_grow(record_property: Callable[[str, object], None]) -> None:
    names = listed()
    record_property("private names of libp2p in use", len(names))
    assert len(names) <= MAX_PRIVATE_NAMES, names


def test_every_private_name_in_use_is_listed() -> None:
    """Every private attribute in the package's code is defined by the package itself or is in the list."""
    used: dict[str, str] = {}
    own: set[str] = set()
    for path in Path(fixes.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case (
                    ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.AnnAssign(target=ast.Name(name))
                ):
                    own.add(name)
                case ast.Attribute(value=ast.Name("self"), attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                    used[name] = f"{path.name}:{node.lineno} {name}"
    known = own | {name.rpartition(".")[2] for name in listed()}
    assert not [place for name, place in used.items() if name not in known]

"""Marks in the literals of a chat template: in those that it can write. Literals that it only compares with contents
stay as they are, so that the template decides the same with marks as without."""

from collections.abc import Callable, Iterable

from jinja2 import nodes

# fmt: off
_COMPARES_ALL = frozenset((
    "split", "rsplit", "partition", "rpartition", "startswith", "endswith", "find", "rfind", "index", "rindex", "count",
    "strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "get", "pop",
))
"""Methods that read their arguments and do not pass them on."""
_COMPARES_FIRST = frozenset(("replace",))
_FILTERS_THAT_COMPARE = frozenset((
    "select", "reject", "selectattr", "rejectattr", "map", "groupby", "sort", "unique", "attr", "trim", "dictsort",
    "sum", "min", "max",
))
# fmt: on

Mark = Callable[[str], str]


def mark_literals(node: nodes.Node, mark: Mark) -> None:
    """Mutates ``node``."""
    match node:
        case nodes.TemplateData():
            node.data = mark(node.data)
        case nodes.Const() if isinstance(node.value, str):
            node.value = mark(node.value)
        case nodes.Compare() | nodes.Test():
            pass  # (true or false, whatever is compared)
        case nodes.Getitem() | nodes.Getattr():
            mark_literals(node.node, mark)
        case nodes.Pair():
            mark_literals(node.value, mark)
        case nodes.Call(node=nodes.Getattr() as method):
            mark_literals(method, mark)
            _mark_all(_passed_on(method.attr, node), mark)
        case nodes.Filter():
            if node.node is not None:
                mark_literals(node.node, mark)
            if node.name not in _FILTERS_THAT_COMPARE:
                _mark_all(_passed_on(node.name, node), mark)
        case _:
            _mark_all(node.iter_child_nodes(), mark)


def _passed_on(name: str, call: nodes.Call | nodes.Filter) -> Iterable[nodes.Node]:
    """The arguments that may be a part of the result."""
    if name in _COMPARES_ALL:
        return []
    args = call.args[1:] if name in _COMPARES_FIRST else call.args
    return [*args, *call.kwargs, *filter(None, (call.dyn_args, call.dyn_kwargs))]


def _mark_all(children: Iterable[nodes.Node], mark: Mark) -> None:
    for child in list(children):
        mark_literals(child, mark)

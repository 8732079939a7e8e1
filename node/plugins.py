"""The parts of the program that the node does not import, but finds by entry point.

``mycelia.commands``: ``mycelia bench`` and ``mycelia simulate``, imported when they are called. ``mycelia.policies``:
the module of the routing rules that a node may be told to follow, for comparisons (``sim/policies.py``).
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from types import ModuleType

OWN_POLICY = "mycelia"
"""The protocol's own."""
COMMANDS = {
    "bench": "Measure on this machine, beside what you would use instead.",
    "simulate": "Simulate a swarm that answers prompts, under one or several rules of who answers.",
}
"""What ``mycelia --help`` says of each."""


class Plugged(click.Command):
    """The place of a command that is not imported yet."""


class Program(click.Group):
    """A group with places for ``COMMANDS``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, about in COMMANDS.items():
            self.add_command(Plugged(name, help=about))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that ``args`` name, imported."""
        self.load(*args[:1])
        return super().resolve_command(ctx, args)

    def load(self, *names: str) -> None:
        """Imports those of ``names`` that are still to be imported."""
        for found in entry_points(group="mycelia.commands"):
            if found.name in names and isinstance(self.commands.get(found.name), Plugged):
                self.add_command(found.load(), found.name)


def policies() -> "ModuleType":
    """The module with the rules of who answers."""
    (found,) = entry_points(group="mycelia.policies")
    module: ModuleType = found.load()
    return module

"""The parts of the program that the node does not import but finds by entry point.

``mycelia.commands``: ``mycelia bench`` and ``mycelia simulate``, imported when they are called. ``mycelia.policies``:
the module of routing policies that a node can follow for comparisons (``sim/policies.py``).
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from types import ModuleType

OWN_POLICY = "mycelia"
"""The name of the protocol's own routing policy."""
COMMANDS = {
    "bench": "Measure Mycelia on this machine and compare it with other programs.",
    "simulate": "Simulate a swarm that answers prompts, with one or several routing policies.",
}
"""Each command's line in ``mycelia --help``."""


OTHER_NAMES = {
    "serve": "node",
    "start": "node",
    "run": "chat",
    "stop": "leave",
    "kill": "leave",
    "pull": "model pull",
    "list": "models",
    "ls": "models",
    "ps": "status",
    "help": "--help",
    "version": "--version",
    "logs": "service logs",
}
"""Names of other programs' commands -> what to use here."""


class Plugged(click.Command):
    """A placeholder for a command that is not imported yet."""


class Program(click.Group):
    """A group with a placeholder for each of ``COMMANDS``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name, about in COMMANDS.items():
            self.add_command(Plugged(name, help=about))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        self.load(*args[:1])
        if args and args[0] not in self.commands and (name := OTHER_NAMES.get(args[0])):
            raise click.UsageError(f"there is no command {args[0]!r}: use 'mycelia {name}'", ctx)
        return super().resolve_command(ctx, args)

    def load(self, *names: str) -> None:
        """Import the commands in ``names`` that are still placeholders."""
        wanted = {name for name in names if isinstance(self.commands.get(name), Plugged)}
        if not wanted:
            return  # (looking for entry points takes a tenth of a short command's time)
        for found in entry_points(group="mycelia.commands"):
            if found.name in wanted:
                self.add_command(found.load(), found.name)


def policies() -> "ModuleType":
    (found,) = entry_points(group="mycelia.policies")
    module: ModuleType = found.load()
    return module

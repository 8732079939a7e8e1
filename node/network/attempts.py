"""What a node tried in order to find its first peer, and what came of it, in words for users."""

from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

MAX_ATTEMPTS = 32


class Attempt(Struct, frozen=True):
    """One way that did not lead to a peer."""

    what: str
    """Such as "203.0.113.1 port 7117", "node.example.org", or a source of addresses such as the local network."""
    says: str
    fix: str = ""
    """What the user can do; empty: nothing, or nothing more than for the others."""

    def __str__(self) -> str:
        return f"{self.what}: {self.says}{f' ({self.fix})' if self.fix else ''}"


class Attempts:
    """The last attempts, one for each way."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, Attempt] = OrderedDict()

    def note(self, what: str, says: str, fix: str = "") -> None:
        """Mutates."""
        self._rows[what] = Attempt(what, says, fix)
        if len(self._rows) > MAX_ATTEMPTS:
            self._rows.popitem(last=False)

    def note_all(self, attempts: Iterable[Attempt]) -> None:
        """Mutates."""
        for one in attempts:
            self.note(one.what, one.says, one.fix)

    def clear(self) -> None:
        self._rows.clear()

    def rows(self) -> list[Attempt]:
        return list(self._rows.values())

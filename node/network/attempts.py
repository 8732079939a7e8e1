"""What a node tried in order to find its first peer, and what came of it, in words for users."""

from collections import OrderedDict
from collections.abc import Iterable

from mycelia.node.errors import Attempt

MAX_ATTEMPTS = 32


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

"""Which row of a bounded list of requests goes first: the oldest one of the client with the most rows.

All peers together count as one client here, so their requests displace only each other's; of these, the oldest row of
the peer with the most goes first.
"""

from collections import OrderedDict


def is_peer(client: str) -> bool:
    """A shorter name is that of an API key, or of this machine."""
    return len(client) > 32


class ClientRows:
    """Rows in the order in which they came. It looks at the clients, and not at all rows: a prompt waits for it."""

    def __init__(self) -> None:
        self._rows: dict[str, OrderedDict[bytes, int]] = {}
        """Client -> its rows with their numbers, the oldest first."""
        self._client_of: dict[bytes, str] = {}
        self._num_added = 0

    def add(self, row: bytes, client: str) -> None:
        """A new row, the newest of all. Mutates."""
        self._num_added += 1
        self._client_of[row] = client
        self._rows.setdefault(client, OrderedDict())[row] = self._num_added

    def remove(self, row: bytes) -> None:
        """``row``, which need not be there, is gone. Mutates."""
        client = self._client_of.pop(row, None)
        if client is not None:
            del self._rows[client][row]
            if not self._rows[client]:
                del self._rows[client]

    def surplus(self) -> bytes:
        """The row that goes first; there is one."""
        lines = [[rows] for client, rows in self._rows.items() if not is_peer(client)]
        if peers := [rows for client, rows in self._rows.items() if is_peer(client)]:
            lines.append(peers)
        largest = max(lines, key=lambda line: (sum(map(len, line)), -min(map(_oldest, line))))
        rows = max(largest, key=lambda rows: (len(rows), -_oldest(rows)))
        return next(iter(rows))


def _oldest(rows: OrderedDict[bytes, int]) -> int:
    return next(iter(rows.values()))

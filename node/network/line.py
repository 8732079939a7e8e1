"""This machine's line to the internet: how many bytes a node sends and receives, at a rate that the owner bounds.

Traffic within the local network and on this machine does not count. All connections of a process share one line.
"""

import math

import trio

BURST_S = 0.5
"""Bytes of so much time pass at once after a rest."""


class Line:
    """One direction does not slow the other."""

    def __init__(self, bytes_per_s: float | None = None) -> None:
        """bytes_per_s: for each direction; None: no bound."""
        self._bytes_per_s = math.inf if bytes_per_s is None else bytes_per_s
        self._free_at = {True: -math.inf, False: -math.inf}
        """Whether outwards -> when the bytes so far have passed at the bounded rate, on trio's clock."""
        self.sent_bytes = 0
        self.received_bytes = 0

    async def sent(self, num_bytes: int) -> None:
        """Counts bytes that were sent; waits until the next may be."""
        self.sent_bytes += num_bytes
        await self._pass(num_bytes, outwards=True)

    async def received(self, num_bytes: int) -> None:
        """Counts bytes that were read; waits until more may be. Meanwhile the peer's window fills up."""
        self.received_bytes += num_bytes
        await self._pass(num_bytes, outwards=False)

    async def _pass(self, num_bytes: int, outwards: bool) -> None:
        if math.isinf(self._bytes_per_s):
            return
        begun_at = max(self._free_at[outwards], trio.current_time() - BURST_S)
        self._free_at[outwards] = begun_at + num_bytes / self._bytes_per_s
        await trio.sleep_until(self._free_at[outwards])

"""Turns for work that blocks the event loop: one piece of work in a round of the scheduler.

Without turns, each of 256 connections may do its piece of work in the same round, and a request that needs ten rounds
waits ten times for all of them. Turns go to the shares in rotation, so a client with many connections delays the others
by one piece of work a round.
"""

from collections import OrderedDict

import trio


class Turns:
    """The turns of one server, while ``run`` runs. A turn costs no round while no other task takes one."""

    def __init__(self) -> None:
        self._is_taken = False
        self._taken = trio.Event()
        """Set while the end of a turn is due, in the next round."""
        self._waiting: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()
        """By share, the next one first. A lot whose tasks were all cancelled stays until its turn."""

    async def take(self, share: str) -> None:
        """Waits until ``share`` may do a piece of work, before the next checkpoint. Not always a checkpoint itself."""
        if self._is_taken:
            await self._waiting.setdefault(share, trio.lowlevel.ParkingLot()).park()
        self._is_taken = True
        self._taken.set()

    async def run(self) -> None:
        """Ends each turn in the round after it was taken, until cancelled."""
        while True:
            await self._taken.wait()
            self._taken = trio.Event()
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            share, lot = self._waiting.popitem(last=False)
            if lot.unpark():
                if lot:
                    self._waiting[share] = lot
                return
        self._is_taken = False

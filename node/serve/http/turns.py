"""Turns at work that holds up everything else while it is done: one in a round of the scheduler.

Without them, each of 256 connections may do its piece of the work in the same round, and a request that needs ten
rounds waits ten times for all of them. Who waits for a turn is served by share, each share in turn, so that whoever has
many connections delays those of others by one piece of work a round.
"""

from collections import OrderedDict

import trio


class Turns:
    """The turns of one server. A turn costs no round while nobody else takes one."""

    def __init__(self) -> None:
        self._is_taken = False
        """In this round."""
        self._waiting: OrderedDict[str, trio.lowlevel.ParkingLot] = OrderedDict()
        """By share, the next one first. A lot whose tasks were all cancelled stays until it would be the next."""

    async def take(self, share: str) -> None:
        """Wait until a piece of work may be done for ``share``, before the next checkpoint. No checkpoint by itself."""
        if self._is_taken:
            await self._waiting.setdefault(share, trio.lowlevel.ParkingLot()).park()
        self._is_taken = True
        trio.lowlevel.current_trio_token().run_sync_soon(self._pass_on)

    def _pass_on(self) -> None:
        while self._waiting:
            share, lot = self._waiting.popitem(last=False)
            if lot.unpark():
                if lot:
                    self._waiting[share] = lot
                return
        self._is_taken = False

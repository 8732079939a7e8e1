"""A resolver with records in memory."""

from collections.abc import Mapping, Sequence

import trio

from mycelia.node.network.names import NameFailure


class Zone:
    """Answers from ``records``, (name, kind) -> data. An exception is raised, None is never answered."""

    def __init__(self, records: Mapping[tuple[str, str], Sequence[bytes] | NameFailure | None]) -> None:
        self.records = dict(records)
        self.asked: list[tuple[str, str]] = []

    async def query(self, name: str, kind: str) -> Sequence[bytes]:
        self.asked.append((name, kind))
        await trio.lowlevel.checkpoint()
        answer = self.records.get((name, kind), NameFailure("no such name"))
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, NameFailure):
            raise answer
        return answer or []

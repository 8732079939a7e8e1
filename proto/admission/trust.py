"""The price of a peer's misbehaviour.

An offence is anything the protocol forbids: bytes that are no message, a wrong signature, a repair that does not hash
to its root. Offences decay with time, so that a rare accident is forgiven; a peer that reaches the limit is cut off for
a while. The table is bounded; the least guilty are forgotten first, several at once, because finding them reads all
records. The table outlives a restart: otherwise a peer that can make a node restart would be free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest

from mycelia.proto.config import TrustConfig

_FORGOTTEN_SHARE = 1 / 16
"""Share of a full table that is forgotten at once."""


@dataclass
class _Record:
    offences: float
    updated_at: float
    banned_until: float = 0.0


@dataclass(frozen=True)
class Offender:
    """The offences counted against a peer. Times are Unix seconds."""

    peer: bytes
    offences: float
    at: float
    """The time of that count; it decays from then on."""
    banned_until: float


class Trust:
    def __init__(self, config: TrustConfig) -> None:
        self._config = config
        self._records: dict[bytes, _Record] = {}

    def offend(self, peer: bytes, now: float, weight: float = 1.0) -> bool:
        """Count an offence. True exactly when the peer crosses the limit by it: cut it off now. Mutates."""
        record = self._records.get(peer)
        if record is None:
            if len(self._records) >= self._config.max_tracked:
                self._forget_least_guilty(now)
            record = self._records[peer] = _Record(0.0, now)
        record.offences = self._decayed(record, now) + weight
        record.updated_at = now
        if record.offences < self._config.offences_to_quarantine or record.banned_until > now:
            return False
        record.banned_until = now + self._config.quarantine_s
        return True

    def banned_until(self, peer: bytes) -> float:
        """When the peer's quarantine ends; 0 (in the past) when there is none."""
        record = self._records.get(peer)
        return record.banned_until if record else 0.0

    def is_banned(self, peer: bytes, now: float) -> bool:
        return self.banned_until(peer) > now

    def offences(self, peer: bytes, now: float) -> float:
        record = self._records.get(peer)
        return self._decayed(record, now) if record else 0.0

    def offenders(self, now: float) -> list[Offender]:
        """The argument of ``restore`` after a restart, without forgiven peers. Does not mutate."""
        return [
            Offender(peer, record.offences, record.updated_at, record.banned_until)
            for peer, record in self._records.items()
            if record.banned_until > now or self._decayed(record, now)
        ]

    def restore(self, offenders: Sequence[Offender], now: float) -> None:
        """Restore the offences from before a restart, as far as time has not forgiven them. No peer is out for longer
        than if it had offended now, because clocks are sometimes wrong. Mutates."""
        config = self._config
        for one in offenders:
            if not all(map(math.isfinite, (one.offences, one.at, one.banned_until))):
                continue
            most = 2.0 * config.offences_to_quarantine
            record = _Record(min(max(one.offences, 0.0), most), min(one.at, now))
            record.banned_until = min(one.banned_until, now + config.quarantine_s)
            if record.banned_until > now or self._decayed(record, now):
                if len(self._records) >= config.max_tracked:
                    self._forget_least_guilty(now)
                self._records[one.peer] = record

    def _decayed(self, record: _Record, now: float) -> float:
        return max(0.0, record.offences - (now - record.updated_at) / self._config.offence_decay_s)

    def _forget_least_guilty(self, now: float) -> None:
        records = self._records
        num = max(1, round(_FORGOTTEN_SHARE * len(records)))
        for peer in nsmallest(num, records, key=lambda p: (records[p].banned_until, self._decayed(records[p], now))):
            del records[peer]

"""The state that a node keeps over restarts. It is written every SAVE_INTERVAL_S, soon after the most important changes
and at the end. A killed node loses only the changes since the last write. Each file is either the new or the old one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import trio

from mycelia.node.network.network import Network
from mycelia.node.signals import Signal
from mycelia.node.storage.known_peers import PEERS_FILE, STABLE_S, KnownPeer, KnownPeers
from mycelia.node.storage.sealed import SealedFile
from mycelia.proto.admission.trust import Offender
from mycelia.proto.digests.floors import Floor
from mycelia.proto.effects import Emit
from mycelia.proto.events import Event, FloorsRestored, TrustRestored
from mycelia.proto.overlay import Overlay
from mycelia.proto.routing.observed import Observation
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()
run_in_thread = trio.to_thread.run_sync

SAVE_INTERVAL_S = 60.0
AT_ONCE_S = 1.0
"""Time from a quarantine's beginning to the write, so that several at once cause only one write."""
NEW_PEER_S = STABLE_S + 2.0
"""Time from a node's joining to the write: a node that is still there then is remembered."""

FLOORS_FILE = SealedFile("floors.msgpack", list[Floor], "old digests of peers may come back")


@dataclass(frozen=True)
class KeptTrust:
    """The offences of peers, and the observations of peers that served requests."""

    offenders: list[Offender] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)


TRUST_FILE = SealedFile("trust.msgpack", KeptTrust, "peers in quarantine come back, and slow ones are tried again")


@dataclass(frozen=True)
class Kept:
    """The state that earlier runs of a node left."""

    floors: Sequence[Floor] = ()
    trust: KeptTrust = field(default_factory=KeptTrust)
    known: KnownPeers = field(default_factory=KnownPeers)
    """Mutable: the node adds others to it."""


def load_kept(data_dir: Path, now: float) -> Kept:
    """Loads the files. A damaged file is set aside, logged and counts as empty. now: Unix seconds."""
    known = KnownPeers(PEERS_FILE.load(data_dir) or (), now)
    if len(known):
        log.info("remembers_peers", count=len(known))
    return Kept(FLOORS_FILE.load(data_dir) or (), TRUST_FILE.load(data_dir) or KeptTrust(), known)


def restored(kept: Kept) -> list[Event]:
    """The events with which to restore an overlay before it gets events of the network."""
    return [FloorsRestored(kept.floors), TrustRestored(kept.trust.offenders, kept.trust.observations)]


class StateSaver:
    """Writes the state of an overlay and its network to the files of a data directory."""

    def __init__(
        self, data_dir: Path, overlay: Overlay, network: Network, known: KnownPeers, now: Callable[[], float]
    ) -> None:
        """now: the overlay's time."""
        self._data_dir = data_dir
        self._overlay = overlay
        self._network = network
        self._known = known
        self._now = now
        self._saved: dict[str, object] = {}
        self._due_at = math.inf
        self._due_sooner = Signal()

    def note(self, effect: Emit) -> None:
        """Takes an event of the overlay, and schedules an early write after some of them."""
        if effect.event == "node_joined":
            self._save_within(NEW_PEER_S)
        elif effect.event == "peer_quarantined":
            peer = effect.fields["peer"]
            assert isinstance(peer, bytes)
            self._known.forget(peer)
            self._save_within(AT_ONCE_S)

    async def run(self) -> None:
        """Saves changed values from time to time, and once more when cancelled. Never returns."""
        try:
            while True:
                self._due_at = trio.current_time() + SAVE_INTERVAL_S
                while trio.current_time() < self._due_at:
                    with trio.move_on_at(self._due_at):
                        await self._due_sooner.wait()
                for file, value in self._changed():
                    # (a disk may take seconds; a cancelled task waits for the write, too)
                    await run_in_thread(self._save, file, value)
        finally:
            for file, value in self._changed():
                self._save(file, value)

    def _save_within(self, seconds: float) -> None:
        if trio.current_time() + seconds < self._due_at:
            self._due_at = trio.current_time() + seconds
            self._due_sooner.notify()

    def _changed(self) -> list[tuple[SealedFile[Any], object]]:
        overlay, now = self._overlay, self._now()
        values: list[tuple[SealedFile[Any], object]] = [
            (FLOORS_FILE, overlay.floors()),
            (TRUST_FILE, KeptTrust(overlay.offenders(now), overlay.observations(now))),
            (PEERS_FILE, self._known_at(now)),
        ]
        return [(file, value) for file, value in values if value != self._saved.get(file.name)]

    def _known_at(self, now: float) -> list[KnownPeer]:
        for view in self._overlay.peers(now):
            namespaces = [served.namespace for served in view.served]
            told, remote = self._network.addresses_of(view.peer), self._network.remote_address(view.peer)
            self._known.note(view.peer, told, namespaces, view.connected_s, now, remote)
        return self._known.rows(now)

    def _save(self, file: SealedFile[Any], value: object) -> None:
        try:
            file.save(self._data_dir, value)
        except LocalError as exc:
            log.warning("not_saved", file=file.name, reason=str(exc))
        else:
            log.debug("saved", file=file.name)
            self._saved[file.name] = value

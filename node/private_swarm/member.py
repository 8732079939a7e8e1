"""A running node's part in a private swarm: it keeps the roster, spreads it, and lets in members only.

The swarm's file is the one truth: the node reads it again when it changes, and writes what it learns. Rosters spread
between connected members: when two connect, and at once when one of them has a newer one. A peer that a newer roster
leaves out is disconnected.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio
from msgspec.structs import replace

from mycelia.node.network.exchange import receive_opening
from mycelia.node.network.network import MessageStream, Network, NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.node.signals import Signal
from mycelia.node.storage.private_swarms import (
    authority_of,
    read_swarm,
    store_roster,
    swarm_path,
    view_of,
)
from mycelia.proto.swarm.roster import Adoption, Purpose
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Join, JoinRefused, Message, Roster, RosterQuery

log = structlog.get_logger()

SWARM = "/mycelia/swarm/1"
LOOK_EVERY_S = 1.0
"""Time between looks at the swarm's file and at the connected peers."""
EXCHANGE_DEADLINE_S = 10.0

_T = TypeVar("_T")


class PrivateSwarm:
    """The ``SwarmAccess`` of one node, and the exchange of rosters."""

    def __init__(self, data_dir: Path, name: str, me: bytes) -> None:
        """Raises LocalError when this node is not in the swarm ``name``, or its file cannot be used."""
        self._data_dir = data_dir
        self._name = name
        self._me = me
        content = read_swarm(data_dir, name)
        self.contacts = content.contacts
        self.view = view_of(content, me)
        if not self.view.is_member(me):
            raise LocalError(
                f"the private swarm {name} knows this node under another identity; ask for a new invitation"
            )
        self._is_admin = content.held is not None
        self._is_told = False
        """Whether the user has been told that a member does not let this node in."""
        self._seen = self._file_state()
        self._network: Network | None = None
        self._changed = Signal()
        """The roster has changed."""

    @property
    def roster(self) -> Roster:
        return self.view.roster

    # --- the access --------------------------------------------------------------------------------------------------

    @property
    def key(self) -> bytes:
        return self.view.key

    async def new_key(self) -> None:
        before = self.key
        while self.key == before:
            await self._changed.wait()

    def opened_by(self, nonce: bytes) -> tuple[bytes, Purpose]:
        return self.view.opened_by(nonce)

    def members(self) -> list[bytes]:
        return [member.peer for member in self.roster.members]

    def is_member(self, peer: bytes) -> bool:
        return self.view.is_member(peer)

    def request(self) -> Message:
        return self.roster

    async def learn(self, answer: Message) -> bool:
        match answer:
            case Roster():
                return await self._adopt(answer) in (Adoption.NEW, Adoption.OLD)
            case JoinRefused(reason="removed") if not self._is_told:
                self._is_told = True  # (once: this node goes on trying, since one member may be wrong)
                log.warning("not_let_in", swarm=self._name, hint="a member says that this node is no longer a member")
        return False

    async def answer(self, request: Message, peer: bytes, purpose: Purpose) -> Message | None:
        match request:
            case Join(joiner=b"") if purpose is Purpose.JOIN:
                return await self._answer_join(request, peer)
            case Roster() if purpose is not Purpose.JOIN:
                await self._adopt(request)
                return self.roster if self.is_member(peer) else JoinRefused(reason="removed")
        return None

    async def _answer_join(self, request: Join, joiner: bytes) -> Message:
        if self._is_admin:
            answer: Message = await _in_thread(partial(self._decide, request, joiner))
            await self._look()
        else:
            answer = await self._asked_admin(replace(request, joiner=joiner))
        reason = answer.reason if isinstance(answer, JoinRefused) else "member"
        log.info("asked_to_join", peer=peer_text(joiner), name=request.name, outcome=reason)
        return answer

    def _decide(self, request: Join, joiner: bytes) -> Roster | JoinRefused:
        with authority_of(self._data_dir, self._name) as authority:
            return authority.join(request, joiner, time.time())

    async def _asked_admin(self, request: Join) -> Message:
        admin = self.roster.admin
        if self._network is not None and admin in self._network.peers():
            try:
                with trio.fail_after(EXCHANGE_DEADLINE_S):
                    stream = await self._network.open(admin, SWARM)
                    try:
                        await stream.send(request)
                        answer = await stream.receive()
                    finally:
                        await stream.aclose()
                if isinstance(answer, Roster):
                    await self._adopt(answer)
                return answer
            except (NetworkError, RemoteError, trio.TooSlowError) as exc:
                log.debug("admin_silent", reason=str(exc))
        return JoinRefused(reason="admin_away")

    # --- spreading -------------------------------------------------------------------------------------------------

    async def run(self, network: Network) -> None:
        """Runs until cancelled. Raises LocalError when this node has been removed from the swarm."""
        self._network = network
        network.serve(SWARM, self.serve)
        told: dict[bytes, int] = {}
        """Peer -> version of this node's roster when both last compared theirs."""
        async with trio.open_nursery() as nursery:
            while True:
                if self.view.is_removed:
                    raise LocalError(
                        f"this node was removed from the private swarm {self._name}; only its admin can change that"
                    )
                changed, connected = self._changed.next, network.peers()
                told = {peer: version for peer, version in told.items() if peer in connected}
                for peer in connected:
                    if not self.is_member(peer):
                        log.info("member_removed", peer=peer_text(peer))
                        nursery.start_soon(network.disconnect, peer)
                    elif told.get(peer, -1) < self.roster.version:
                        told[peer] = self.roster.version
                        nursery.start_soon(self._compare, network, peer)
                with trio.move_on_after(LOOK_EVERY_S):
                    await changed.wait()
                await self._look()

    async def _compare(self, network: Network, peer: bytes) -> None:
        """Gives ``peer`` this node's roster or takes the peer's, whichever is newer."""
        try:
            with trio.fail_after(EXCHANGE_DEADLINE_S):
                stream = await network.open(peer, SWARM)
                try:
                    await stream.send(RosterQuery(version=self.roster.version))
                    answer = await stream.receive()
                    if isinstance(answer, Roster):
                        await self._adopt(answer)
                    elif isinstance(answer, RosterQuery) and answer.version < self.roster.version:
                        if self.is_member(peer):
                            await stream.send(self.roster)
                finally:
                    await stream.aclose()
        except (NetworkError, RemoteError, trio.TooSlowError) as exc:
            log.debug("roster_not_compared", peer=peer_text(peer), reason=str(exc))

    async def serve(self, stream: MessageStream) -> None:
        """Serves one exchange with a member."""
        request = await receive_opening(stream)
        if not self.is_member(stream.peer):
            return
        match request:
            case RosterQuery() if request.version < self.roster.version:
                await stream.send(self.roster)
            case RosterQuery():
                await stream.send(RosterQuery(version=self.roster.version))
                if request.version > self.roster.version:
                    answer = await receive_opening(stream)
                    if isinstance(answer, Roster):
                        await self._adopt(answer)
            case Join() if self._is_admin and request.joiner:
                await stream.send(await self._answer_join(request, request.joiner))

    # --- the file --------------------------------------------------------------------------------------------------

    async def _adopt(self, roster: Roster) -> Adoption:
        adoption = self.view.adopt(roster)
        if adoption is Adoption.NEW:
            await _in_thread(partial(store_roster, self._data_dir, self._name, roster))
        if adoption in (Adoption.NEW, Adoption.REMOVED):
            self._note_change()
        return adoption

    async def _look(self) -> None:
        """Takes the roster in the file if a command made a newer one."""
        state = self._file_state()
        if state == self._seen:
            return
        self._seen = state
        try:
            content = await _in_thread(partial(read_swarm, self._data_dir, self._name))
        except LocalError as exc:
            log.warning("swarm_file_unusable", reason=str(exc))
            return
        if self.view.adopt(content.roster) in (Adoption.NEW, Adoption.REMOVED):
            self._note_change()

    def _note_change(self) -> None:
        log.info(
            "roster_changed",
            swarm=self._name,
            version=self.roster.version,
            epoch=self.roster.epoch,
            members=len(self.roster.members),
        )
        self._changed.notify()

    def _file_state(self) -> tuple[int, int]:
        try:
            state = os.stat(swarm_path(self._data_dir, self._name))
        except OSError:
            return 0, 0
        return state.st_mtime_ns, state.st_ino


async def _in_thread(function: Callable[[], _T]) -> _T:
    """Files are read and written beside the node's work: the disk may be slow, and a command may hold the lock."""
    return await trio.to_thread.run_sync(function)

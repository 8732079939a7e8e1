"""Nodes of one local network find each other by multicast DNS: each asks which others there are, and answers who asks.

It is spoken in private networks only, see ``interfaces.py``. Anybody there may send any number of packets with any
content and sender, so little is read a second, only addresses in the network that a packet came from are passed on, and
the dialling side bounds how many.

zeroconf, which libp2p's own discovery uses, runs threads, keeps all that it hears, does not say where it heard it, and
reads one TXT record of a name where js-libp2p sends several.
"""

import math
import random
from collections.abc import Callable, Sequence
from itertools import chain, repeat

import structlog
import trio
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.mdns.interfaces import LocalNetwork, is_in, local_networks, open_socket, target
from mycelia.node.network.mdns.records import MAX_PACKET_BYTES, Question, Records
from mycelia.node.signals import Signal
from mycelia.proto.admission.limits import TokenBucket

log = structlog.get_logger()

PACKET_RATE, PACKET_BURST = 100.0, 400.0
"""Packets a second that are received in one network. More stay in the kernel, which drops them."""
READ_RATE, READ_BURST = 10.0, 64.0
"""Packets of nodes a second that are read in one network; the rest are ignored. The dearest takes 20 ms."""
ANSWER_EVERY_S = 1.0
"""Answers in one network: a question that comes sooner has been answered for everybody (RFC 6762, 6)."""
ANSWER_DELAY_S = (0.02, 0.12)
"""Random delay of an answer, so that not all nodes answer at once."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Between the first questions; then LONGEST_PAUSE_S."""
LONGEST_PAUSE_S = 60.0
INTERFACES_EVERY_S = 5.0
MAX_HEARD = 1_000

FoundPeer = Callable[[bytes, Sequence[Multiaddr], str], None]


class MulticastDns:
    """One node's part in it."""

    def __init__(
        self,
        records: Records,
        told: Callable[[LocalNetwork], list[str]],
        on_found: FoundPeer,
        note: Callable[[str, str], None],
        rng: random.Random,
    ) -> None:
        """told: the full addresses of this node in a network. on_found: gets a peer, addresses of it that are in the
        network in which they were heard, and the sender's IP address; it must return at once. note: gets what came of
        it and what to do, for the user."""
        self._records = records
        self._told = told
        self._on_found = on_found
        self._note = note
        self._rng = rng
        self._again = Signal()

    def ask_again(self) -> None:
        """Starts the questions from the shortest pause."""
        self._again.notify()

    async def run(self) -> None:
        """Never returns. Begins anew when this machine has other networks."""
        while True:
            networks = local_networks()
            if not networks:
                self._note("off: this machine is in no private network", "")
            async with trio.open_nursery() as nursery:
                for network in networks:
                    nursery.start_soon(self._speak, network)
                while local_networks() == networks:  # noqa: ASYNC110  no event tells of it on all systems
                    await trio.sleep(INTERFACES_EVERY_S)
                nursery.cancel_scope.cancel()

    async def _speak(self, network: LocalNetwork) -> None:
        """Takes part in one network until cancelled."""
        while True:
            try:
                channel = open_socket(network)
            except OSError as exc:
                log.info("mdns_failed", interface=network.interface, error=str(exc))
                self._note(f"off in {network.network}: {exc.strerror or exc}", "let programs share UDP port 5353")
                await trio.sleep(LONGEST_PAUSE_S)
                continue
            with channel:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._listen, channel, network)
                        await self._ask(channel, network)
                finally:
                    with trio.move_on_after(1, shield=True):
                        await self._send(channel, network, self._answer(network, ttl_s=0))

    async def _ask(self, channel: trio.socket.SocketType, network: LocalNetwork) -> None:
        says, fix = f"no other node answers in {network.network}", "start one there; guest Wi-Fi keeps machines apart"
        while True:
            self._note(says, fix)
            again = self._again.next
            for pause_s in chain(PAUSES_S, repeat(LONGEST_PAUSE_S)):
                await self._send(channel, network, self._records.question())
                if pause_s == PAUSES_S[0]:
                    await self._send(channel, network, self._answer(network))
                with trio.move_on_after(pause_s * self._rng.uniform(0.75, 1.25)):
                    await again.wait()
                if again.is_set():
                    break

    async def _listen(self, channel: trio.socket.SocketType, network: LocalNetwork) -> None:
        now = trio.current_time()
        bucket, reads = TokenBucket(PACKET_RATE, PACKET_BURST, now), TokenBucket(READ_RATE, READ_BURST, now)
        answered_at = -math.inf
        while True:
            try:
                packet, sender = await channel.recvfrom(MAX_PACKET_BYTES)
            except OSError as exc:
                log.debug("mdns_failed", interface=network.interface, error=str(exc))
                await trio.sleep(1.0)
                continue
            if not bucket.take(trio.current_time()):
                await trio.sleep(1 / PACKET_RATE)
                bucket.spend(trio.current_time(), 1.0)
            if not self._records.is_relevant(packet) or not _is_near(sender[0], network):
                continue
            if not reads.take(trio.current_time()):
                continue
            match self._records.read(packet):
                case Question(is_for_all) if trio.current_time() - answered_at >= ANSWER_EVERY_S:
                    answered_at = trio.current_time()
                    await trio.sleep(self._rng.uniform(*ANSWER_DELAY_S))
                    answer = self._records.answer_for_all() if is_for_all else self._answer(network)
                    await self._send(channel, network, answer)
                case list(found):
                    for one in found:
                        near = [address for address in one.addresses if is_in(address, network)]
                        if near:
                            self._on_found(one.peer, near, sender[0])

    def _answer(self, network: LocalNetwork, ttl_s: int = 120) -> bytes:
        """Empty if this node has no address in the network."""
        told = self._told(network)
        port = addresses.port_of(told[0]) if told else 0
        return self._records.answer(told, network.ip, port, ttl_s) if told else b""

    async def _send(self, channel: trio.socket.SocketType, network: LocalNetwork, packet: bytes) -> None:
        if packet:
            try:
                await channel.sendto(packet, target(network))
            except OSError as exc:  # (the network went away: ``run`` will see)
                log.debug("mdns_failed", interface=network.interface, error=str(exc))


async def listen(swarm_key: bytes, on_found: FoundPeer, note: Callable[[str, str], None]) -> None:
    """Asks which nodes this machine's private networks have, and announces nothing. on_found, note: see
    ``MulticastDns``. Never returns."""
    rng = random.SystemRandom()
    await MulticastDns(Records(swarm_key, rng), lambda network: [], on_found, note, rng).run()


async def heard_within(seconds: float, swarm_key: bytes) -> tuple[set[bytes], list[str]]:
    """The peers that answer in this machine's private networks, and why there may be none."""
    peers, notes = set[bytes](), dict[str, None]()

    def on_found(peer: bytes, candidates: Sequence[Multiaddr], sender: str) -> None:
        if len(peers) < MAX_HEARD:
            peers.add(peer)

    def note(says: str, fix: str) -> None:
        notes[says] = None

    with trio.move_on_after(seconds):
        await listen(swarm_key, on_found, note)
    return peers, list(notes)


def _is_near(sender: str, network: LocalNetwork) -> bool:
    """Whether a packet came from the network itself, this machine included (RFC 6762, 11)."""
    host = sender.partition("%")[0]
    return host in network or (network.ip.version == 6 and host.startswith("fe80:"))

"""The attackers. Run as a module with a plan in JSON as its argument. It attacks until its standard input ends, and
prints ``in place`` when the attack is complete."""

import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import msgspec
import structlog
import trio

from mycelia.bench.attacks.asking import answer_of, ask_for, random_words
from mycelia.bench.attacks.inventors import made_up
from mycelia.node.network.identity import Identity, new_identity
from mycelia.node.network.libp2p.kademlia.messages import KAD_PROTOCOL
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.libp2p.streams import CONTROL_PROTOCOL
from mycelia.node.network.network import Disconnected, NetworkError, NetworkSettings
from mycelia.proto.digests.digest import SNAPSHOT, pack_entries, root_of, signed_payload
from mycelia.proto.wire.errors import LocalError, MyceliaError
from mycelia.proto.wire.messages import Head, Repair, Sampling

HOST = "127.0.0.2"
AGAIN_S = 0.5
"""Pause before a refused or ended action is tried again."""
AGAIN_RATE = 50.0
"""Tries per second in all: older nodes could be blocked with 13. Many more would measure the machine."""
NUM_CONNECTIONS, NUM_SOCKETS, NUM_HALF_HEADS = 128, 128, 256
NUM_KEYS, STREAMS_A_KEY = 9, 62
NUM_KAD_STREAMS = 100
NUM_SIBYLS, NUM_REFUSED, NUM_SLOW = 60, 24, 4
NUM_TOPICS, TOPICS_AN_RPC = 100_000, 500
NUM_RECORDS, ADDRESSES_A_RECORD = 9, 340_000
NUM_DIGESTS, ENTRIES_A_DIGEST = 64, 16_384
SLOW_GRAMMAR = 'root ::= words | "(" root ")"\nwords ::= [a-zA-Z ,.]+'
"""Within all bounds; its masks take 1.4 ms a token with a vocabulary of 49,152 tokens."""
REFUSED_GRAMMAR = "start: A0\n" + "".join(f"A{i}:A{i + 1} A{i + 1}\n" for i in range(100)) + 'A100:"x"'
"""A Lark grammar that takes as much time as it is given, and then is refused."""


class Plan(msgspec.Struct, frozen=True):
    """One attack and its victims."""

    kind: str
    addresses: list[str]
    """Full multiaddrs of the attacked nodes, for most attacks one."""
    namespace: bytes = b""
    api_port: int = 0
    model: str = ""
    """Name of the other victims' model."""


Attack = Callable[[Plan, trio.Nursery], Awaitable[None]]
"""Returns when the attack is in place; its tasks go on in the nursery."""


async def sockets(plan: Plan, nursery: trio.Nursery) -> None:
    """TCP connections without a handshake."""
    port = int(plan.addresses[0].split("/")[4])
    await _held(nursery, NUM_SOCKETS, partial(_socket, port, b""))


async def half_heads(plan: Plan, nursery: trio.Nursery) -> None:
    """HTTP requests whose head does not end."""
    half = b"GET /api/state HTTP/1.1\r\nHost: x"
    await _held(nursery, NUM_HALF_HEADS, partial(_socket, plan.api_port, half))


async def connections(plan: Plan, nursery: trio.Nursery) -> None:
    """Silent connections, each with its own key."""

    async def connection(in_place: Callable[[], None]) -> None:
        async with stranger(plan) as (network, _):
            in_place()
            async for event in network.events():
                if isinstance(event, Disconnected):
                    return

    await _held(nursery, NUM_CONNECTIONS, connection)


async def streams(plan: Plan, nursery: trio.Nursery) -> None:
    """Open control streams without a message, until the victim accepts no more."""
    await _held(nursery, NUM_KEYS, partial(_streams, plan, CONTROL_PROTOCOL, STREAMS_A_KEY))


async def kad_streams(plan: Plan, nursery: trio.Nursery) -> None:
    """Kademlia streams without a message."""
    await _held(nursery, 2, partial(_streams, plan, KAD_PROTOCOL, NUM_KAD_STREAMS // 2))


async def cells(plan: Plan, nursery: trio.Nursery) -> None:
    """One prompt with the longest allowed answer."""
    sampling = Sampling(max_tokens=131_072, temperature=100.0, top_k=0)
    await _held(nursery, 1, partial(_asking, plan, sampling, 2))


async def sibyls(plan: Plan, nursery: trio.Nursery) -> None:
    """Many keys with a prompt each, again and again."""
    await _held(nursery, NUM_SIBYLS, partial(_asking, plan, Sampling(max_tokens=16), 150))


async def slow_grammars(plan: Plan, nursery: trio.Nursery) -> None:
    """Grammars that take long for each token, and are allowed to."""
    sampling = Sampling(max_tokens=512, temperature=1.0, top_k=0, grammar=SLOW_GRAMMAR, grammar_kind="gbnf")
    await _held(nursery, NUM_SLOW, partial(_asking, plan, sampling, 4))


async def refused_grammars(plan: Plan, nursery: trio.Nursery) -> None:
    """Grammars that are refused after as much time as one may take."""
    sampling = Sampling(max_tokens=4, grammar=REFUSED_GRAMMAR, grammar_kind="lark")
    await _held(nursery, NUM_REFUSED, partial(_asking, plan, sampling, 4))


async def prunes(plan: Plan, nursery: trio.Nursery) -> None:
    """Prunes of gossip topics that no node has, each once."""
    from mycelia.bench.attacks import messages as attackers

    async with stranger(plan) as (network, victim):
        topics = [secrets.token_hex(32) for _ in range(NUM_TOPICS)]
        parts = (attackers.prunes(topics[at : at + TOPICS_AN_RPC]) for at in range(0, NUM_TOPICS, TOPICS_AN_RPC))
        with suppress(Exception):  # (it may be stopped; only what was sent by then counts)
            await attackers.say(network, victim, attackers.GOSSIP_PROTOCOL, parts)


async def provider_records(plan: Plan, nursery: trio.Nursery) -> None:
    """Records with hundreds of thousands of addresses."""
    from mycelia.bench.attacks import messages as attackers

    addresses = attackers.many_addresses(ADDRESSES_A_RECORD)
    for _ in range(NUM_RECORDS):
        async with stranger(plan) as (network, victim):
            record = attackers.add_provider(secrets.token_bytes(32), network.peer_id, addresses)
            with suppress(Exception), trio.move_on_after(10):  # (see above)
                await attackers.say(network, victim, attackers.KAD_PROTOCOL, [record])


async def digests(plan: Plan, nursery: trio.Nursery) -> None:
    """Large digests of owners that do not exist."""
    async with stranger(plan) as (network, victim):
        for _ in range(NUM_DIGESTS):
            entries = {secrets.randbits(64): 1 for _ in range(ENTRIES_A_DIGEST)}
            with suppress(NetworkError):
                await network.send(victim, _snapshot(plan, new_identity(), entries))


async def repairs(plan: Plan, nursery: trio.Nursery) -> None:
    """Heads of owners that do not exist, without their digests: every node asks its peers for them."""

    async def tell(address: str, in_place: Callable[[], None]) -> None:
        async with stranger(plan, address) as (network, victim):
            in_place()
            while True:
                await network.send(victim, made_up(new_identity(), plan.namespace))
                await trio.sleep(1 / 40)

    for address in plan.addresses:
        await _held(nursery, 2, partial(tell, address))


async def relayed_asks(plan: Plan, nursery: trio.Nursery) -> None:
    """Prompts at one node for the model of another one: three keys, forty at once each."""

    async def ask_at_once(in_place: Callable[[], None]) -> None:
        async with stranger(plan) as (network, victim), trio.open_nursery() as asking:
            in_place()
            for _ in range(40):
                ask = ask_for(random_words(20), Sampling(max_tokens=512), plan.model)
                asking.start_soon(answer_of, network, victim, ask)

    await _held(nursery, 3, ask_at_once)


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        *(sockets, connections, streams, kad_streams, half_heads),
        *(cells, sibyls, slow_grammars, refused_grammars),
        *(prunes, provider_records, digests, repairs, relayed_asks),
    )
}


@asynccontextmanager
async def stranger(plan: Plan, address: str = "") -> AsyncIterator[tuple[Libp2pNetwork, bytes]]:
    """A peer with a fresh key, connected to an attacked node. Raises NetworkError."""
    settings = NetworkSettings(identity=new_identity(), overlay=False, dial_host=HOST)
    async with open_network(settings) as network:
        yield network, await network.connect(address or plan.addresses[0])


async def _held(nursery: trio.Nursery, count: int, hold: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
    """Runs ``hold`` ``count`` times at once, again each time it ends. Returns when all were in place or refused."""
    num_left, all_there, again = count, trio.Event(), trio.Lock()

    async def keep() -> None:
        is_counted = False

        def in_place() -> None:
            nonlocal is_counted, num_left
            if not is_counted:
                is_counted = True
                num_left -= 1
                if not num_left:
                    all_there.set()

        while True:
            with suppress(NetworkError, MyceliaError, OSError, trio.BrokenResourceError):
                await hold(in_place)
            in_place()
            await trio.sleep(AGAIN_S)
            async with again:
                await trio.sleep(1 / AGAIN_RATE)

    for _ in range(count):
        nursery.start_soon(keep)
    with trio.move_on_after(30):
        await all_there.wait()


async def _socket(port: int, said: bytes, in_place: Callable[[], None]) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port, local_address=HOST) as stream:
        if said:
            await stream.send_all(said)
        in_place()
        while await stream.receive_some():
            pass


async def _streams(plan: Plan, protocol: str, count: int, in_place: Callable[[], None]) -> None:
    async with stranger(plan) as (network, victim):
        opened = []
        for _ in range(count):
            with trio.move_on_after(1), suppress(NetworkError):
                opened.append(await network.open(victim, protocol))
        in_place()
        for stream in opened:  # (the victim may end them)
            with suppress(NetworkError, MyceliaError):
                await stream.receive()


async def _asking(plan: Plan, sampling: Sampling, num_words: int, in_place: Callable[[], None]) -> None:
    async with stranger(plan) as (network, victim):
        in_place()
        while network.remote_address(victim):
            await answer_of(network, victim, ask_for(random_words(num_words), sampling, plan.model))
            await trio.sleep(AGAIN_S)


def _snapshot(plan: Plan, owner: Identity, entries: dict[int, int]) -> Repair:
    now_ms = round(1000 * time.time())
    unsigned = Head(
        owner=owner.peer_id,
        namespace=plan.namespace,
        epoch=now_ms,
        seq=1,
        count=len(entries),
        root=root_of(entries),
        issued_at=now_ms,
        signature=bytes(64),
    )
    head = msgspec.structs.replace(unsigned, signature=owner.sign(signed_payload(unsigned)))
    return Repair(head=head, mode=SNAPSHOT, from_seq=0, upserts=pack_entries(entries), removes=b"")


async def main(plan: Plan) -> None:
    if not all(address.startswith("/ip4/127.") for address in plan.addresses):
        raise LocalError("only nodes on this machine are attacked")
    async with trio.open_nursery() as nursery:
        await ATTACKS[plan.kind](plan, nursery)
        sys.stdout.write("in place\n")
        sys.stdout.flush()
        async with trio.lowlevel.FdStream(0) as stdin:
            while await stdin.receive_some():
                pass
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    trio.run(main, msgspec.json.decode(sys.argv[1], type=Plan))

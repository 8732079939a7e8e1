"""Hostile identify messages: names and addresses stay within bounds, and no forbidden ones are kept."""

import random

from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr

from mycelia.node.network import addresses
from mycelia.node.network.libp2p.identify import (
    MAX_ADDRESSES,
    MAX_MESSAGE_BYTES,
    MAX_PROTOCOL_CHARS,
    MAX_PROTOCOLS,
    identified,
)
from mycelia.node.network.libp2p.observed import Observed
from mycelia.proto.wire.errors import RemoteError
from tests.fuzz.mutate import splice, spoil_bytes

_RELAY = "12D3KooWAfZBCCDd6BbP7yJHgFv6FAzLRyDjVYDd9K7PhFBgnQ3L"
TOLD = [
    Multiaddr(text).to_bytes()
    for text in (
        "/ip4/8.8.8.8/tcp/4001",
        "/ip4/127.0.0.1/tcp/6379",
        "/ip4/169.254.169.254/tcp/80",
        "/ip4/192.168.0.1/tcp/1",
        "/ip6/2606:4700::1/tcp/1",
        "/ip6/::ffff:10.0.0.1/tcp/1",
        "/ip6/fe80::1/tcp/1",
        "/ip4/8.8.8.8/udp/1/quic-v1",
        "/dns4/internal.example/tcp/1",
        f"/ip4/8.8.8.8/tcp/1/p2p/{_RELAY}",
        f"/ip4/10.0.0.1/tcp/1/p2p/{_RELAY}/p2p-circuit",
        f"/ip4/8.8.8.8/tcp/1/p2p/{_RELAY}/p2p-circuit/p2p/{_RELAY}",
        f"/dns6/x/tcp/1/p2p/{_RELAY}/p2p-circuit",
    )
]
_TELLERS = (
    "",
    "/ip4/9.9.9.9/tcp/1",
    "/ip4/10.1.1.1/tcp/1",
    "/ip4/127.0.0.1/tcp/1",
    f"/ip4/10.1.1.1/tcp/1/p2p/{_RELAY}/p2p-circuit",
)


class IdentifyMessages:
    """The message, and the address of the connection that it came on."""

    name = "identify"
    weight = 0.3

    def make(self, rng: random.Random) -> tuple[bytes, str]:
        told = [rng.choice(TOLD) for _ in range(rng.choice((0, 1, 4, 40)))]
        told = [spoil_bytes(one, rng) if rng.random() < 0.3 else one for one in told]
        if rng.random() < 0.3:
            told.append(splice(rng.choice(TOLD), rng.choice(TOLD), rng))
        message = Identify(
            protocol_version="ipfs/0.1.0",
            agent_version="a" * rng.choice((0, 10, 2_000)),
            public_key=rng.randbytes(36),
            listen_addrs=told,
            observed_addr=rng.choice(TOLD),
            protocols=["/" + "p" * rng.choice((0, 5, 300)) for _ in range(rng.choice((0, 3, 200)))],
        )
        data = message.SerializeToString()
        if rng.random() < 0.5:
            data = spoil_bytes(data, rng)
        return data, rng.choice(_TELLERS)

    def check(self, item: tuple[bytes, str]) -> bool:
        data, teller = item
        try:
            said = identified(data, teller)
        except RemoteError:
            return False
        assert len(data) <= MAX_MESSAGE_BYTES and len(said.addresses) <= MAX_ADDRESSES
        assert len(said.protocols) <= MAX_PROTOCOLS
        assert all(len(name) <= MAX_PROTOCOL_CHARS for name in said.protocols)
        Observed().note("subnet", *said.observed, 7117)
        assert all(addresses.is_tellable(address, teller) for address in said.addresses)
        assert all(Multiaddr(str(address)) == address for address in said.addresses)
        return True

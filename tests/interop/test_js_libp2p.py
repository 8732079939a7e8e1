"""Nodes and peers on js-libp2p: the libraries understand each other, and what JavaScript does from
``proto/interoperability.md`` alone is right. ``make interop`` installs what this needs."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mycelia.node.app import Node
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.network import NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.node.views.state import PeerRow
from mycelia.proto.admission.trust import Offender
from mycelia.proto.wire.messages import Answered, Ask, Route, Sampling, Text
from tests.interop.js_peer import JsPeer, js_peer, missing
from tests.node.network.libp2p.network_helpers import HIDDEN, eventually, node

pytestmark = [pytest.mark.interop, pytest.mark.skipif(bool(missing()), reason=missing())]

LISTEN = ["/ip4/127.0.0.1/tcp/0"]
PATIENCE_S = 90
PSK = bytes(range(32))
PSK_TEXT = f"/key/swarm/psk/1.0.0/\n/base16/\n{PSK.hex()}\n"
SWARMS = [pytest.param(b"", None, id="public"), pytest.param(PSK, PSK_TEXT, id="private")]
PROMPT = "The same beginning of sixty-four letters, which is one whole block. " * 2


@asynccontextmanager
async def running(
    settings: NetworkSettings, engine: FakeSettings | None = None
) -> AsyncIterator[tuple[Node, Libp2pNetwork]]:
    """A node on loopback, with the model ``fake``."""
    with trio.fail_after(PATIENCE_S):
        async with open_network(settings) as network, trio.open_nursery() as nursery:
            one = Node(settings.identity, FakeEngine(engine), network, 1)
            await nursery.start(one.run)
            yield one, network
            nursery.cancel_scope.cancel()


def text_of(frames: list[dict[str, object]]) -> str:
    """The text of an answer, after its form was checked: route, begun, text-frames, answered."""
    kinds = [frame["0"] for frame in frames]
    assert kinds[:2] == [14, 19] and set(kinds[2:-1]) == {15} and kinds[-1] == 16, frames
    return "".join(str(frame["1"]) for frame in frames if frame["0"] == 15)


async def test_the_vectors_are_what_javascript_makes_of_the_document() -> None:
    with trio.fail_after(PATIENCE_S):
        async with js_peer() as js:
            assert await js.do("vectors") == []


async def test_identify_and_ping() -> None:
    async with running(node()) as (_, network), js_peer() as js:
        seen = await js.do("dial", network.addresses()[0])
        assert seen["peer"] == peer_text(network.peer_id)
        assert {"/mycelia/ask/1", "/mycelia/kad/1.0.0", "/meshsub/1.1.0"} <= set(seen["protocols"])
        assert network.addresses()[0].partition("/p2p/")[0] in seen["listenAddrs"]
        assert seen["observedAddr"].startswith("/ip4/127.0.0.1/tcp/")
        assert 0 <= await js.do("ping", network.addresses()[0]) < 10_000


async def test_a_light_client_is_answered() -> None:
    async with running(node()) as (one, network), js_peer() as js:
        (frames,) = await js.do("ask", {"address": network.addresses()[0], "text": "hello", "tokens": 8})
        assert len(text_of(frames)) == frames[-1]["3"]["3"]  # (a token of this model is a byte)
        assert not offences(one)


async def test_a_conversation_goes_on_at_another_node_with_the_same_text() -> None:
    async with running(node()) as (_, first), running(node()) as (_, second), js_peer() as js:
        asked = {"messages": [["system", "Be brief."], ["user", "Hello?"]], "tokens": 20}
        (whole,) = await js.do("ask", {**asked, "address": first.addresses()[0]})
        tokens = "".join(frame["3"] for frame in whole if frame["0"] == 15)
        begun = {"answered": tokens[: 8 * 3], "namespace": whole[0]["5"]}  # (a token has 8 hexadecimal digits)
        (rest,) = await js.do("ask", {**asked, **begun, "address": second.addresses()[0]})
        assert text_of(whole)[3:] == text_of(rest)


async def test_a_long_prompt_arrives_and_streams_leave_nothing_behind() -> None:
    engine = FakeSettings(cells=1 << 20)
    async with running(node(), engine) as (one, network), js_peer() as js:
        asked = {"address": network.addresses()[0], "tokens": 2}
        (frames,) = await js.do("ask", {**asked, "text": "x" * 400_000})
        assert frames[-1]["3"]["1"] == 400_000
        assert await js.do("askInTurn", {**asked, "text": "hello", "count": 200}) == 200
        await eventually(lambda: not network.num_exchanges())
        assert not offences(one)


@pytest.mark.parametrize("resets", [False, True])
async def test_a_client_that_leaves_cancels_its_answer(resets: bool) -> None:
    slow = FakeSettings(decode_rate=50.0)
    async with running(node(), slow) as (_, network), js_peer() as js:
        asked = {"address": network.addresses()[0], "text": "hello", "tokens": 100_000, "resets": resets}
        await js.do("leave", asked)
        await eventually(lambda: not network.num_exchanges())


async def test_the_integer_0_for_a_float_is_answered_and_costs_nothing() -> None:
    async with running(node()) as (one, network), js_peer() as js:
        for _ in range(12):
            (failed,) = await js.do("askWrongly", {"address": network.addresses()[0], "text": "hello"})
            assert failed["0"] == 12 and failed["1"] == "bad_request" and "f90000" in failed["2"]
        (frames,) = await js.do("ask", {"address": network.addresses()[0], "text": "hello"})
        assert text_of(frames) and not offences(one)


async def test_many_streams_and_those_too_many_are_reset_and_cost_nothing() -> None:
    slow = FakeSettings(slots=64, max_waiting=256, decode_rate=20.0)
    async with running(node(), slow) as (one, network), js_peer() as js:
        asked = {"address": network.addresses()[0], "text": "hello", "tokens": 40}
        first = await js.do("ask", {**asked, "count": 60})
        (text,) = set(map(text_of, first))
        assert len(first) == 60
        both = await js.do("ask", {**asked, "count": 80})
        answered = [result for result in both if not isinstance(result, str)]
        assert 60 <= len(answered) <= 64, both
        assert {text_of(frames) for frames in answered} == {text}
        (again,) = await js.do("ask", asked)
        assert text_of(again) == text and not offences(one)


@pytest.mark.parametrize(("key", "psk"), SWARMS)
async def test_a_js_peer_is_dialled_through_its_place_at_a_node(key: bytes, psk: str | None) -> None:
    async with running(node(swarm_key=key)) as (_, network), js_peer(psk=psk) as client:
        relay = network.addresses()[0]
        async with js_peer(psk=psk, listen=[f"{relay}/p2p-circuit"]) as hidden:
            address = f"{relay}/p2p-circuit/p2p/{hidden.id}"
            await hidden.until("addresses", lambda told: address in told)
            seen = await client.do("dial", address)
            assert seen["peer"] == hidden.id and "/p2p-circuit" in seen["address"]
            assert await client.do("echo", {"address": address, "size": 1 << 20})
            assert network.relayed().circuits == 1


@pytest.mark.parametrize(("key", "psk"), SWARMS)
async def test_a_node_is_dialled_through_its_place_at_a_js_relay(key: bytes, psk: str | None) -> None:
    async with (
        js_peer(psk=psk, listen=LISTEN, relays=True) as relay,
        running(node(swarm_key=key, listen=())) as (_, hidden),
        running(node(swarm_key=key)) as (_, other),
        js_peer(psk=psk) as client,
    ):
        at = await relay.address()
        await hidden.connect(at)
        hidden.set_reachability(HIDDEN)
        await eventually(hidden.addresses)
        address = f"{at}/p2p-circuit/p2p/{peer_text(hidden.peer_id)}"
        assert hidden.addresses() == [address]
        assert await other.connect(address) == hidden.peer_id
        assert other.remote_address(hidden.peer_id).endswith("/p2p-circuit")
        (frames,) = await client.do("ask", {"address": address, "text": "hello"})
        assert text_of(frames)


async def test_js_looks_a_model_up_in_the_dht() -> None:
    async with running(node()) as (_, first), js_peer(kad="client") as js:
        settings = node(bootstrap=(first.addresses()[0],))
        async with running(settings) as (_, second):
            await js.do("dial", first.addresses()[0])
            wanted = {peer_text(first.peer_id), peer_text(second.peer_id)}
            await js.until("findProviders", lambda found: wanted <= {provider["peer"] for provider in found})


async def test_a_js_server_keeps_a_nodes_record() -> None:
    async with js_peer(listen=LISTEN, kad="server") as admin, js_peer(kad="client") as js:
        at = await admin.address()
        async with running(node(bootstrap=(at,))) as (_, network):
            await js.do("dial", at)
            wanted = peer_text(network.peer_id)
            await js.until("findProviders", lambda found: wanted in {provider["peer"] for provider in found})


async def test_a_private_swarm_in_both_directions() -> None:
    async with (
        running(node(swarm_key=PSK)) as (_, network),
        js_peer(listen=LISTEN, psk=PSK_TEXT) as member,
        js_peer(psk=PSK_TEXT) as other,
        js_peer() as stranger,
    ):
        (frames,) = await other.do("ask", {"address": network.addresses()[0], "text": "hello"})
        assert text_of(frames)
        assert peer_text(await network.connect(await member.address())) == member.id
        (refused,) = await stranger.do("ask", {"address": network.addresses()[0], "text": "hello"})
        assert isinstance(refused, str)


async def test_js_verifies_the_digests_that_are_gossiped() -> None:
    async with running(node()) as (_, network), js_peer(gossip=True) as js:
        await js.do("follow")
        await js.do("dial", network.addresses()[0])
        await js.until("mesh", lambda mesh: peer_text(network.peer_id) in mesh)
        asked = {"address": network.addresses()[0], "text": PROMPT, "salt": "public"}
        (frames,) = await js.do("ask", asked)
        assert text_of(frames)
        (block, *_) = await js.do("blocks", PROMPT)
        found = await js.until("digests", lambda found: any(block in digest["entries"] for digest in found))
        for digest in found:
            assert digest["author"] == peer_text(network.peer_id) and digest["isOwn"], digest
            assert digest["isSigned"] and not digest["isSignedIfChanged"], digest
            assert digest["hasRoot"], digest


async def test_js_passes_gossip_on() -> None:
    async with running(node()) as (one, first), running(node()) as (other, second), js_peer(gossip=True) as js:
        await js.do("follow")
        for network in (first, second):
            await js.do("dial", network.addresses()[0])
        await js.until("mesh", lambda mesh: len(mesh) == 2)
        await js.do("ask", {"address": first.addresses()[0], "text": PROMPT, "salt": "public"})
        namespace = bytes.fromhex(one.state().namespace)
        await eventually(lambda: other.overlay.estimates.version(first.peer_id, namespace))
        assert first.peers() == second.peers()  # (both know js alone)
        assert not offences(one) and not offences(other)


async def test_a_js_node_is_found_and_chosen_and_answers() -> None:
    """It is announced in the DHT by its own library, found there by a node that was never told of it, and chosen."""
    slow = FakeSettings(prefill_rate=100.0)
    async with running(node(), slow) as (_, first), js_peer(listen=LISTEN, kad="server", gossip=True) as js:
        await js.do("serve")
        await js.do("follow")
        await js.do("dial", first.addresses()[0])
        await js.do("provide")
        async with running(node(bootstrap=(first.addresses()[0],)), slow) as (entry, network):
            await eventually(lambda: js.id in map(peer_text, network.peers()))
            await eventually(lambda: any(row.prefill_rate for row in js_rows(entry, js)))
            await js.until("mesh", lambda mesh: len(mesh) == 2)
            await js.do("hold", PROMPT)
            await eventually(lambda: any(row.digest_blocks for row in js_rows(entry, js)))
            route, text, answered = await asked(entry, PROMPT)
            assert peer_text(answered.served_by) == js.id and text == "js!"
            (chosen,) = [one for one in route.candidates if peer_text(one.peer) == js.id]
            assert chosen.matched_tokens == 64 * (len(PROMPT) // 64)
            assert not offences(entry)
        assert (await js.do("served"))["answers"] == 1


def offences(one: Node) -> list[Offender]:
    return one.overlay.offenders(time.time())


def js_rows(one: Node, js: JsPeer) -> list[PeerRow]:
    return [row for row in one.state().peers if row.peer == js.id]


async def asked(one: Node, text: str) -> tuple[Route, str, Answered]:
    ask = Ask(request_id=bytes(16), model="", messages=(), text=text, sampling=Sampling(max_tokens=8))
    async with one.ask(ask) as stream:
        frames = [frame async for frame in stream]
    route, answered = frames[0], frames[-1]
    assert isinstance(route, Route) and isinstance(answered, Answered), frames
    return route, "".join(frame.text for frame in frames if isinstance(frame, Text)), answered

"""A paused node answers its own prompts, and others go elsewhere."""

import trio

from mycelia.node.requests.entry import ASK
from mycelia.proto.wire.messages import Answered, Failed
from tests.node.members import LONG, an_ask, frames_of, open_members


async def test_a_model_that_only_a_paused_node_serves_is_refused_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with open_members(2, models=["here", "there"], prefill_rate=100.0, decode_rate=100.0) as (_, (one, paused)):
        await one.node.models()
        paused.node.pause(True)
        began = trio.current_time()
        last = (await frames_of(one, an_ask("Hi", model="there")))[-1]
        assert isinstance(last, Failed) and last.retryable and "the node is paused" in last.message
        assert trio.current_time() - began < 1


async def test_what_is_given_and_received_counts_on_both_sides(autojump_clock: trio.abc.Clock) -> None:
    async with open_members(2, prefill_rate=100.0, decode_rate=100.0) as (_, (entry, giver)):
        await frames_of(giver, an_ask(LONG))
        await trio.sleep(2)
        await frames_of(entry, an_ask(LONG))
        given, received = (member.node.requests.totals.shared for member in (giver, entry))
        assert (given.given_requests, given.received_requests) == (1, 0)
        assert (received.given_requests, received.received_requests) == (0, 1)
        assert 8 <= given.given_tokens == received.received_tokens < 100, "without what was cached"
        assert given.given_s > 0
        await frames_of(entry, an_ask("of a light client"), b"x" * 38)
        assert entry.node.requests.totals.shared.given_requests + giver.node.requests.totals.shared.given_requests == 2
        assert entry.node.requests.totals.shared.received_requests == 1


OWN = "a prompt of the paused node's own clients, " * 9


async def test_a_paused_node_is_avoided_and_still_answers_its_own(autojump_clock: trio.abc.Clock) -> None:
    async with open_members(2, prefill_rate=100.0, decode_rate=100.0) as (_, (entry, paused)):

        async def served(ask_at: object, text: str) -> bytes:
            last = (await frames_of(ask_at, an_ask(text)))[-1]  # type: ignore[arg-type]
            assert isinstance(last, Answered)
            return last.served_by

        assert await served(paused, LONG) == paused.peer
        await trio.sleep(2)  # (until its digest is there)
        assert await served(entry, LONG) == paused.peer, "its cache is warm"
        paused.node.pause(True)
        await trio.sleep(1)
        assert await served(entry, LONG + "a") == entry.peer
        assert await served(paused, LONG + "b") in (paused.peer, entry.peer)
        assert await served(paused, OWN) == paused.peer
        stream = await entry.network.open(paused.peer, ASK)
        await stream.send(an_ask("of a light client"))
        refused = await stream.receive()
        await stream.aclose()
        assert isinstance(refused, Failed) and refused.code == "leaving" and "paused" in refused.message
        await trio.sleep(3600)
        paused.node.pause(True)  # (as it is repeated)
        await trio.sleep(1)
        assert await served(entry, LONG + "c") == entry.peer
        paused.node.pause(False)
        await trio.sleep(1)
        assert await served(entry, OWN) == paused.peer

"""Whole nodes over the in-memory network with fake engines: the real overlay, driver, entry and serving code."""

import msgspec
import pytest
import trio

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.errors import BusyError, no_such_model
from mycelia.node.network.identity import new_identity
from mycelia.node.network.network import MessageStream, NetworkSettings
from mycelia.node.requests.entry import ASK, GENERATE, Entry
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.salts import Salts
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.views.frames import TextView, frame_view
from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.config import CellConfig, OverlayConfig
from mycelia.proto.wire.blocks import STRIDE, pack_tokens
from mycelia.proto.wire.messages import (
    Accepted,
    Answered,
    Ask,
    Begun,
    EntryFrame,
    Failed,
    Generate,
    Route,
    Sampling,
    Text,
    Tokens,
)
from tests.node.members import LONG, an_ask, frames_of, open_members, text_of


async def test_a_prompt_is_answered_with_a_route_text_and_an_end(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        frames = await frames_of(one, an_ask("hello"))
    assert isinstance(frames[0], Route) and frames[0].chosen == one.peer
    answered = frames[-1]
    assert isinstance(answered, Answered) and answered.usage.completion_tokens == len(text_of(frames))
    assert answered.usage.prompt_tokens == frames[0].prompt_tokens


async def test_the_second_prompt_goes_to_the_node_that_holds_the_prefix(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(3) as (_, members):
        first = await frames_of(members[0], an_ask(LONG + "one"))
        await trio.sleep(3)
        second = await frames_of(members[1], an_ask(LONG + "two"))
    assert isinstance(first[-1], Answered) and isinstance(second[-1], Answered)
    assert second[-1].served_by == first[-1].served_by == members[0].peer
    assert second[-1].usage.cached_tokens >= len(LONG) - STRIDE


async def test_the_answer_does_not_depend_on_who_serves_it(autojump_clock: trio.testing.MockClock) -> None:
    """Stale or wrong estimates cost time, never the answer."""
    async with open_members(2) as (_, (one, two)):
        local = await frames_of(one, an_ask(LONG))
        await trio.sleep(3)
        remote = await frames_of(two, an_ask(LONG))
        one.engine.crash()
        stale = await frames_of(two, an_ask(LONG))
    assert text_of(local) == text_of(remote) == text_of(stale)


async def test_a_prompt_for_another_model_enters_at_a_node_that_serves_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(3, models=("small", "large", "large")) as (swarm, members):
        small, large = members[0], members[1:]
        rows = await small.node.models()
        frames = await frames_of(small, an_ask(LONG, model="large"))
        own = await frames_of(small, an_ask(LONG, model="small"))
        unknown = await frames_of(small, an_ask(LONG, model="none"))
        for member in large:
            swarm.cut(member.peer)
        lost = await frames_of(small, an_ask(LONG, model="large"))
    assert [(row.model, row.nodes) for row in rows] == [("small", 1), ("large", 2)] and rows[1].context_tokens
    assert [type(frame) for frame in frames][:2] == [Route, Begun]
    assert isinstance(frames[-1], Answered) and frames[-1].served_by in {member.peer for member in large}
    assert isinstance(own[-1], Answered) and own[-1].served_by == small.peer
    assert isinstance(unknown[-1], Failed) and unknown[-1].code == "unknown_model"
    assert isinstance(lost[-1], Failed)


async def test_a_name_of_the_catalogue_is_known_at_every_node(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, models=("smollm2", "qwen3-4b-q4_k_m")) as (_, (one, two)):
        for asked in (one, two):
            frames = await frames_of(asked, an_ask(LONG, model="qwen3-4b"))
            assert isinstance(frames[-1], Answered) and frames[-1].served_by == two.peer
        unknown = await frames_of(one, an_ask(LONG, model="qwen3-8b"))
    assert isinstance(unknown[-1], Failed) and "qwen3-8b" in unknown[-1].message


def test_a_model_that_nobody_serves_is_not_named_as_served() -> None:
    message = no_such_model("gone", ["a", "gone", *"bcdef"])
    assert "The model `gone` does not exist" in message and message.endswith("Served: a, b, c, d, e, ....")


async def test_leaving_early_cancels_an_answer_of_another_model(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, models=("small", "large"), decode_rate=10.0) as (_, (small, large)):
        with trio.fail_after(300):
            async with small.node.ask(an_ask(LONG, max_tokens=1_000, model="large")) as frames:
                async for frame in frames:
                    if isinstance(frame, Text):
                        break
            await trio.sleep(1)
            assert not large.engine.vitals().active_requests


async def test_an_answer_of_another_model_has_a_deadline_too(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, models=("small", "large"), decode_rate=10.0) as (_, (small, _)):
        with trio.fail_after(300):
            async with small.node.ask(an_ask(LONG, max_tokens=1_000, model="large"), 2.0) as stream:
                frames = [frame async for frame in stream]
    assert isinstance(frames[-1], Failed) and frames[-1].code == "deadline"


async def test_an_engine_that_dies_mid_answer_costs_no_token(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        expected = text_of(await frames_of(two, an_ask(LONG, max_tokens=12)))
        one.engine.fail_next(after_tokens=5)
        two.engine.crash()
        await trio.sleep(3)
        frames = await frames_of(one, an_ask(LONG, max_tokens=12))
    answered = frames[-1]
    assert isinstance(answered, Answered), answered
    assert text_of(frames) == expected
    assert answered.resumed == 1 and answered.served_by == two.peer
    assert [type(frame) for frame in frames].count(Route) == 2


async def test_a_lone_nodes_engine_dies_mid_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        expected = text_of(await frames_of(one, an_ask(LONG, max_tokens=12)))
        one.engine.fail_next(after_tokens=5)
        one.engine.fail_next(after_tokens=0)
        frames = await frames_of(one, an_ask(LONG, max_tokens=12))
    assert isinstance(frames[-1], Answered) and frames[-1].resumed == 2
    assert text_of(frames) == expected


async def test_a_node_that_vanishes_mid_answer_costs_no_token(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, decode_rate=10.0) as (swarm, (one, two)):
        expected = text_of(await frames_of(two, an_ask(LONG, max_tokens=30)))
        await trio.sleep(3)
        with trio.fail_after(300):
            async with one.node.ask(an_ask(LONG, max_tokens=30)) as stream:
                frames: list[EntryFrame] = []
                async for frame in stream:
                    frames.append(frame)
                    if isinstance(frame, Text) and len(text_of(frames)) >= 5 and not swarm.is_cut(two.peer):
                        swarm.cut(two.peer)
    answered = frames[-1]
    assert isinstance(answered, Answered), answered
    assert isinstance(frames[0], Route) and frames[0].chosen == two.peer
    assert text_of(frames) == expected
    assert answered.served_by == one.peer and answered.resumed == 1


@pytest.mark.parametrize("num_tokens", [0, 3], ids=["before the first token", "after some"])
async def test_a_node_that_begins_and_falls_silent_is_given_up_by_its_own_rates(
    autojump_clock: trio.testing.MockClock, num_tokens: int
) -> None:
    async with open_members(2) as (_, (one, two)):
        expected = text_of(await frames_of(two, an_ask(LONG, max_tokens=12)))
        await trio.sleep(3)

        async def fall_silent(stream: MessageStream) -> None:
            generate = await stream.receive()
            assert isinstance(generate, Generate)
            vitals = msgspec.structs.replace(two.engine.vitals(), prefill_rate=1_000, decode_rate=20)
            await stream.send(Accepted(cached_tokens=256, vitals=vitals))
            if num_tokens:
                text = expected[:num_tokens].encode()
                await stream.send(Tokens(position=0, tokens=pack_tokens(list(text)), text=text))
            await trio.sleep_forever()

        two.network.serve(GENERATE, fall_silent)
        began = trio.current_time()
        frames = await frames_of(one, an_ask(LONG, max_tokens=12))
        took_s = trio.current_time() - began
        assert (2 if num_tokens else 5) < took_s < 10, "of virtual time; 120 s for a node that tells no rates"
    answered = frames[-1]
    assert isinstance(frames[0], Route) and frames[0].chosen == two.peer
    assert isinstance(answered, Answered) and answered.served_by == one.peer
    assert text_of(frames) == expected and answered.resumed == (1 if num_tokens else 0)


async def test_leaving_early_cancels_where_it_is_served(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, decode_rate=10.0) as (_, (one, two)):
        await frames_of(two, an_ask(LONG, max_tokens=2))
        await trio.sleep(3)
        async with one.node.ask(an_ask(LONG, max_tokens=5_000)) as frames:
            async for frame in frames:
                if isinstance(frame, Text):
                    break
        await trio.sleep(1)
        assert two.engine.num_cancelled == 1
        assert two.node.state().active_requests == 0


@pytest.mark.parametrize("holder", [0, 1], ids=["here", "elsewhere"])
async def test_a_deadline_ends_the_request_where_it_is_served(
    holder: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_members(2, decode_rate=10.0) as (_, members):
        await frames_of(members[holder], an_ask(LONG, max_tokens=2))
        await trio.sleep(3)
        began = trio.current_time()
        async with members[0].node.ask(an_ask(LONG, max_tokens=5_000), 2.0) as stream:
            frames = [frame async for frame in stream]
        route, last = frames[0], frames[-1]
        assert trio.current_time() - began == pytest.approx(2.0, abs=0.1)
        assert isinstance(route, Route) and route.chosen == members[holder].peer
        assert isinstance(last, Failed) and (last.code, last.retryable) == ("deadline", False)
        assert len(text_of(frames)) >= 10
        await trio.sleep(1)
        assert members[holder].node.state().active_requests == 0
        assert not members[0].node.entry.num_running
        members[0].node.overlay.check_invariants()


async def test_a_deadline_that_is_kept_or_passes_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        async with one.node.ask(an_ask("hello"), 100.0) as stream:
            assert isinstance([frame async for frame in stream][-1], Answered)
        async with one.node.ask(an_ask("hello"), 0.0) as stream:
            last = [frame async for frame in stream][-1]
        assert isinstance(last, Failed) and last.code == "deadline"
        await trio.sleep(200)  # of virtual time: nothing happens late


class SlowReader(FakeEngine):
    """An engine that never tokenizes a conversation."""

    async def tokenize_chat(self, *_: object, **__: object) -> list[int]:
        await trio.sleep_forever()
        raise AssertionError


async def test_a_deadline_passes_before_the_prompt_is_read(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    entry = Entry(OwnModels(SlowReader()), None, lambda event: None, lambda *_: 1.0, RequestLog(), Salts(bytes), str)  # type: ignore[arg-type]
    await nursery.start(entry.run)
    with trio.fail_after(10):
        async with entry.ask(an_ask("hello"), 2.0) as stream:
            frames = [frame async for frame in stream]
    assert trio.current_time() == pytest.approx(2.0)
    assert isinstance(frames[0], Failed) and frames[0].code == "deadline" and len(frames) == 1


class BusyReader(FakeEngine):
    """An engine with too many texts waiting."""

    async def tokenize_chat(self, *_: object, **__: object) -> list[int]:
        raise BusyError("too many texts wait to be read", 1.5)


async def test_a_prompt_that_there_is_no_time_to_read_is_refused_with_a_time() -> None:
    entry = Entry(OwnModels(BusyReader()), None, lambda event: None, lambda *_: 1.0, RequestLog(), Salts(bytes), str)  # type: ignore[arg-type]
    async with entry.ask(an_ask("hello")) as stream:
        (failed,) = [frame async for frame in stream]
    assert isinstance(failed, Failed) and failed.code == OVERLOADED
    assert failed.retryable and failed.retry_after_ms == 1_500


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (msgspec.structs.replace(an_ask(""), messages=()), "bad_request"),
        (an_ask("hello", model="other"), "unknown_model"),
        (an_ask("x" * 100_000), "too_long"),
    ],
    ids=["empty", "unknown model", "too long"],
)
async def test_refusals_are_frames(autojump_clock: trio.testing.MockClock, ask: Ask, code: str) -> None:
    async with open_members(1) as (_, (one,)):
        (failed,) = await frames_of(one, ask)
    assert isinstance(failed, Failed) and failed.code == code


async def test_a_light_client_asks_through_a_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (swarm, (one, _)):
        async with swarm.open_network(NetworkSettings(identity=new_identity(), overlay=False)) as client:
            swarm.link(client.peer_id, one.peer)
            stream = await client.open(one.peer, ASK)
            await stream.send(an_ask("hello"))
            frames = [await stream.receive()]
            while not isinstance(frames[-1], Answered | Failed):
                frames.append(await stream.receive())
            await stream.aclose()
        assert isinstance(frames[-1], Answered)
        assert len(one.node.state().peers) == 1, "a client without a hello is no node"


async def test_a_request_of_another_namespace_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        stream = await one.network.open(two.peer, GENERATE)
        await stream.send(
            Generate(
                request_id=bytes(16),
                namespace=b"other".ljust(16),
                prompt=b"1234",
                sampling=Sampling(max_tokens=1),
                promised_tokens=0,
            )
        )
        failed = await stream.receive()
        assert isinstance(failed, Failed) and failed.code == "unknown_model"


async def test_a_stream_that_opens_with_the_wrong_message_is_reset(autojump_clock: trio.testing.MockClock) -> None:
    from mycelia.node.network.network import NetworkError

    async with open_members(2) as (_, (one, two)):
        stream = await one.network.open(two.peer, GENERATE)
        await stream.send(Accepted(cached_tokens=0, vitals=one.engine.vitals()))
        with pytest.raises(NetworkError):
            await stream.receive()
        frames = await frames_of(one, an_ask("still there"))
        assert isinstance(frames[-1], Answered)


async def test_stop_strings_and_logprobs_reach_the_client_also_across_a_loss(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(2) as (_, (one, two)):
        whole = text_of(await frames_of(two, an_ask(LONG, max_tokens=30)))
        one.engine.fail_next(after_tokens=len(whole) // 2 + 1)
        two.engine.crash()
        stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
        ask = an_ask(LONG, max_tokens=30)
        ask = msgspec.structs.replace(ask, sampling=Sampling(max_tokens=30, stop=(stop,), logprobs=2))
        frames = await frames_of(one, ask)
    answered = frames[-1]
    assert isinstance(answered, Answered) and answered.reason == "stop" and answered.resumed == 1
    assert text_of(frames) == whole[: whole.index(stop)]
    entries = [entry for frame in frames if isinstance(frame, Text) for entry in frame.logprobs]
    assert len(entries) == answered.usage.completion_tokens
    assert b"".join(entry.chosen.text for entry in entries).startswith(text_of(frames).encode() + stop.encode())
    assert all(len(entry.top) == 2 for entry in entries)
    views = [frame_view(frame) for frame in frames]
    assert next(view.logprobs[0].text for view in views if isinstance(view, TextView)) == whole[0]
    assert b"logprobs" not in msgspec.json.encode(frame_view(Text(text="x")))


async def test_options_that_no_peer_would_accept_end_at_the_entry(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (_, (one,)):
        ask = msgspec.structs.replace(an_ask("hello"), sampling=Sampling(max_tokens=4, stop=("x" * 10_000,)))
        (failed,) = await frames_of(one, ask)
    assert isinstance(failed, Failed) and failed.code == "bad_request" and failed.message.startswith("stop: ")
    assert not one.engine.requests


async def test_a_swarm_over_the_limit_splits_into_cells_and_goes_on_answering(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cells = CellConfig(max_cell_nodes=4, min_cell_nodes=2, min_cell_peers=1)
    async with open_members(10, OverlayConfig(cells=cells), prefill_rate=200.0) as (_, members):
        namespace = members[0].engine.info.namespace
        first = await frames_of(members[0], an_ask(LONG + "one"))
        await trio.sleep(900)
        joined = [member.network.joined[namespace] for member in members]
        assert all(len(cells) == 1 for cells in joined), "nobody is between two cells any more"
        assert {member.node.state().cell_bits for member in members} == {cell.bits for (cell,) in joined}
        assert any(cell.bits for (cell,) in joined)
        again = []
        for member in members:
            again.append(await frames_of(member, an_ask(LONG + "two")))
            await trio.sleep(2)  # (of virtual time, until all nodes know that the node is idle again)
    assert isinstance(first[-1], Answered)
    for frames in again:
        assert isinstance(frames[-1], Answered) and text_of(frames) == text_of(again[0])
        assert frames[-1].usage.cached_tokens >= len(LONG) - STRIDE, "connected nodes of other cells are known too"


async def test_a_crowd_at_one_node_is_told_when_to_come_back_and_delays_nobody_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ends: list[EntryFrame] = []

    async def crowd() -> None:
        ends.append((await frames_of(one, an_ask(f"{len(ends)} of many", max_tokens=50)))[-1])

    async with open_members(2, slots=1, max_waiting=4, decode_rate=10.0, prefill_rate=1_000.0) as (_, (one, two)):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(crowd)
            await trio.sleep(1)
            (refused, *others) = [end for end in ends if isinstance(end, Failed)]
            assert refused.code == "overloaded" and refused.retryable and 0 < refused.retry_after_ms < 20_000
            assert len(others) == 3, "two run, and each engine lets one client have half of its queue"
            # At the other node the crowd counts as one client beside its own.
            began = trio.current_time()
            neighbour = await frames_of(two, an_ask("somebody else", max_tokens=20))
            assert isinstance(neighbour[-1], Answered) and trio.current_time() - began < 2 * 5 + 2.5
        await trio.sleep(max(0.0, refused.retry_after_ms / 1000 - (trio.current_time() - began)))
        assert isinstance((await frames_of(one, an_ask("again")))[-1], Answered)
        # (the neighbour's request may have gone to either node)
        assert b"" in {request.client for request in one.engine.requests} <= {b"", two.peer}
        assert one.peer in {request.client for request in two.engine.requests} <= {b"", one.peer}
        assert sum(isinstance(end, Answered) for end in ends) == 6


async def test_a_light_client_has_a_share_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(1) as (swarm, (one,)):
        identity = new_identity()
        async with swarm.open_network(NetworkSettings(identity=identity, overlay=False)) as client:
            swarm.link(client.peer_id, one.peer)
            stream = await client.open(one.peer, ASK)
            await stream.send(an_ask("hello"))
            while not isinstance(await stream.receive(), Answered):
                pass
            await stream.aclose()
        assert [request.client for request in one.engine.requests] == [identity.peer_id]

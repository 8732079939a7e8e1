"""Models that no connected node serves: they are listed, found and answered, and peers' reports are only hints."""

from typing import Any

import pytest
import trio

from mycelia.node.network.exchange import receive_opening
from mycelia.node.network.identity import new_identity
from mycelia.node.network.network import MessageStream, Network, NetworkError, NetworkSettings
from mycelia.node.peer_id import peer_text
from mycelia.node.queries import models as swarm_models
from mycelia.node.queries.models import ASK_EVERY_S, FIND_DEADLINE_S, MAX_MET, MODELS
from mycelia.node.queries.questions import answer_of
from mycelia.node.requests.entry import ASK
from mycelia.proto.digests.digest import pack_hashes
from mycelia.proto.planes.directory import HEARSAY_S, Directory, KnownModel
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.messages import Answered, EntryFrame, Failed, ModelNodes, Models, ModelsQuery
from tests.node.members import LONG, Member, an_ask, frames_of, open_members

LINE = ((0, 1), (1, 2))
THREE = ("small", "medium", "large")


async def rows_of(member: Member) -> dict[str, tuple[int, int]]:
    """Model -> (number of nodes, number of connected nodes)."""
    return {row.model: (row.nodes, row.connected) for row in await member.node.models()}


async def test_a_model_of_a_peers_peer_is_listed_found_and_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(3, models=THREE, links=LINE) as (swarm, (one, _, three)):
        before = await rows_of(one)
        frames = await frames_of(one, an_ask(LONG, model="large"))
        assert swarm.connected(one.peer, three.peer)
        await trio.sleep(10)
        after = await rows_of(one)
    assert before == {"small": (1, 1), "medium": (1, 1), "large": (1, 0)}
    assert isinstance(frames[-1], Answered) and frames[-1].served_by == three.peer
    assert after == {"small": (1, 1), "medium": (1, 1), "large": (1, 1)}


async def test_nodes_are_counted_over_all_who_tell_of_them(autojump_clock: trio.testing.MockClock) -> None:
    models, links = ("small", "medium", "medium", "large", "large"), ((0, 1), (0, 2), (1, 3), (2, 4))
    async with open_members(5, models=models, links=links) as (_, members):
        assert await rows_of(members[0]) == {"small": (1, 1), "medium": (2, 2), "large": (2, 0)}


async def test_a_node_that_cannot_be_dialled_is_reached_through_a_peer_of_both(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(3, models=THREE, links=LINE) as (swarm, (one, _, three)):
        swarm.behind_routers.add(three.peer)
        for _ in range(2):
            frames = await frames_of(one, an_ask(LONG, model="large"))
            assert isinstance(frames[-1], Answered) and frames[-1].served_by == three.peer
        assert not swarm.connected(one.peer, three.peer)


async def test_a_model_that_nobody_serves_is_unknown_soon_and_costs_peers_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    num_asked = 0

    async def counted(stream: MessageStream) -> None:
        nonlocal num_asked
        num_asked += 1
        await two.node.swarm_models.serve_stream(stream)

    async with open_members(3, models=THREE, links=LINE) as (_, (one, two, _)):
        two.network.serve(MODELS, counted)
        began = trio.current_time()
        for _ in range(20):
            frames = await frames_of(one, an_ask(LONG, model="none"))
        assert trio.current_time() - began < 1.0
        assert num_asked <= 1
    (failed,) = frames
    assert isinstance(failed, Failed) and failed.code == "unknown_model" and "`none`" in failed.message
    assert "Served: small, large, medium." in failed.message


@pytest.mark.parametrize("character", ["\x01", "\U000e0001"])
async def test_that_a_model_of_any_name_is_unknown_can_be_told(
    autojump_clock: trio.testing.MockClock, character: str
) -> None:
    async with open_members(1) as (_, (one,)):
        (failed,) = await frames_of(one, an_ask(LONG, model=128 * character))
    assert isinstance(failed, Failed) and failed.code == "unknown_model"
    assert decode(encode(failed)) == failed


async def test_a_peer_that_never_answers_holds_nobody_up_for_long(autojump_clock: trio.testing.MockClock) -> None:
    async def silent(stream: MessageStream) -> None:
        await trio.sleep_forever()

    async with open_members(3, models=THREE, links=LINE) as (_, (one, two, _)):
        two.network.serve(MODELS, silent)
        await trio.sleep(HEARSAY_S)  # (of virtual time: its earlier reports are forgotten)
        began = trio.current_time()
        assert await rows_of(one) == {"small": (1, 1), "medium": (1, 1)}
        frames = await frames_of(one, an_ask(LONG, model="large"))
        assert trio.current_time() - began < FIND_DEADLINE_S
        async with one.node.ask(an_ask(LONG, model="large"), 0.01) as stream:
            late = [frame async for frame in stream]
    assert isinstance(frames[-1], Failed) and frames[-1].code == "unknown_model"
    assert isinstance(late[-1], Failed) and late[-1].code in ("unknown_model", "deadline")


async def test_a_node_that_does_not_know_the_question_gives_no_answer_and_no_offence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(3, models=THREE, links=LINE) as (_, (one, two, three)):
        del two.network.handlers[MODELS]
        await trio.sleep(HEARSAY_S)
        for _ in range(20):
            assert await rows_of(one) == {"small": (1, 1), "medium": (1, 1)}
            await trio.sleep(5)
        assert await rows_of(three) == {"large": (1, 1), "medium": (1, 1)}
        assert not two.node.state().refused and len(one.node.state().peers) == 1


async def test_answers_of_hundreds_of_kilobytes_are_not_given_without_an_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def ask(asker: Member, asked: Member) -> bool:
        try:
            return isinstance(await answer_of(asker.network, MODELS, ModelsQuery(), asked.peer), Models)
        except NetworkError:
            return False

    async with open_members(3, models=THREE, links=((0, 1), (0, 2))) as (_, (one, two, three)):
        answered = [await ask(two, one) for _ in range(100)]
        assert swarm_models.ANSWERS_BURST - 2 <= sum(answered) <= swarm_models.ANSWERS_BURST
        assert await ask(three, one), "another peer is answered as before"
        await trio.sleep(2 * swarm_models.FRESH_S)
        assert await ask(two, one)
        assert not one.node.state().refused, "no offence"


async def test_a_node_that_claims_to_be_idle_does_not_get_every_prompt_for_another_model(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_members(4, models=("small", *["medium"] * 3)) as (_, (one, *servers)):
        await trio.sleep(2)
        orders = {tuple(one.node.swarm_models.servers("medium")) for _ in range(100)}
        assert len(orders) == 1, "the turns of a conversation enter at one node"
        monkeypatch.setattr(swarm_models, "ENTRY_TURN_S", 0.001)
        firsts = set[bytes]()
        with trio.fail_after(10):  # (of virtual time)
            while len(firsts) < len(servers):  # (each order is as likely as any other)
                await trio.sleep(0.002)
                firsts.add(one.node.swarm_models.servers("medium")[0])
        assert firsts == {server.peer for server in servers}


async def test_prompts_for_unknown_models_do_not_count_all_reported_nodes_each(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = 0
    known = Directory.known

    def count(self: Directory, *args: Any) -> list[KnownModel]:
        nonlocal counted
        counted += 1
        return known(self, *args)

    monkeypatch.setattr(Directory, "known", count)
    async with open_members(2, models=("small", "medium")) as (_, (one, two)):
        for number in range(50):
            stream = await two.network.open(one.peer, ASK)
            await stream.send(an_ask(LONG, model=f"none {number}"))
            failed = await stream.receive()
            await stream.aclose()
            assert isinstance(failed, Failed) and failed.code == "unknown_model"
    assert counted <= 5


async def test_one_network_alone_does_not_make_a_swarm_look_large(autojump_clock: trio.testing.MockClock) -> None:
    async def lie(stream: MessageStream) -> None:
        await receive_opening(stream)
        row = ModelNodes(namespace=bytes(16), model="lie", context_tokens=1, age_s=0, nodes=pack_hashes(range(256)))
        await stream.send(Models(models=(row,)))

    async with open_members(4, models=("small",) * 4) as (_, members):
        one, liars = members[0], members[1:3]
        liars[0].network.serve(MODELS, lie)
        await trio.sleep(3 * ASK_EVERY_S)
        assert await rows_of(one) == {"small": (4, 4), "lie": (256, 0)}
        assert one.node.swarm_models.num_nodes(is_private=False) == 4, "honest nodes pass the lie on, as hearsay"
        liars[1].network.serve(MODELS, lie)
        await trio.sleep(3 * ASK_EVERY_S)
        await rows_of(one)
        assert one.node.swarm_models.num_nodes(is_private=False) == 256, "two networks are believed"


async def test_hearsay_crosses_the_swarm_and_ends_with_what_it_told_of(
    autojump_clock: trio.testing.MockClock,
) -> None:
    models, links = ("a", "b", "c", "d"), ((0, 1), (1, 2), (2, 3))
    async with open_members(4, models=models, links=links) as (swarm, members):
        await trio.sleep(180)
        assert await rows_of(members[0]) == {"a": (1, 1), "b": (1, 1), "c": (1, 0), "d": (1, 0)}
        frames = await frames_of(members[0], an_ask(LONG, model="d"))
        assert isinstance(frames[-1], Answered) and frames[-1].served_by == members[3].peer
        swarm.cut(members[3].peer)
        await trio.sleep(600)
        assert await rows_of(members[0]) == {"a": (1, 1), "b": (1, 1), "c": (1, 0)}


async def tell(stream: MessageStream, *names: str, nodes: bytes = pack_hashes([1])) -> None:
    """Answers a question with invented models."""
    await stream.receive()
    models = [
        ModelNodes(namespace=name.encode().ljust(16), model=name, context_tokens=9, age_s=0, nodes=nodes)
        for name in names
    ]
    await stream.send(Models(models=tuple(models)))


async def test_a_liars_models_are_listed_as_hearsay_and_nobody_answers_for_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def lie(stream: MessageStream) -> None:
        await tell(stream, "ghost", "large")

    async with open_members(3, models=THREE, links=LINE) as (_, (one, two, three)):
        two.network.serve(MODELS, lie)
        assert await rows_of(one) == {"small": (1, 1), "medium": (1, 1), "large": (1, 0), "ghost": (1, 0)}
        (failed,) = await frames_of(one, an_ask(LONG, model="ghost"))
        assert isinstance(failed, Failed) and failed.code == "unknown_model"
        context = {row.model: row.context_tokens for row in await three.node.models()}
        assert context["large"] == three.engine.info.context_tokens, "what is seen is not corrected by hearsay"


async def test_two_nodes_that_were_told_of_each_other_pass_no_prompt_in_circles(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def lie(stream: MessageStream) -> None:
        await tell(stream, "ghost")

    async with open_members(2, models=("small", "medium")) as (_, members):
        for member in members:
            member.network.serve(MODELS, lie)
        for member in members:
            await member.node.models()
        began = trio.current_time()
        (failed,) = await frames_of(members[0], an_ask(LONG, model="ghost"))
        assert isinstance(failed, Failed) and failed.code == "unknown_model"
        assert trio.current_time() - began < FIND_DEADLINE_S
        assert len(members[1].node.recent_requests()) == 1 and len(members[0].node.recent_requests()) == 1


async def test_an_answer_that_is_none_is_an_offence(autojump_clock: trio.testing.MockClock) -> None:
    async def lie(stream: MessageStream) -> None:
        await tell(stream, "ghost", nodes=b"1234567")

    async with open_members(3, models=THREE, links=LINE) as (_, (one, two, _)):
        two.network.serve(MODELS, lie)
        assert "ghost" not in await rows_of(one)
        assert one.node.state().refused == {"malformed": 1}


async def test_other_questions_are_none(autojump_clock: trio.testing.MockClock) -> None:
    from mycelia.node.network.network import NetworkError

    async with open_members(2) as (_, (one, two)):
        stream = await one.network.open(two.peer, MODELS)
        await stream.send(an_ask("hello"))
        with pytest.raises(NetworkError):
            await stream.receive()


async def test_a_light_client_finds_models_through_any_node(autojump_clock: trio.testing.MockClock) -> None:
    stranger = NetworkSettings(identity=new_identity(), overlay=False)
    async with (
        open_members(3, models=THREE, links=LINE) as (swarm, (one, _, three)),
        swarm.open_network(stranger) as client,
    ):
        swarm.link(client.peer_id, one.peer)
        stream = await client.open(one.peer, ASK)
        await stream.send(an_ask(LONG, model="large"))
        frame = await stream.receive()
        while not isinstance(frame, Answered | Failed):
            frame = await stream.receive()
        await stream.aclose()
    assert isinstance(frame, Answered) and frame.served_by == three.peer


async def test_models_that_strangers_have_looked_for_keep_no_others_waiting(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A liar reports models whose nodes are never found, and asks for them."""
    ghosts = [f"ghost {number}" for number in range(24)]

    async def lie(stream: MessageStream) -> None:
        await tell(stream, *ghosts)

    stranger, other = (NetworkSettings(identity=new_identity(), overlay=False) for _ in range(2))
    async with (
        open_members(4, models=("small", "medium", "large", "liar's"), links=(*LINE, (0, 3))) as (swarm, members),
        swarm.open_network(stranger) as client,
        swarm.open_network(other) as honest,
        trio.open_nursery() as nursery,
    ):
        one, find_nodes = members[0], members[0].network.find_nodes
        looked_for = 0
        many_looked_for = trio.Event()

        async def found(key: bytes) -> list[bytes]:
            nonlocal looked_for
            if key.startswith(b"ghost"):
                looked_for += 1
                if looked_for == 3:
                    many_looked_for.set()
                await trio.sleep_forever()
            await trio.sleep(0.5)
            return await find_nodes(key)

        async def ask(network: Network, model: str) -> EntryFrame:
            stream = await network.open(one.peer, ASK)
            await stream.send(an_ask(LONG, model=model))
            frame = await stream.receive()
            while not isinstance(frame, Answered | Failed):
                frame = await stream.receive()
            await stream.aclose()
            return frame

        members[3].network.serve(MODELS, lie)
        monkeypatch.setattr(one.network, "find_nodes", found)
        await one.node.models()
        for network in (client, honest):
            swarm.link(network.peer_id, one.peer)
        for ghost in ghosts:
            nursery.start_soon(ask, client, ghost)
        await many_looked_for.wait()
        began = trio.current_time()
        assert isinstance(await ask(honest, "large"), Answered), "another peer of the same address"
        for key in (b"", b"k" * 16):
            frames = await frames_of(one, an_ask(LONG, model="large"), client=key)
            assert isinstance(frames[-1], Answered)
        assert trio.current_time() - began < FIND_DEADLINE_S / 2, "of virtual time"
        began = trio.current_time()
        (failed,) = await frames_of(one, an_ask(LONG, model="ghost 20"))
        assert isinstance(failed, Failed) and trio.current_time() - began < FIND_DEADLINE_S + 1


async def test_many_models_of_one_node_each_crowd_out_no_other(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm_models, "MAX_ROWS", 4)
    models = ("small", "a", "b", "c", "shared", "shared", "told of")
    links = (*((0, number) for number in range(1, 6)), (1, 6))
    async with open_members(len(models), models=models, links=links) as (_, (one, *_)):
        assert await rows_of(one) == {"small": (1, 1), "a": (1, 1), "shared": (2, 2), "told of": (1, 0)}


async def test_connections_for_other_models_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    count = MAX_MET + 4
    models = ("small", "medium", *(f"other {number:02}" for number in range(count)))
    links = ((0, 1), *((1, 2 + number) for number in range(count)))
    async with open_members(2 + count, models=models, links=links) as (_, (one, *_)):
        assert len(await one.node.models()) == 2 + count
        for model in models[2:]:
            frames = await frames_of(one, an_ask("hello", model=model))
            assert isinstance(frames[-1], Answered), model
        assert len(one.network.peers()) == 1 + MAX_MET


async def test_a_connection_that_an_answer_comes_over_outlives_idle_ones(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm_models, "MAX_MET", 2)
    models = ("small", "medium", "a", "b", "c", "d")
    links = ((0, 1), (1, 2), (1, 3), (1, 4), (1, 5))
    async with (
        open_members(6, models=models, links=links, decode_rate=100.0) as (_, (one, _, a, *_)),
        one.node.ask(an_ask(LONG, max_tokens=2_000, model="a")) as frames,
    ):
        await anext(frames)
        asked_at = trio.current_time()
        for model in ("b", "c", "d"):
            assert isinstance((await frames_of(one, an_ask("hello", model=model)))[-1], Answered)
        (row,) = [row for row in one.node.state().peers if row.peer == peer_text(a.peer)]
        assert row.connected_s > trio.current_time() - asked_at
        assert len(one.network.peers()) == 1 + 2

"""Answers of a real model that stop for others and go on with exactly the same tokens."""

import trio

from mycelia.node.engine.engine import EngineAccepted, EngineDone, EngineRequest, EngineTokens
from mycelia.node.engine.process import ProcessEngine, open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.messages import ChatMessage, Conversation, Sampling
from tests.node.engine.gguf_files import quick_model

STRANGER, SUBNET = b"stranger", "203.0.113.0/24"
WORDS = Sampling(
    max_tokens=40,
    temperature=0.9,
    seed=7,
    repeat_penalty=1.2,
    frequency_penalty=0.3,
    repeat_last_n=32,
    logprobs=2,
    grammar="root ::= [a-zA-Z ,.']+",
)
OPTIONS = (Sampling(max_tokens=40, temperature=0.9, seed=3), WORDS)


async def answer(running: ProcessEngine, request: EngineRequest, seen: trio.Event | None = None) -> list[object]:
    """The tokens, texts and logprobs of an answer. seen: set at the first ones."""
    items: list[object] = []
    async with running.generate(request) as frames:
        async for item in frames:
            if isinstance(item, EngineTokens):
                items += zip(item.tokens, item.logprobs or [None] * len(item.tokens), strict=True)
                if seen is not None:
                    seen.set()
            else:
                assert isinstance(item, EngineAccepted | EngineDone), item
    return items


async def keep(
    running: ProcessEngine, request: EngineRequest, seen: trio.Event, items: list[object], ended: list[str]
) -> None:
    items += await answer(running, request, seen)
    ended.append("stranger")


async def test_an_answer_that_stops_for_the_owner_goes_on_as_if_it_had_not() -> None:
    settings = EngineSettings(
        quick_model(), cells=512, slots=1, sequences=9, threads=1, exact=True, check=True, ram_tier_mib=64
    )
    with trio.fail_after(180):
        async with open_engine(settings) as running:
            about = ChatMessage(role="user", content="Tell me about the river.")
            prompt = await running.tokenize_chat(Conversation((about,)))
            for sampling in OPTIONS:
                request = EngineRequest(b"r" * 16, prompt, sampling, client=STRANGER, subnet=SUBNET)
                alone = await answer(running, request)
                again, ended = list[object](), list[str]()
                async with trio.open_nursery() as nursery:
                    has_begun = trio.Event()
                    nursery.start_soon(keep, running, request, has_begun, again, ended)
                    await has_begun.wait()
                    # This request needs nearly all cells, so the cells of the other answer are evicted, too.
                    await answer(running, EngineRequest(b"o" * 16, [9] * 480, Sampling(max_tokens=4)))
                    ended.append("owner")
                assert ended == ["owner", "stranger"], "there is one slot"
                assert again == alone and len(alone) == 40
            assert running.num_restarts == 0

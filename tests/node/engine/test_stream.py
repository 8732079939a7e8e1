"""The items of one answer: unread ones are joined, but keep text with its tokens and never exceed a frame."""

from mycelia.node.engine.engine import EngineDone, EngineFailed, EngineItem, EngineTokens
from mycelia.node.engine.stream import MAX_WAITING_LOGPROBS, AnswerStream
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.messages import MAX_LOGPROBS, Logprob, TokenLogprobs, Tokens, Usage

USAGE = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=0, queue_ms=0, prefill_ms=0, decode_ms=0)


async def read(items: list[EngineTokens]) -> list[EngineTokens]:
    """The items that a reader gets after the end of the answer."""
    stream = AnswerStream()
    for item in items:
        stream.put(item)
    stream.put(EngineDone("stop", USAGE))
    read: list[EngineItem] = [item async for item in stream]
    assert read.pop() == EngineDone("stop", USAGE)
    return [item for item in read if isinstance(item, EngineTokens)]


async def test_what_nobody_read_is_joined_into_frames() -> None:
    joined = await read([EngineTokens([i], b"%d " % i) for i in range(1000)])
    assert [token for item in joined for token in item.tokens] == list(range(1000)) and len(joined) == 4
    for item in joined:
        assert item.text == b"".join(b"%d " % token for token in item.tokens), "another token's text"


async def test_the_largest_items_fit_the_wire() -> None:
    entry = Logprob(token=2**32 - 1, text=b"x" * 1024, logprob=-0.1)
    largest = EngineTokens([1], b"x" * 1024, (TokenLogprobs(chosen=entry, top=(entry,) * MAX_LOGPROBS),))
    for item in await read([largest] * 100):
        frame = Tokens(position=0, tokens=pack_tokens(item.tokens), text=item.text, logprobs=item.logprobs)
        assert decode(encode(frame)) == frame


async def test_an_answer_that_is_read_too_slowly_ends_behind_what_waits() -> None:
    entry = Logprob(token=1, text=b"x", logprob=-0.1)
    item = EngineTokens([1], b"x", (TokenLogprobs(chosen=entry, top=(entry,) * MAX_LOGPROBS),))
    stream = AnswerStream()
    num_put = 1
    while stream.put(item):
        num_put += 1
    assert not stream.put(item)
    read = [item async for item in stream]
    assert isinstance(read[-1], EngineFailed) and read[-1].retryable
    assert sum(len(item.tokens) for item in read if isinstance(item, EngineTokens)) == num_put
    assert num_put == MAX_WAITING_LOGPROBS + 1


async def test_an_answer_that_is_read_in_time_may_be_of_any_length() -> None:
    entry = Logprob(token=1, text=b"x", logprob=-0.1)
    item = EngineTokens([1], b"x", (TokenLogprobs(chosen=entry, top=(entry,) * MAX_LOGPROBS),))
    stream = AnswerStream()
    for _ in range(3 * MAX_WAITING_LOGPROBS):
        assert stream.put(item) and await anext(stream) == item

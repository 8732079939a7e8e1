"""Hostile texts at the real engine process: it survives, and reads the texts of others in the meantime."""

import random
import string

import pytest
import trio

from mycelia.node.errors import BusyError
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import MAX_CHAT_BYTES, ChatMessage, Conversation
from tests import profiles
from tests.node.engine.test_process import answer, chat, done, engine, request

STRANGER, HONEST = b"s" * 32, b"h" * 32
NO_CALLS = ("5", "[1]", '[{"function": 3}]', '{"a": 1}', '"x"', "[null]")
DEEP = "[" * 986 + "]" * 986
NUM_ASKS = 64 if profiles.is_full() else 24


async def test_no_message_ends_the_engine() -> None:
    extras = [f'{{"tool_calls": {calls}}}' for calls in NO_CALLS] + [f'{{"a": {DEEP}}}']
    async with engine() as running:
        pid = running.pid
        for wrong in extras:
            with pytest.raises(LocalError):
                await running.tokenize_chat(Conversation((ChatMessage(role="user", content="x", extras=wrong),)))
        with pytest.raises(LocalError):
            await running.tokenize_chat(Conversation((ChatMessage(role="user", content="x"),), DEEP))
        assert done(await answer(running, request(await chat(running, "Hello."), 2)))
        assert running.pid == pid and running.num_restarts == 0


def hostile_texts() -> list[str]:
    """Texts of the maximum length: those that take the tokenizer longest, and one that is too long only at its end."""
    letters = "".join(random.Random(7).choices(string.ascii_lowercase, k=MAX_CHAT_BYTES))
    return [letters, "<|im_end|>" * (MAX_CHAT_BYTES // 10), " " * (MAX_CHAT_BYTES - 80_000) + letters[:80_000]]


async def test_long_texts_neither_end_the_engine_nor_delay_others() -> None:
    texts = hostile_texts()
    async with engine(cells=8_192) as running:
        pid = running.pid
        num_refused, num_read = 0, 0
        is_first_refused = trio.Event()

        async def ask(text: str) -> None:
            nonlocal num_refused
            with pytest.raises(LocalError) as caught:
                await running.tokenize_text(text, STRANGER)
            num_refused += 1
            is_first_refused.set()
            assert isinstance(caught.value, BusyError) or "tokens" in str(caught.value)

        async with trio.open_nursery() as nursery:
            for number in range(NUM_ASKS):
                text = texts[0] if number % 8 else texts[number // 8 % 3]
                nursery.start_soon(ask, f"{number}{text}"[:MAX_CHAT_BYTES])
            await is_first_refused.wait()
            while num_refused < NUM_ASKS:
                prompt = await running.tokenize_text("An honest question.", HONEST)
                num_read += 1
            assert done(await answer(running, request(prompt, 2)))
        assert num_read > NUM_ASKS, "a short text does not wait for long ones"
        assert running.pid == pid and running.num_restarts == 0

"""Thoughts, calls and logprobs of answers, as OpenAI's API has them, whole and in streams."""

import json
from typing import Any

import pytest

from mycelia.node.serve.openai import answers
from mycelia.node.serve.openai.reading import ReadAnswer
from mycelia.proto.wire.messages import Answered, EntryFrame, Logprob, Route, Text, TokenLogprobs, Usage
from tests.node.serve.openai.test_api import TOOL, answer, chat, events, served

PEER = b"\x01" * 38
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Paris"}}\n</tool_call>'


def frames(format_: str, *texts: str, reason: str = "stop", opened: str = "") -> list[EntryFrame]:
    usage = Usage(prompt_tokens=9, cached_tokens=0, completion_tokens=3, queue_ms=0, prefill_ms=1, decode_ms=1)
    route = Route(chosen=PEER, reason="r", prompt_tokens=9, candidates=(), format=format_, opened=opened)
    said = [Text(text=text) for text in texts]
    return [route, *said, Answered(served_by=PEER, reason=reason, usage=usage, ttft_ms=1, resumed=0)]


async def asked(answer: list[EntryFrame], **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the whole choice, the choices of the stream)."""
    async with served(answer) as (node, http):
        whole = await http.post("/v1/chat/completions", json=chat(**options))
        stream = await http.post("/v1/chat/completions", json=chat(stream=True, **options))
        assert all(ask.reads_format for ask in node.asked)
    (choice,) = whole.json()["choices"]
    return choice, [chunk["choices"][0] for chunk in events(stream.text)]


def joined(chunks: list[dict[str, Any]], field: str) -> str:
    return "".join(chunk["delta"].get(field, "") for chunk in chunks)


async def test_thoughts_come_apart_from_the_content() -> None:
    whole, chunks = await asked(frames("hermes+think", "<th", "ink>\nHm", ".\n</think>\n\nY", "es."))
    assert whole["message"]["reasoning_content"] == joined(chunks, "reasoning_content") == "Hm."
    assert whole["message"]["content"] == joined(chunks, "content") == "Yes." and whole["finish_reason"] == "stop"


async def test_a_prompt_may_have_opened_the_thought() -> None:
    whole, chunks = await asked(frames("hermes+think", "Hm.</think>Yes.", opened="<think>"))
    assert whole["message"]["reasoning_content"] == joined(chunks, "reasoning_content") == "Hm."
    assert whole["message"]["content"] == "Yes."


async def test_a_thought_without_its_opening_tag() -> None:
    whole, chunks = await asked(frames("hermes+think", "Hm.", "</think>Yes."))
    assert whole["message"]["reasoning_content"] == "Hm." and whole["message"]["content"] == "Yes."
    assert joined(chunks, "content") == "Hm.</think>Yes.", "a stream has sent the beginning already"


async def test_an_answer_without_thoughts_has_no_field_for_them() -> None:
    whole, chunks = await asked(frames("hermes+think", "Yes."))
    assert "reasoning_content" not in whole["message"]
    assert not any("reasoning_content" in chunk["delta"] for chunk in chunks)


async def test_arguments_stream_as_they_come() -> None:
    parts = ("Well.\n<tool_call>\n", '{"name": "weather", "arguments": {"pl', 'ace": "Par', 'is"}}\n', "</tool_call>")
    whole, chunks = await asked(frames("hermes", *parts), tools=[TOOL])
    assert [call["function"] for call in whole["message"]["tool_calls"]] == [
        {"name": "weather", "arguments": '{"place": "Paris"}'}
    ]
    calls = [chunk["delta"]["tool_calls"][0] for chunk in chunks if "tool_calls" in chunk["delta"]]
    assert [call["function"]["arguments"] for call in calls] == ['{"pl', 'ace": "Par', 'is"}']
    assert chunks[-1]["finish_reason"] == whole["finish_reason"] == "tool_calls"


async def test_several_calls_have_their_own_index_and_id() -> None:
    whole, chunks = await asked(frames("hermes", f"{CALL}\n{CALL}"), tools=[TOOL])
    ids = [call["id"] for call in whole["message"]["tool_calls"]]
    calls = [chunk["delta"]["tool_calls"][0] for chunk in chunks if "tool_calls" in chunk["delta"]]
    assert len({*ids}) == 2 and {call["index"] for call in calls} == {0, 1}


async def test_a_client_that_wants_one_call_gets_one() -> None:
    whole, chunks = await asked(frames("hermes", f"{CALL}\n{CALL}\nDone."), tools=[TOOL], parallel_tool_calls=False)
    assert len(whole["message"]["tool_calls"]) == 1 and whole["message"]["content"] == "Done."
    calls = [chunk["delta"]["tool_calls"][0] for chunk in chunks if "tool_calls" in chunk["delta"]]
    assert {call["index"] for call in calls} == {0}


async def test_a_call_that_is_cut_is_text_and_a_length() -> None:
    whole, chunks = await asked(frames("hermes", CALL[:50], reason="length"), tools=[TOOL])
    assert whole["message"]["content"] == CALL[:50] and whole["finish_reason"] == "length"
    assert "tool_calls" not in whole["message"] and chunks[-1]["finish_reason"] == "length"


async def test_an_answer_that_has_to_fit_a_schema_is_no_call() -> None:
    said = '{"name": "weather", "arguments": {}}'
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    whole, _ = await asked(frames("hermes", said), tools=[TOOL], response_format=wanted)
    assert whole["message"]["content"] == said and whole["finish_reason"] == "stop"


async def test_a_call_that_must_be_made_and_an_answer_of_a_schema_come_after_the_thought() -> None:
    said = frames("hermes+think", 'Hm.</think>{"name": "weather", "arguments": {"place": "Paris"}}', opened="<think>")
    whole, chunks = await asked(said, tools=[TOOL], tool_choice="required")
    (call,) = whole["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"place": "Paris"}
    assert joined(chunks, "reasoning_content") == "Hm." and whole["finish_reason"] == "tool_calls"
    whole, _ = await asked(said, tools=[TOOL], response_format={"type": "json_object"})
    assert json.loads(whole["message"]["content"])["name"] == "weather" and "tool_calls" not in whole["message"]


async def test_no_text_of_a_completion_is_read() -> None:
    async with served(frames("hermes+think", "<think>Hm.</think>Yes.")) as (node, http):
        body = {"model": "fake", "prompt": "Once"}
        (choice,) = (await http.post("/v1/completions", json=body)).json()["choices"]
    assert choice["text"] == "<think>Hm.</think>Yes." and not node.asked[0].reads_format


# --- logprobs ---------------------------------------------------------------------------------------------------------


def logprob(text: str | bytes) -> TokenLogprobs:
    data = text.encode() if isinstance(text, str) else text
    return TokenLogprobs(chosen=Logprob(token=len(data), text=data, logprob=-1.0), top=())


def spelled(entries: list[TokenLogprobs]) -> list[bytes]:
    return [entry.chosen.text for entry in entries]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_logprobs_are_those_of_the_content(size: int) -> None:
    tokens = [
        "<think>",
        "Hm",
        "é",
        ".",
        "</think>",
        "\n\n",
        "Ye",
        "s é",
        ".",
        "\n<tool_call>",
        CALL[11:],
        "\n",
        "So",
        ".",
    ]
    reading = ReadAnswer({"weather": None}, with_logprobs=True)
    reading.begin(Route(chosen=PEER, reason="r", prompt_tokens=9, candidates=(), format="hermes+think"))
    said = []
    for at in range(0, len(tokens), size):
        part = tokens[at : at + size]
        said += reading.feed("".join(part), [logprob(token) for token in part])
    said += reading.end()
    assert spelled(reading.logprobs) == [b"Ye", "s é".encode(), b".", b"So", b"."]
    assert spelled([entry for part in said for entry in part.logprobs]) == spelled(reading.logprobs)
    assert reading.content == "Yes é.So." and reading.thought == "Hmé." and len(reading.calls) == 1


def test_logprobs_wait_for_whole_characters_and_end_with_the_content() -> None:
    reading = ReadAnswer({}, with_logprobs=True)
    euro = "€".encode()
    assert reading.feed("a", [logprob("a")])[0].logprobs and reading.feed("", [logprob(euro[:1])]) == []
    (said,) = reading.feed("€b", [logprob(euro[1:]), logprob("b")])
    assert spelled(said.logprobs) == [euro[:1], euro[1:], b"b"]
    assert reading.feed("", [logprob("STOP")]) == [] and reading.end() == []
    assert spelled(reading.logprobs) == [b"a", euro[:1], euro[1:], b"b"]


def test_json_strings_of_arguments_are_whole() -> None:
    reading = ReadAnswer({"weather": None}, with_logprobs=False)
    for char in '{"name": "weather", "arguments": {"place": "\\ud83d\\ude00 é"}}':
        reading.feed(char, ())
    reading.end()
    assert json.loads(reading.calls[0].arguments) == {"place": "😀 é"}


async def test_a_long_text_at_once_is_read_in_parts_and_other_tasks_run_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "MAX_READ_CHARS", 10)
    sizes: list[int] = []
    feed = ReadAnswer.feed

    def fed(self: ReadAnswer, text: str, logprobs: Any) -> Any:
        sizes.append(len(text))
        return feed(self, text, logprobs)

    monkeypatch.setattr(ReadAnswer, "feed", fed)
    text = 'I will. <tool_call>{"name": "weather", "arguments": {"place": "x"}}</tool_call>'
    async with served(answer(text)) as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(tools=[TOOL]))
    message = response.json()["choices"][0]["message"]
    assert message["content"] == "I will." and message["tool_calls"][0]["function"]["name"] == "weather"
    assert sum(sizes) == len(text) and max(sizes) == 10

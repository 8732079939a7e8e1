"""What clients say for the model's chat template: options, thoughts, contents in parts, a message to continue."""

import json
from typing import Any

import pytest

from mycelia.proto.wire.messages import Ask
from tests.node.serve.openai.test_api import chat, served

USER = {"role": "user", "content": "1+1?"}


async def ask_of(**body: Any) -> Ask:
    async with served() as (node, http):
        response = await http.post("/v1/chat/completions", json=chat(**body))
    assert response.status_code == 200, response.text
    return node.asked[0]


async def refusal_of(**body: Any) -> tuple[str, str]:
    async with served() as (_, http):
        response = await http.post("/v1/chat/completions", json=chat(**body))
    assert response.status_code == 400
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        (
            {"reasoning_effort": "low", "add_generation_prompt": False},
            {"reasoning_effort": "low", "add_generation_prompt": False},
        ),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False, "x": [1]}},
            {"enable_thinking": False, "x": [1]},
        ),
        ({"chat_template_kwargs": None, "reasoning_effort": None, "continue_final_message": False}, {}),
    ],
)
async def test_options_reach_the_template(body: dict[str, Any], options: dict[str, Any]) -> None:
    ask = await ask_of(**body)
    assert json.loads(ask.template_options or "{}") == options and not ask.continues_final


async def test_a_last_message_can_be_continued() -> None:
    started = {"role": "assistant", "content": "It is"}
    assert (await ask_of(messages=[USER, started], continue_final_message=True)).continues_final
    assert (await ask_of(messages=[started], continue_final_message=True, add_generation_prompt=False)).continues_final
    both = await refusal_of(messages=[USER, started], continue_final_message=True, add_generation_prompt=True)
    assert both[0] == "add_generation_prompt"
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    for last in (USER, {"role": "assistant", "content": None, "tool_calls": [call]}):
        param, message = await refusal_of(messages=[USER, last], continue_final_message=True)
        assert param == "continue_final_message" and "last message of the assistant" in message


async def test_too_many_options_are_refused() -> None:
    param, _ = await refusal_of(chat_template_kwargs={"x": "y" * 65_536})
    assert param == "chat_template_kwargs"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_thoughts_of_earlier_turns_reach_the_template(name: str) -> None:
    ask = await ask_of(messages=[USER, {"role": "assistant", "content": "2", name: "One and one."}, USER])
    assert json.loads(ask.messages[1].extras) == {"reasoning_content": "One and one."}
    assert ask.messages[0].extras == ask.messages[2].extras == ""


async def test_contents_in_parts_and_null_ones_stay_what_they_are() -> None:
    parts = [{"type": "text", "text": text} for text in ("Hel", "", "lo")]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts[:1]},
    ]
    ask = await ask_of(messages=turns)
    assert [message.content for message in ask.messages] == ["Hello", "", "Hel"]
    assert [message.extras and json.loads(message.extras) for message in ask.messages] == [
        {"content_parts": [3, 0, 2]},
        {"content": None},
        "",
    ]


async def test_names_of_people_and_refusals_reach_the_template() -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    named = [{**USER, "name": "Ann"}, refused, {"role": "system", "content": "x", "name": "rules"}]
    ask = await ask_of(messages=named)
    assert [message.content for message in ask.messages] == ["1+1?", "No.", "x"]
    assert [message.extras and json.loads(message.extras) for message in ask.messages] == [
        {"name": "Ann"},
        "",
        {"name": "rules"},
    ]

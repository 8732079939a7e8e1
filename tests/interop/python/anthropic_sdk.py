"""Anthropic's SDK."""

from typing import Literal

import anthropic
import pydantic
from reports import MODEL, STORY, TOO_LONG, URL, Mood, Person, cancels, report

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
HELLO = [{"role": "user", "content": "Say hello."}]
INVENT = [{"role": "user", "content": "Invent a person."}]
SAVE = {"name": "save_person", "description": "Saves a person.", "input_schema": Person.model_json_schema()}


def chat():
    answer = client.messages.create(model=MODEL, messages=HELLO, max_tokens=16, system="Be brief.")
    assert answer.content[0].text and answer.usage.output_tokens <= 16
    assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 3
    assert client.models.list().data


def stream():
    with client.messages.stream(model=MODEL, messages=HELLO, max_tokens=16) as events:
        assert "".join(events.text_stream)
        assert events.get_final_message().stop_reason in ("end_turn", "max_tokens")


def tools():
    ask = {"model": MODEL, "max_tokens": 400, "tools": [SAVE], "tool_choice": {"type": "tool", "name": "save_person"}}
    answer = client.messages.create(**ask, messages=INVENT)
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    Person.model_validate(call.input)
    with client.messages.stream(**ask, messages=INVENT) as events:
        assert any(event.type == "input_json" for event in events)
        (streamed,) = [block for block in events.get_final_message().content if block.type == "tool_use"]
        Person.model_validate(streamed.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "saved"}
    turns = [*INVENT, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(model=MODEL, max_tokens=16, tools=[SAVE], messages=turns).content


class Town(pydantic.BaseModel):
    city: str


class Visit(pydantic.BaseModel):
    """(The SDK takes bounds out of a schema, as Anthropic's service has none; so this has none.)"""

    mood: Mood
    size: Literal["small", "large"]
    town: Town


def structured():
    ask = {"model": MODEL, "max_tokens": 400, "messages": INVENT}
    assert isinstance(client.messages.parse(**ask, output_format=Visit).parsed_output, Visit)


def errors():
    for expected, words, model, text in (
        (anthropic.NotFoundError, "gpt-9", "gpt-9", "Hi"),
        (anthropic.BadRequestError, "prompt is too long", MODEL, TOO_LONG),
    ):
        try:
            client.messages.create(model=model, max_tokens=16, messages=[{"role": "user", "content": text}])
        except expected as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"no {expected}")


def cancel():
    def ask():
        turns = [{"role": "user", "content": STORY}]
        with client.messages.stream(model=MODEL, messages=turns, max_tokens=2_000) as events:
            next(iter(events.text_stream))

    cancels(ask)


report(chat, stream, tools, structured, errors, cancel)

"""pydantic-ai: its default model for "openai:", which is that of responses, and its model of chat completions."""

import asyncio
import os
from typing import Annotated

from reports import MODEL, STORY, TOO_LONG, URL, Person, cancels, report

os.environ |= {"OPENAI_BASE_URL": f"{URL}/v1", "OPENAI_API_KEY": "none"}

from pydantic import Field
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel

MODELS = (f"openai:{MODEL}", OpenAIChatModel(MODEL))
SETTINGS = {"temperature": 0, "max_tokens": 500}


def agent(model, **options):
    return Agent(model, model_settings=SETTINGS, **options)


def chat():
    for model in MODELS:
        first = agent(model, instructions="Be brief.").run_sync("Say hello.")
        assert first.output
        assert agent(model).run_sync("And bye.", message_history=first.all_messages()).output


def stream():
    async def ask(model):
        async with agent(model).run_stream("Say hello.") as answer:
            return [text async for text in answer.stream_text(delta=True)]

    for model in MODELS:
        assert "".join(asyncio.run(ask(model)))


def tools():
    """Output by a tool, which the model has to call: nested, a list, a union."""
    for model in MODELS:
        assert isinstance(agent(model, output_type=Person).run_sync("Invent a person.").output, Person)
        assert isinstance(
            agent(model, output_type=Annotated[list[Person], Field(max_length=1)])
            .run_sync("Invent one person.")
            .output,
            list,
        )
        assert agent(model, output_type=[Person, int]).run_sync("Invent a person.").output is not None


def structured():
    for model in MODELS:
        assert isinstance(agent(model, output_type=NativeOutput(Person)).run_sync("Invent a person.").output, Person)
        either = agent(model, output_type=NativeOutput([Person, int])).run_sync("Invent a person.").output
        assert isinstance(either, Person | int)


def errors():
    for model in MODELS:
        try:
            agent(model).run_sync(TOO_LONG)
        except ModelHTTPError as error:
            assert error.status_code == 400 and "maximum context length" in str(error), error
        else:
            raise AssertionError("no error")


def cancel():
    async def ask(model):
        async with Agent(model).run_stream(STORY) as answer:
            async for _ in answer.stream_text(delta=True, debounce_by=None):
                break

    for model in MODELS:
        cancels(lambda model=model: asyncio.run(ask(model)))


report(chat, stream, tools, structured, errors, cancel)

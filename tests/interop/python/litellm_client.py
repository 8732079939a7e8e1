"""litellm: chat completions, and its bridges to responses and messages."""

import asyncio

import litellm
from reports import MODEL, STORY, TOO_LONG, URL, Person, cancels, report

litellm.telemetry = False
TO = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none", "temperature": 0, "num_retries": 0}
HELLO = [{"role": "user", "content": "Say hello."}]
INVENT = [{"role": "user", "content": "Invent a person."}]
SAVE = {"type": "function", "function": {"name": "save_person", "parameters": Person.model_json_schema()}}


def chat():
    assert litellm.completion(**TO, messages=HELLO, max_tokens=8).choices[0].message.content
    for kind in ("hosted_vllm", "lm_studio"):
        assert litellm.completion(**TO | {"model": f"{kind}/{MODEL}"}, messages=HELLO, max_tokens=8).choices
    assert litellm.completion(**TO | {"api_base": URL}, messages=HELLO, max_tokens=8).choices


def stream():
    chunks = litellm.completion(**TO, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True})
    chunks = list(chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens <= 8


def tools():
    answer = litellm.completion(**TO, messages=INVENT, tools=[SAVE], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    Person.model_validate_json(call.function.arguments)


def structured():
    answer = litellm.completion(**TO, messages=INVENT, response_format=Person)
    Person.model_validate_json(answer.choices[0].message.content)


def responses():
    answer = litellm.responses(**TO, input="Say hello.", max_output_tokens=16)
    assert answer.output[0].content[0].text


def messages():
    to = TO | {"model": f"anthropic/{MODEL}", "api_base": URL}
    assert litellm.completion(**to, messages=HELLO, max_tokens=16).choices[0].message.content
    answer = asyncio.run(litellm.anthropic.messages.acreate(**to, messages=HELLO, max_tokens=16))
    assert answer["content"]


def errors():
    for expected, changes in (
        (litellm.NotFoundError, {"model": "openai/gpt-9", "messages": HELLO}),
        (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": TOO_LONG}]}),
        (litellm.BadRequestError, {"messages": HELLO, "temperature": 9}),
    ):
        try:
            litellm.completion(**TO | changes)
        except expected:
            pass
        else:
            raise AssertionError(f"no {expected}")


def cancel():
    def ask():
        chunks = litellm.completion(**TO, messages=[{"role": "user", "content": STORY}], stream=True)
        next(chunks)
        chunks.completion_stream.close()

    cancels(ask)


report(chat, stream, tools, structured, responses, messages, errors, cancel)

"""OpenAI's SDK: chat completions and responses."""

import openai
from reports import MODEL, STORY, TOO_LONG, URL, Person, cancels, report

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
HELLO = [{"role": "user", "content": "Say hello."}]
INVENT = [{"role": "user", "content": "Invent a person."}]
SHORT = {"model": MODEL, "temperature": 0}


def chat():
    answer = client.chat.completions.create(**SHORT, messages=HELLO, max_tokens=8)
    assert answer.choices[0].message.content and answer.usage.completion_tokens <= 8
    assert client.responses.create(**SHORT, input="Say hello.", max_output_tokens=16).output_text


def stream():
    chunks = client.chat.completions.create(**SHORT, messages=HELLO, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    with client.responses.stream(**SHORT, input="Say hello.", max_output_tokens=16) as events:
        kinds = [event.type for event in events]
    assert "response.output_text.delta" in kinds


def tools():
    tool = openai.pydantic_function_tool(Person, name="save_person")
    answer = client.chat.completions.parse(**SHORT, messages=INVENT, tools=[tool], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Person)
    flat = {"type": "function", **tool["function"]}
    answer = client.responses.parse(**SHORT, input="Invent a person.", tools=[flat], tool_choice="required")
    (call,) = [item for item in answer.output if item.type == "function_call"]
    Person.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "saved"}
    then = client.responses.create(**SHORT, input=[result], previous_response_id=answer.id, max_output_tokens=16)
    assert then.output


def structured():
    answer = client.chat.completions.parse(**SHORT, messages=INVENT, response_format=Person)
    assert isinstance(answer.choices[0].message.parsed, Person)
    assert isinstance(
        client.responses.parse(**SHORT, input="Invent a person.", text_format=Person).output_parsed, Person
    )


def errors():
    for expected, code, model, text in (
        (openai.NotFoundError, "model_not_found", "gpt-9", "Hi"),
        (openai.BadRequestError, "context_length_exceeded", MODEL, TOO_LONG),
    ):
        for ask in (
            lambda: client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}]),
            lambda: client.responses.create(model=model, input=text),
        ):
            try:
                ask()
            except expected as error:
                assert error.code == code, error
            else:
                raise AssertionError(f"no {code}")


def cancel():
    def chat_stream():
        with client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": STORY}], stream=True
        ) as chunks:
            next(iter(chunks))

    def response_stream():
        with client.responses.create(model=MODEL, input=STORY, stream=True) as events:
            next(event for event in events if event.type == "response.output_text.delta")

    cancels(chat_stream)
    cancels(response_stream)


report(chat, stream, tools, structured, errors, cancel)

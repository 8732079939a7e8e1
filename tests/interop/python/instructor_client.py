"""instructor: its modes, with nested types."""

import instructor
import openai
import pydantic
from instructor import Mode
from reports import MODEL, STORY, TOO_LONG, URL, Person, Place, cancels, report

plain = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
INVENT = [{"role": "user", "content": "Invent a person."}]
SETTINGS = {"model": MODEL, "messages": INVENT, "temperature": 0, "max_retries": 0, "max_tokens": 400}


class Home(pydantic.BaseModel):
    place: Place


def made(mode):
    client = instructor.from_openai(plain, mode=mode)
    assert isinstance(client.chat.completions.create(**SETTINGS, response_model=Person), Person)


def tools():
    made(Mode.TOOLS)


def tools_strict():
    made(Mode.TOOLS_STRICT)


def structured():
    made(Mode.JSON_SCHEMA)


def responses_tools():
    client = instructor.from_openai(plain, mode=Mode.RESPONSES_TOOLS)
    assert isinstance(client.responses.create(model=MODEL, input="Invent a person.", response_model=Person), Person)


def chat():
    client = instructor.from_openai(plain)
    answer = client.chat.completions.create(**SETTINGS | {"max_tokens": 8}, response_model=None)
    assert answer.choices[0].message.content


def stream():
    """Partial objects, as they come. (Enums it refuses to read in streams, from any server.)"""
    for mode in (Mode.JSON_SCHEMA, Mode.TOOLS):
        client = instructor.from_openai(plain, mode=mode)
        *before, last = client.chat.completions.create_partial(**SETTINGS, response_model=Home)
        assert before and last.place.city is not None


def errors():
    client = instructor.from_openai(plain)
    try:
        long = {"messages": [{"role": "user", "content": TOO_LONG}]}
        client.chat.completions.create(**SETTINGS | long, response_model=Person)
    except Exception as error:
        assert "maximum context length" in str(error), error
    else:
        raise AssertionError("no error")


def cancel():
    client = instructor.from_openai(plain)

    def ask():
        chunks = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": STORY}], response_model=None, stream=True
        )
        next(iter(chunks))
        chunks.close()

    cancels(ask)


report(chat, stream, tools, tools_strict, structured, responses_tools, errors, cancel)

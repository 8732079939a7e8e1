"""llama-index, by its model for servers like OpenAI's."""

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from reports import MODEL, STORY, TOO_LONG, URL, Person, cancels, report

TO = {"api_base": f"{URL}/v1", "api_key": "none", "max_retries": 0, "temperature": 0, "context_window": 8192}
model = OpenAILike(model=MODEL, is_chat_model=True, is_function_calling_model=True, max_tokens=500, **TO)
HELLO = [ChatMessage(role="user", content="Say hello.")]


def chat():
    assert model.chat(HELLO, max_tokens=8).message.content
    texts = OpenAILike(model=MODEL, is_chat_model=False, max_tokens=8, **TO)
    assert texts.complete("Once upon a").text


def stream():
    assert "".join(part.delta or "" for part in model.stream_chat(HELLO))


def save_person(person: Person) -> str:
    """Saves a person."""
    return "saved"


def tools():
    tool = FunctionTool.from_defaults(save_person)
    answer = model.chat_with_tools([tool], user_msg="Invent a person.", tool_required=True)
    (call,) = model.get_tool_calls_from_response(answer)
    Person.model_validate(call.tool_kwargs["person"])


def structured():
    assert isinstance(model.as_structured_llm(Person).complete("Invent a person.").raw, Person)
    strict = OpenAILike(model=MODEL, is_chat_model=True, should_use_structured_outputs=True, max_tokens=500, **TO)
    assert isinstance(strict.as_structured_llm(Person).complete("Invent a person.").raw, Person)


def errors():
    try:
        model.chat([ChatMessage(role="user", content=TOO_LONG)])
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
    else:
        raise AssertionError("no error")


def cancel():
    def ask():
        parts = model.stream_chat([ChatMessage(role="user", content=STORY)])
        next(parts)
        parts.close()

    cancels(ask)


report(chat, stream, tools, structured, errors, cancel)

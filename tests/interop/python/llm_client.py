"""llm, with the model written as its documentation says."""

import json
import os
import pathlib
import tempfile

from reports import MODEL, STORY, TOO_LONG, URL, Person, cancels, report

folder = pathlib.Path(tempfile.mkdtemp())
os.environ |= {"LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "none", "LLM_LOAD_PLUGINS": ""}
(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: swarm\n  model_name: {MODEL}\n  api_base: {URL}/v1\n  supports_schema: true\n  supports_tools: true\n"
)

import llm  # noqa: E402  reads the environment

model = llm.get_model("swarm")


def chat():
    talk = model.conversation()
    assert talk.prompt("Say hello.", stream=False, max_tokens=8).text()
    assert talk.prompt("And bye.", stream=False, max_tokens=8).text()


def stream():
    assert len(list(model.prompt("Say hello.", max_tokens=8))) > 1


def save_person(name: str, age: int) -> str:
    """Saves a person."""
    return "saved"


def tools():
    answer = model.prompt("Say hello.", tools=[save_person], max_tokens=60, stream=False)
    assert answer.text() or answer.tool_calls()
    assert model.chain("Say hello.", tools=[save_person], options={"max_tokens": 60}).text() is not None


def structured():
    answer = model.prompt("Invent a person.", schema=Person, stream=False, temperature=0)
    Person.model_validate(json.loads(answer.text()))


def errors():
    try:
        model.prompt(TOO_LONG, stream=False).text()
    except Exception as error:
        assert "maximum context length" in str(error), error
    else:
        raise AssertionError("no error")


def cancel():
    def ask():
        parts = iter(model.prompt(STORY))
        next(parts)
        parts.close()

    cancels(ask)


report(chat, stream, tools, structured, errors, cancel)

"""What a model's own template writes for an assistant's turn is read back as that turn, for every template of
llama.cpp's sources that knows tools. A template writes history exactly as its model was trained to answer."""

import datetime as dt
import functools
import json
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pytest
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from mycelia.node.formats.choosing import control_spellings, format_name
from mycelia.node.formats.families import CALLS, THOUGHTS, format_named
from mycelia.node.requests.spelled_text import SpelledText
from mycelia.proto.answers.spelling import Vocabulary
from tests.node.engine.child.vocabularies import FOLDER, NEEDED, load, with_controls
from tests.node.formats.answers import TOOLS, Read, read

TEMPLATES = sorted((FOLDER / "templates").glob("*.jinja"))

pytestmark = NEEDED

NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}
"""Templates that write no calls of an assistant's turn."""
ONE_CALL = {"GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B", "openai-gpt-oss-120b"}
"""Templates that write the first call only. Llama 3's refuse a turn with two."""
NO_NULL = {"MiniMax-M3"}
"""In its nested tags, null and an empty string are the same."""
NO_CONTENT = {
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "MiniMax-M1",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NVIDIA-Nemotron-Nano-v2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "llama-cpp-deepseek-r1",
    "muse-glimmer",
    "openai-gpt-oss-120b",
    "upstage-Solar-Open-100B",
}
"""Templates that write no content beside calls, or write it elsewhere."""

BEGIN_MARKS = ["<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"]
END_MARKS = [
    *("<EOS>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "[e~[", "<|end_of_text|>", "<|END_OF_TURN_TOKEN|>"),
    *("<｜end▁of▁sentence｜>", "<seed:eos>", "<|role_end|>", "<|tool_response>", "<turn|>", "<|eot|>", "</assistant>"),
    *(
        "<sep>",
        "<end_of_sentence>",
        "<SPECIAL_12>",
        "<|end_of_msg|>",
        "<｜hy_eos:opensource｜>",
        "<|call|>",
        "<|calls|>",
    ),
    *("<|end|>", "<|message_sep|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"),
    "<|start_header_id|>assistant<|end_header_id|>",
]
"""Marks around a turn, which come before the answer, or end it and are no part of it."""

USER = {"role": "user", "content": "QUESTION"}
SPECS = [
    {"type": "function", "function": {"name": name, "description": "What it does.", "parameters": parameters}}
    for name, parameters in TOOLS.items()
]
ARGUMENTS: list[dict[str, Any]] = [
    {"city": "Paris"},
    {"city": 'a "b" <c> {d} [e]\nnew\tline\\x é 😀', "days": -3, "ok": True, "tags": ["u", "v, w"]},
    {"days": 0, "ok": False, "deep": {"a": [1, None, "z"], "b": []}, "city": "</tag> `x`"},
    {},
]


class _Generation(Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: object, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, default=list)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@functools.cache
def compiled(source: str) -> jinja2.Template:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: dt.datetime(2026, 1, 1, tzinfo=dt.UTC).strftime(form)
    return environment.from_string(source)


def render(source: str, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    return compiled(source).render(
        messages=messages,
        tools=SPECS,
        functions=_to_json(SPECS),
        add_generation_prompt=add_generation_prompt,
        bos_token="<BOS>",
        eos_token="<EOS>",
        enable_thinking=True,
        reasoning_effort="high",
        datetime="today",
    )


def answer_of(source: str, turn: dict[str, Any]) -> tuple[str, str]:
    """(the end of the prompt, the answer that the model would have written for ``turn``)."""
    prompt, whole = render(source, [USER], True), render(source, [USER, turn], False)
    shared = next((at for at, pair in enumerate(zip(prompt, whole, strict=False)) if pair[0] != pair[1]), len(prompt))
    if shared < len(prompt) and whole.rfind("<", 0, shared) > whole.rfind(">", 0, shared):
        shared = whole.rfind("<", 0, shared)  # (not in the middle of a mark)
    text = whole[shared:].partition("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>")[0]
    while mark := next((mark for mark in BEGIN_MARKS if text.startswith(mark)), ""):
        text = text.removeprefix(mark)
    while mark := next((mark for mark in END_MARKS if text.rstrip().endswith(mark)), ""):
        text = text.rstrip().removesuffix(mark)
    return prompt, text


def turn_of(calls: list[tuple[str, dict[str, Any]]], content: str, as_text: bool) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": "REASON",
        "tool_calls": [
            {
                "id": f"call0000{place}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments) if as_text else arguments},
            }
            for place, (name, arguments) in enumerate(calls, 1)
        ],
    }


def written(path: Path, calls: list[tuple[str, dict[str, Any]]], content: str) -> tuple[str, str, str]:
    """(the format, the mark at the prompt's end, the answer)."""
    source = path.read_text()
    try:
        prompt, text = answer_of(source, turn_of(calls, content, as_text=False))
    except TypeError:  # (some templates take arguments as text only)
        prompt, text = answer_of(source, turn_of(calls, content, as_text=True))
    name = format_name(source, lambda _: False)
    format_ = format_named(name)
    opened = format_.opened_by(prompt)
    closes = format_.thoughts.closes
    if opened in format_.thoughts.opens and not any(close in text for close in closes):
        text = f"REASON{closes[0]}{text}"  # (the template leaves thoughts out of history)
    return name, opened, text


def round_trip(path: Path, calls: list[tuple[str, dict[str, Any]]], content: str) -> Read:
    name, opened, text = written(path, calls, content)
    return read(name, text, opened=opened)


KNOWING = [path for path in TEMPLATES if path.stem not in NO_CALLS]


@pytest.mark.parametrize("path", KNOWING, ids=[path.stem for path in KNOWING])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_a_call_comes_back(path: Path, arguments: dict[str, Any]) -> None:
    if path.stem in NO_NULL and "deep" in arguments:
        arguments = {**arguments, "deep": {"a": [1, "z"]}}
    content = "" if path.stem in NO_CONTENT else "CONTENT"
    said = round_trip(path, [("get_weather", arguments)], content)
    assert said.calls == [("get_weather", arguments)] and said.content == content
    assert said.thought in ("", "REASON")


@pytest.mark.parametrize("path", KNOWING, ids=[path.stem for path in KNOWING])
def test_several_calls_come_back(path: Path) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [("get_weather", ARGUMENTS[0]), ("now", {}), ("say", {"text": "x"})]
    if "meta-llama" in path.stem:
        with pytest.raises(jinja2.TemplateError, match="single tool-calls"):
            round_trip(path, calls, "")
        return
    said = round_trip(path, calls, "")
    assert said.calls == calls[: 1 if path.stem in ONE_CALL else None] and said.content == ""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> ModelVocabulary:
    """One with all marks of all templates as control tokens, which have no text."""
    marks = {mark for name in {*CALLS, *THOUGHTS} for mark in format_named(f"{name}+{name}").token_texts()}
    path = tmp_path_factory.mktemp("vocabulary") / "all.gguf"
    return load(with_controls("qwen2", sorted(marks), (), path))


@pytest.fixture(scope="module")
def pieces(vocabulary: ModelVocabulary) -> Vocabulary:
    return Vocabulary.of([vocabulary.piece(token) for token in range(vocabulary.num_vocab)])


@pytest.mark.parametrize("path", KNOWING, ids=[path.stem for path in KNOWING])
def test_a_call_in_control_tokens_comes_back(path: Path, vocabulary: ModelVocabulary, pieces: Vocabulary) -> None:
    """Control tokens have no text on the way; the entry node spells those of the format."""
    content = "" if path.stem in NO_CONTENT else "CONTENT"
    name, opened, text = written(path, [("get_weather", ARGUMENTS[0])], content)
    spellings = control_spellings(name, partial(vocabulary.tokenize, special=True), vocabulary.piece)
    spelled = SpelledText(name, pieces, spellings)
    tokens = vocabulary.tokenize(text, special=True)
    parts = [spelled.spelled(pieces.text_of(part), part).decode() for part in (tokens[:9], tokens[9:])]
    said = read(name, "".join(parts), opened=opened)
    assert said.calls == [("get_weather", ARGUMENTS[0])] and said.content == content
    assert len(spellings) <= 64

"""The chat templates in llama.cpp's sources: conversations become the tokens of the authors' own renderer."""

import copy
import functools
import itertools
import json
from collections.abc import Iterator, Sequence

import pytest

from mycelia.node.engine.child.chat import ChatTemplate
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from tests import profiles
from tests.node.engine.child.conversations import (
    CONVERSATIONS,
    LONG,
    AuthorsRenderer,
    Json,
    RefusedError,
    ask_of,
    assistant,
    system,
    tokens_of,
    user,
)
from tests.node.engine.child.vocabularies import (
    NEEDED,
    load,
    spelled_controls,
    template_sources,
    user_defined,
    with_controls,
)

pytestmark = NEEDED
SOURCES = template_sources()
BASES = ("qwen2", "llama-spm")
"""One that splits texts by a pattern, and SentencePiece's: it has a begin token, and puts a blank before texts."""


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVocabulary]:
    folder = tmp_path_factory.mktemp("vocabularies")
    controls, others = spelled_controls(SOURCES.values()), user_defined(SOURCES.values())
    return {base: load(with_controls(base, controls, others, folder / f"{base}.gguf")) for base in BASES}


def chosen_for(name: str, vocabularies: dict[str, ModelVocabulary]) -> dict[str, ModelVocabulary]:
    """The vocabularies for a template: in turns, or with --full all."""
    base = BASES[list(SOURCES).index(name) % len(BASES)]
    return vocabularies if profiles.is_full() else {base: vocabularies[base]}


@functools.cache
def chat(name: str, vocabulary: ModelVocabulary) -> ChatTemplate:
    template = ChatTemplate(SOURCES[name], vocabulary)
    assert not template.problem, "every template compiles"
    return template


@functools.cache
def authors(name: str) -> AuthorsRenderer:
    return AuthorsRenderer(SOURCES[name])


def authors_texts(name: str, body: Json, specials: Json) -> list[str]:
    """The texts that the authors' renderer makes of a conversation in the forms that templates read; empty: refused."""
    renderer, texts = authors(name), []
    forms: list[list[Json]] = []
    for form in _forms(body["messages"]):
        if form in forms:
            continue
        forms.append(form)
        for without_tools_is_empty in (False, True) if "tools" not in body else (False,):
            try:
                texts.append(renderer.text(form, body, specials, without_tools_is_empty))
            except RefusedError:
                continue
    return sorted(set(texts))


def _forms(messages: Sequence[Json]) -> Iterator[list[Json]]:
    for as_text, null, in_parts, thoughts in itertools.product((False, True), ("kept", "never"), (True, False), (0, 1)):
        form = copy.deepcopy(list(messages))
        for message in form:
            if message["role"] == "developer":
                message["role"] = "system"
            calls = message.get("tool_calls", [])
            for call in calls if not as_text else []:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            if message["content"] is None and not (calls and null == "kept"):
                message["content"] = ""
            if isinstance(message["content"], list) and not in_parts:
                message["content"] = "".join(part["text"] for part in message["content"])
            said = message.pop("reasoning_content", None)
            if said and thoughts == 0:
                message |= {"reasoning_content": said, "reasoning": said, "thought": said, "thinking": said}
            elif said:
                text = [{"type": "text", "text": message["content"]}] if message["content"] else []
                message["content"] = [{"type": "thinking", "thinking": said}, *text]
        yield form


def is_dropped(body: Json, text: str) -> bool:
    """Whether a template left out the tools or a call: then the prompt has to tell of them in words."""
    names = [tool["function"]["description"].split(",")[0] for tool in body.get("tools", ())]
    cities = [
        city
        for message in body["messages"]
        for call in message.get("tool_calls", ())
        for city in json.loads(call["function"]["arguments"]).values()
    ]
    results = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    has_empty_call = any(
        call["function"]["arguments"] == "{}" for message in body["messages"] for call in message.get("tool_calls", ())
    )
    wanted = [*names, *map(str, cities), *(json.dumps(result, ensure_ascii=False)[1:-1] for result in results)]
    plain = text.replace('\\"', '"').replace('"', '\\"')
    return not all(one in text or one in plain for one in wanted) or (has_empty_call and "{}" not in text)


@pytest.mark.parametrize("name", SOURCES)
def test_conversations_become_the_authors_tokens(name: str, vocabularies: dict[str, ModelVocabulary]) -> None:
    num_equal = 0
    chosen = chosen_for(name, vocabularies)
    for base, vocabulary in chosen.items():
        template = chat(name, vocabulary)
        for title, body in CONVERSATIONS.items():
            texts = authors_texts(name, body, vocabulary.special_texts)
            if not texts or (body.get("tools") and all(is_dropped(body, text) for text in texts)):
                continue
            ask = ask_of(body)
            tokens = template.tokens(ask.messages, ask.tools, ask.template_options, ask.continues_final)
            assert tokens in [tokens_of(vocabulary, text) for text in texts], (title, base)
            num_equal += 1
    assert num_equal >= len(chosen) * 13


TAG = "CONTINUE_FINAL_MESSAGE_TAG "
STARTED = ("The answer is", " The answer\nis: ", "")


def continued_texts(name: str, body: Json, specials: Json) -> list[str]:
    """The texts that transformers makes of a conversation whose last message is to be continued."""
    *before, last = body["messages"]
    tagged = {"messages": [*before, last | {"content": last["content"] + TAG}], "add_generation_prompt": False}
    texts = []
    for text in authors_texts(name, body | tagged, specials):
        end = text.rfind(TAG.strip())
        if end >= 0:
            texts.append(text[:end] if text[end : end + len(TAG)] == TAG else text[:end].rstrip())
    return texts


@pytest.mark.parametrize("name", SOURCES)
def test_a_last_message_is_continued_as_transformers_does(name: str, vocabularies: dict[str, ModelVocabulary]) -> None:
    for (base, vocabulary), started in itertools.product(chosen_for(name, vocabularies).items(), STARTED):
        body = {"messages": [user("1+1?"), assistant(started)], "continue_final_message": True}
        texts = continued_texts(name, body, vocabulary.special_texts)
        ask = ask_of(body)
        if texts:
            tokens = chat(name, vocabulary).tokens(ask.messages, continues_final=ask.continues_final)
            assert tokens in [tokens_of(vocabulary, text) for text in texts], (base, started)


@pytest.mark.parametrize("name", SOURCES)
def test_a_later_turn_begins_with_an_earlier_one_as_the_authors_text_does(
    name: str, vocabularies: dict[str, ModelVocabulary]
) -> None:
    turns = [
        system("Be brief."),
        user(LONG),
        assistant("Yes."),
        user("And <|im_end|>?"),
        assistant("No."),
        user("Why?"),
    ]
    (vocabulary,) = list(chosen_for(name, vocabularies).values())[:1]
    template = chat(name, vocabulary)
    earlier, later = [
        (authors_texts(name, {"messages": turns[:end]}, {}), ask_of({"messages": turns[:end]}).messages)
        for end in (2, 6)
    ]
    if earlier[0] and later[0] and later[0][0].startswith(earlier[0][0]):
        tokens = template.tokens(earlier[1])
        assert template.tokens(later[1])[: len(tokens)] == tokens

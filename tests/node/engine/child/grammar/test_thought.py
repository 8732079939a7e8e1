"""A thought before what a grammar describes: the model thinks freely, then the grammar holds."""

from collections.abc import Iterator, Sequence

import pytest

from mycelia.node.engine.child.grammar.checker import Checked, Checker
from mycelia.node.engine.child.grammar.grammar import Grammar, Grammars
from mycelia.node.engine.child.grammar.guidance import GrammarError, guidance
from mycelia.node.engine.child.llama.bindings import L, Log
from mycelia.node.engine.child.llama.models import load_model
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from mycelia.node.engine.models import resolve_model
from mycelia.proto.wire.messages import Sampling

SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
)


class InProcess(Checker):
    """Reads grammars without another process."""

    def check(self, kind: str, text: str) -> Checked:
        return Checked(guidance(kind, text))


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    params = L.llama_model_default_params()
    params.vocab_only = True
    model = load_model(resolve_model("smollm2"), params, Log())
    grammars = Grammars(ModelVocabulary(model))
    grammars.checker = InProcess()
    yield grammars
    L.llama_model_free(model)


def opened(grammars: Grammars, opening: str, closing: str, tokens: Sequence[int] = ()) -> Grammar:
    wanted = Sampling(
        max_tokens=9, grammar=SCHEMA, grammar_kind="json_schema", thought_opening=opening, thought_closing=closing
    )
    grammar = grammars.open(wanted, tokens)
    assert grammar.compile() == ""
    return grammar


def tokens_of(grammars: Grammars, text: str) -> list[int]:
    return grammars.vocabulary.tokenize(text, special=True)


def feed(grammar: Grammar, tokens: Sequence[int]) -> None:
    for token in tokens:
        assert grammar.allowed()[token]
        grammar.accept(token)


@pytest.mark.parametrize(
    ("mark", "closing"),
    [
        ("</think>", "</think>"),
        ("<|im_start|>", "<|im_start|>"),
        ("<|im_start|>final json\n", "<|im_start|>final{...}\n"),
    ],
)
def test_the_grammar_begins_after_a_thought(grammars: Grammars, mark: str, closing: str) -> None:
    grammar = opened(grammars, "", closing)
    feed(grammar, tokens_of(grammars, 'Hm, {"b": no'))
    mask = grammar.allowed()
    assert mask.sum() == grammars.num_vocab - len(grammars.ending), "anything but an end"
    feed(grammar, tokens_of(grammars, mark))
    feed(grammar, tokens_of(grammars, '{"a": 12}'))
    assert grammar.allowed()[grammars.num_vocab], "and there it ends"


def test_the_model_chooses_whether_to_think(grammars: Grammars) -> None:
    opening = tokens_of(grammars, "<think>")
    thinking, plain = opened(grammars, "<think>", "</think>"), opened(grammars, "<think>", "</think>")
    feed(thinking, opening[:1])
    assert list(thinking.allowed().nonzero()[0]) == opening[1:2]
    feed(thinking, opening[1:])
    feed(thinking, tokens_of(grammars, "no JSON</think>"))
    feed(thinking, tokens_of(grammars, '{"a"'))
    feed(plain, tokens_of(grammars, '{"a"'))
    assert not plain.allowed()[opening[0]]
    with pytest.raises(GrammarError):
        plain.accept(opening[0])


@pytest.mark.parametrize("text", ["", "<", "<think>Hm", "<think>Hm</think>", '<think>Hm</think>{"a": 1', '{"a": 1'])
def test_an_answer_that_goes_on_at_another_node(grammars: Grammars, text: str) -> None:
    whole, rest = opened(grammars, "<think>", "</think>"), tokens_of(grammars, text)
    feed(whole, rest)
    assert (opened(grammars, "<think>", "</think>", rest).allowed() == whole.allowed()).all()

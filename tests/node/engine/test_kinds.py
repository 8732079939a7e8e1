"""What a model is for, by what its file names."""

import pytest

from mycelia.node.engine.kinds import EMBEDDING, RERANK, TEXT, can_do, cannot, kind_of


@pytest.mark.parametrize(
    ("architecture", "pooling", "kind"),
    [
        ("llama", "", TEXT),
        ("llama", "0", TEXT),
        ("qwen3", "3", EMBEDDING),
        ("qwen3", "4", RERANK),
        ("bert", "", EMBEDDING),
        ("bert", "1", EMBEDDING),
        ("jina-bert-v2", "4", RERANK),
        ("gemma-embedding", "1", EMBEDDING),
        ("gemma3", "", TEXT),
    ],
)
def test_the_kind_follows_from_pooling_and_architecture(architecture: str, pooling: str, kind: str) -> None:
    assert kind_of(architecture, pooling) == kind


def test_only_text_models_do_the_work_of_another_kind() -> None:
    pairs = [(kind, wanted) for kind in (TEXT, EMBEDDING, RERANK) for wanted in (TEXT, EMBEDDING, RERANK)]
    assert [pair for pair in pairs if can_do(*pair) and pair[0] != pair[1]] == [(TEXT, EMBEDDING)]
    assert (
        cannot("m", TEXT, RERANK) == "'m' is a text model: it ranks no documents, and is asked at /v1/chat/completions"
    )

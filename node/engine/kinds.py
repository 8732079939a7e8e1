"""The kinds of models: those that write text, and those that only read it."""

TEXT, EMBEDDING, RERANK = "text", "embedding", "rerank"

_RANK, _POOLED = "4", ("1", "2", "3")
"""llama.cpp's pooling types as a file names them: rank; and mean, first and last token."""
_ENCODERS = frozenset(
    "bert nomic-bert nomic-bert-moe jina-bert-v2 jina-bert-v3 modern-bert neo-bert eurobert gemma-embedding "  # noqa: SIM905
    "llama-embed".split()
)
"""Architectures that write no text, even where the file names no pooling type."""
_WHAT = {
    TEXT: ("a text model", "/v1/chat/completions"),
    EMBEDDING: ("an embedding model", "/v1/embeddings"),
    RERANK: ("a reranking model", "/v1/rerank"),
}
_LACKS = {TEXT: "it writes no text", EMBEDDING: "it makes no embeddings", RERANK: "it ranks no documents"}


def kind_of(architecture: str, pooling: str) -> str:
    """The kind of a model whose file names this architecture and this pooling type (empty: none)."""
    if pooling == _RANK:
        return RERANK
    return EMBEDDING if pooling in _POOLED or architecture in _ENCODERS else TEXT


def can_do(kind: str, wanted: str) -> bool:
    """Whether a model of ``kind`` does the work of the kind ``wanted``: models that write text also make embeddings."""
    return kind == wanted or (kind, wanted) == (TEXT, EMBEDDING)


def cannot(model: str, kind: str, wanted: str) -> str:
    """The message for work of the kind ``wanted`` that a model of another kind is asked for."""
    what, path = _WHAT[kind]
    return f"{model!r} is {what}: {_LACKS[wanted]}, and is asked at {path}"


def described(kind: str) -> str:
    """Such as "a text model"."""
    return _WHAT[kind][0]

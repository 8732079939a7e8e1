"""Paths as clients spell them, and the one that they may have meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.node.serve.http.paths import no_such_path, usual

KNOWN = [
    "/v1/health",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{name:path}",
    "/health",
    "/",
    "/metrics",
]


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1//chat/completions//", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions/", "/v1/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/models/org/name", "/v1/models/org/name"),
        ("/v1/models/v1/models", "/v1/models/v1/models"),
        ("/openai/deployments/gpt-4/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/gpt-4/images", "/openai/deployments/gpt-4/images"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        ("/v1/", "/v1"),
        ("/api/models", "/api/models"),
        ("/modelsx", "/modelsx"),
        ("/health/", "/health"),
    ],
)
def test_spellings_of_a_path(path: str, same: str) -> None:
    assert usual(path) == same


@given(st.lists(st.sampled_from(["/", "v1", "openai", "models", "chat/completions", "api", "x", " ", "\n", "."])))
def test_the_usual_path_has_no_other_spelling(parts: list[str]) -> None:
    path = "".join(parts)
    assert usual(usual(path)) == usual(path)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/chat/completion", "/v1/chat/completions"),
        ("/v2/models", "/v1/models"),
        ("/proxy/v1/chat/completions", "/v1/chat/completions"),
        ("/healthz", "/health"),
        ("/v1/chat", "/v1/chat/completions"),
    ],
)
def test_the_path_that_was_meant_is_named(path: str, meant: str) -> None:
    assert no_such_path(path, KNOWN).endswith(f"did you mean {meant}?")


def test_an_unknown_path_names_where_the_api_is() -> None:
    message = no_such_path("/" + "x" * 9_000, KNOWN)
    assert "did you mean" not in no_such_path("/v1", KNOWN)
    assert "/v1" in message and "/openapi.json" in message and len(message) < 300

import pytest


@pytest.fixture(scope="session")
def byte_tokenizer() -> object:
    """A vocabulary of single bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")

"""Which format a model writes."""

from collections.abc import Callable

from mycelia.node.formats.families import format_named
from mycelia.node.formats.signs import CALL_SIGNS, CALL_TOKENS, THOUGHT_SIGNS, THOUGHT_TOKENS

Signs = list[tuple[tuple[str, ...], str]]


def format_name(template: str | None, has_token: Callable[[str], bool]) -> str:
    """The name of the format that a model writes. template: the source of its chat template. has_token: whether its
    vocabulary has a token of this text."""
    text = template or ""
    calls = _found(text, CALL_SIGNS) or _token(CALL_TOKENS, has_token)
    thoughts = _found(text, THOUGHT_SIGNS) or _token(THOUGHT_TOKENS, has_token)
    return f"{calls or 'hermes'}+{thoughts}" if thoughts else calls or "hermes"


def control_spellings(
    name: str, tokens_of: Callable[[str], list[int]], piece: Callable[[int], bytes]
) -> dict[int, str]:
    """The spellings of the control tokens that the format ``name`` needs to see: answers are text without them.
    tokens_of: the tokens of a text, control tokens included. piece: a token's bytes; empty for a control token."""
    spellings = {}
    for text in sorted(format_named(name).token_texts()):
        tokens = tokens_of(text)
        if len(tokens) == 1 and not piece(tokens[0]):
            spellings[tokens[0]] = text
    return spellings


def _found(text: str, signs: Signs) -> str:
    return next((name for texts, name in signs if all(sign in text for sign in texts)), "")


def _token(tokens: dict[str, str], has_token: Callable[[str], bool]) -> str:
    return next((name for token, name in tokens.items() if has_token(token)), "")

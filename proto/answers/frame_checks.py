"""Frames of an answer have what was asked for, and no more."""

from collections.abc import Sequence

from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, Sampling, TokenLogprobs, Tokens


def check_logprobs(logprobs: Sequence[TokenLogprobs], tokens: Sequence[int], most: int) -> None:
    """Raises RemoteError unless ``logprobs`` are those of ``tokens``, with at most ``most`` alternatives each."""
    if [entry.chosen.token for entry in logprobs] != list(tokens):
        raise RemoteError("not the logprobs that were asked for")
    if any(len(entry.top) > most for entry in logprobs):
        raise RemoteError("more alternatives than were asked for")


def checked_tokens(frame: Tokens, most: int, sampling: Sampling) -> list[int]:
    """The frame's tokens. Raises RemoteError if they are more than ``most``, or if its text or logprobs do not fit."""
    tokens = unpack_tokens(frame.tokens)
    if not tokens:
        raise RemoteError("text without tokens")  # (no max_tokens would bound it)
    if len(tokens) > most:
        raise RemoteError("more tokens than were asked for")
    if len(frame.text) > len(tokens) * MAX_TEXT_BYTES_PER_TOKEN:
        raise RemoteError("more text than the tokens can have")
    check_logprobs(frame.logprobs, tokens if sampling.logprobs else (), sampling.logprobs)
    return tokens

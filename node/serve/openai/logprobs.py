"""The logprobs of an answer and of its prompt, in the forms of OpenAI's two APIs and of vLLM."""

from collections import deque
from collections.abc import Sequence

from mycelia.node.serve.openai.response_types import (
    ChatLogprobs,
    PromptLogprob,
    PromptLogprobList,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
)
from mycelia.proto.wire.messages import Logprob, TokenLogprobs


class ContentLogprobs:
    """Finds the logprobs of the tokens whose text belongs to an answer's content. Tokens of thoughts, calls and stop
    strings have logprobs, but their text is no content; logprobs may come before the text of their tokens, when a
    character is not whole yet."""

    def __init__(self) -> None:
        self._text = ""
        """The text from ``_at`` on."""
        self._at = self._num_bytes = 0
        """Where the text ends that was asked for, in characters and in bytes."""
        self._waiting: deque[TokenLogprobs] = deque()
        self._start = 0
        """Where the text of the first waiting token begins, in bytes."""

    def add(self, text: str, logprobs: Sequence[TokenLogprobs]) -> None:
        """The next text of the answer, and the next logprobs. Mutates."""
        self._text += text
        self._waiting += logprobs

    def of(self, at: int, text: str) -> list[TokenLogprobs]:
        """Those of the content ``text``, which begins at this character of the answer. Each is returned once; ask for
        the content in its order. Mutates."""
        skipped = max(at - self._at, 0)
        start = self._num_bytes + _num_bytes(self._text[:skipped])
        stop = start + _num_bytes(text)
        self._text = self._text[skipped + len(text) :]
        self._at, self._num_bytes = max(at, self._at) + len(text), stop
        found = []
        while self._waiting and self._start < stop:
            entry = self._waiting.popleft()
            self._start += len(entry.chosen.text)
            if self._start > start or not entry.chosen.text:
                found.append(entry)
        return found

    def end(self) -> list[TokenLogprobs]:
        """Those of tokens without text at the end of the answer, such as an end token. Mutates."""
        ended, self._waiting = list(self._waiting), deque()
        with_text = next((place for place, entry in enumerate(ended) if entry.chosen.text), len(ended))
        return ended[:with_text]


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def mean_logprob(logprobs: Sequence[TokenLogprobs]) -> float:
    """The mean over an answer's tokens: 0 for an answer without tokens."""
    return sum(entry.chosen.logprob for entry in logprobs) / max(len(logprobs), 1)


def chat_logprobs(entries: Sequence[TokenLogprobs], num_top: int) -> ChatLogprobs:
    return ChatLogprobs([_token_logprob(entry, num_top) for entry in entries])


def text_logprobs(entries: Sequence[TokenLogprobs], num_top: int, offset: int, begins_prompt: bool) -> TextLogprobs:
    """offset: characters before the first token. begins_prompt: the first token is a prompt's, without probability."""
    told = TextLogprobs([], [], [], [])
    for place, entry in enumerate(entries):
        has_none = begins_prompt and place == 0
        text = _spelled(entry.chosen)
        told.tokens.append(text)
        told.token_logprobs.append(None if has_none else entry.chosen.logprob)
        told.top_logprobs.append(None if has_none else {_spelled(top): top.logprob for top in entry.top[:num_top]})
        told.text_offset.append(offset)
        offset += len(text)
    return told


def prompt_logprobs(entries: Sequence[TokenLogprobs], num_top: int) -> PromptLogprobList:
    """In vLLM's form. entries: of all tokens of the prompt."""
    return [None, *(_by_token(entry, num_top) for entry in entries[1:])]


def prompt_text(entries: Sequence[TokenLogprobs]) -> str:
    return b"".join(entry.chosen.text for entry in entries).decode("utf-8", "replace")


def _by_token(entry: TokenLogprobs, num_top: int) -> dict[str, PromptLogprob]:
    ranks = {top.token: place for place, top in enumerate(entry.top, 1)}
    told = [entry.chosen, *(top for top in entry.top[:num_top] if top.token != entry.chosen.token)]
    return {str(one.token): PromptLogprob(one.logprob, ranks.get(one.token), _spelled(one)) for one in told}


def _token_logprob(entry: TokenLogprobs, num_top: int) -> TokenLogprob:
    chosen = _top_logprob(entry.chosen)
    tops = [_top_logprob(top) for top in entry.top[:num_top]]
    return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, tops)


def _top_logprob(entry: Logprob) -> TopLogprob:
    return TopLogprob(_spelled(entry), entry.logprob, list(entry.text))


def _spelled(entry: Logprob) -> str:
    return entry.text.decode("utf-8", "replace")

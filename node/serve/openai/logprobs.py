"""The logprobs of an answer and of its prompt, in the forms of OpenAI's two APIs and of vLLM."""

from collections.abc import Sequence

from mycelia.node.serve.openai.types import (
    ChatLogprobs,
    PromptLogprob,
    PromptLogprobList,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
)
from mycelia.proto.wire.messages import Logprob, TokenLogprobs


class ContentLogprobs:
    """Passes on the logprobs of the tokens whose text belongs to the answer. Tokens of a stop string have logprobs but
    no text in the answer; logprobs may come before the text of their tokens, when a character is not whole yet."""

    def __init__(self) -> None:
        self._waiting: list[TokenLogprobs] = []
        self._num_bytes = 0
        """Bytes of text that came."""
        self._start = 0
        """Where the text of the first waiting token begins."""

    def add(self, text: str, logprobs: Sequence[TokenLogprobs]) -> list[TokenLogprobs]:
        """Those that may be passed on after ``text`` came, and further logprobs with it. Mutates."""
        self._num_bytes += len(text.encode("utf-8", "replace"))
        self._waiting += logprobs
        passed = 0
        while passed < len(self._waiting) and self._start < self._num_bytes:
            self._start += len(self._waiting[passed].chosen.text)
            passed += 1
        ready, self._waiting = self._waiting[:passed], self._waiting[passed:]
        return ready

    def end(self) -> list[TokenLogprobs]:
        """Those of tokens without text at the end of the answer, such as an end token. Mutates."""
        ended, self._waiting = self._waiting, []
        with_text = next((place for place, entry in enumerate(ended) if entry.chosen.text), len(ended))
        return ended[:with_text]


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

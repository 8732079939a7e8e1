"""A small tokenizer, which treats control tokens as llama.cpp does."""

import re
from collections.abc import Mapping

from mycelia.node.engine.child.controls import Controls

SPECIALS = {"<|im_start|>": 1000, "<|im_end|>": 1001}


class Letters:
    """A tokenizer: characters are tokens, and so are control tokens."""

    def __init__(
        self,
        controls: Mapping[str, int] = SPECIALS,
        user_defined: Mapping[str, int] | None = None,
        bos_token: int | None = None,
        bos_text: str = "",
    ) -> None:
        self._user_defined = user_defined or {}
        self._specials = {**controls, **self._user_defined}
        self.controls = Controls(controls, self._user_defined)
        self.bos_token = bos_token
        self.special_texts = {"bos_token": bos_text, "eos_token": ""}
        self.texts: list[str] = []

    def tokenize(self, text: str, special: bool, continues: bool = False) -> list[int]:
        self.texts.append(text)
        counting = self._specials if special else self._user_defined
        pattern = "|".join(map(re.escape, sorted(counting, key=len, reverse=True))) or "(?!)"
        ends, tokens = 0, []
        for match in re.finditer(pattern, text):
            tokens += [*map(ord, text[ends : match.start()]), counting[match[0]]]
            ends = match.end()
        return [*tokens, *map(ord, text[ends:])]

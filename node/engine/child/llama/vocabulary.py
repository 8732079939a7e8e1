"""The vocabulary of a loaded model, and the texts in its file. Immutable: any thread may use it at any time."""

import ctypes
import re
from functools import cached_property
from typing import Any

from mycelia.node.engine.child.controls import Controls
from mycelia.node.engine.child.llama.bindings import L, address_of_tokenize
from mycelia.proto.wire.errors import LocalError

_READ_ON_REQUEST = L.LLAMA_TOKEN_ATTR_CONTROL | L.LLAMA_TOKEN_ATTR_UNKNOWN
_CONTROL_LIKE = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)
_LONER = "\ufdd0"


class ModelVocabulary:
    """Texts to tokens and back."""

    def __init__(self, model: Any) -> None:
        """model: llama.cpp's handle, which must outlive this object."""
        self.model = model
        self._vocab = self.handle = L.llama_model_get_vocab(model)
        self.num_vocab = int(L.llama_vocab_n_tokens(self._vocab))
        self._adds_blank = b"".join(map(self.piece, self._tokenize("x", False))).startswith(b" ")
        """Whether llama.cpp puts a blank before a text."""

    def tokenize(self, text: str, special: bool, continues: bool = False) -> list[int]:
        """The tokens of ``text``, none added. special: spelled control tokens become control tokens. continues: the
        text goes on after another one, so that no blank belongs before it. Raises LocalError for a text that is too
        long."""
        if not continues or not self._adds_blank:
            return self._tokenize(text, special)
        # (after a character that no token contains besides others)
        before = self._tokenize(_LONER, special)
        tokens = self._tokenize(_LONER + text, special)
        return tokens[len(before) :] if tokens[: len(before)] == before else self._tokenize(text, special)

    def _tokenize(self, text: str, special: bool, adds: bool = False) -> list[int]:
        """adds: with the tokens that llama.cpp puts around a text."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = int(L.llama_tokenize(self._vocab, data, len(data), buffer, size, adds, special))
            if count >= 0:
                return buffer[:count]
            if count == -(2**31):
                raise LocalError("the text is too long to tokenize")
            size = -count

    def piece(self, token: int) -> bytes:
        """The bytes of a token, empty for control tokens. Raises ValueError for a bad id, which would abort()."""
        if not 0 <= token < self.num_vocab:
            raise ValueError(f"token {token} is not in the vocabulary")
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = int(L.llama_token_to_piece(self._vocab, token, buffer, size, 0, False))
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def has_token(self, text: str) -> bool:
        """Whether one token is spelled so; control tokens count."""
        return len(self.tokenize(text, special=True)) == 1

    @property
    def tokenize_address(self) -> int:
        """The address of llama.cpp's function that tokenizes, for a library that calls it with ``handle``."""
        return address_of_tokenize()

    def spellings(self) -> list[bytes]:
        """The bytes of all tokens, for grammars. No text has a control token, an unknown or an unused one: they are
        spelled with a byte that is in no UTF-8 text and their name."""
        hidden = L.LLAMA_TOKEN_ATTR_CONTROL | L.LLAMA_TOKEN_ATTR_UNKNOWN | L.LLAMA_TOKEN_ATTR_UNUSED
        spellings = []
        for token in range(self.num_vocab):
            is_text = not L.llama_vocab_get_attr(self._vocab, token) & hidden
            piece = self.piece(token) if is_text else b""
            spellings.append(piece or b"\xff" + L.llama_vocab_get_text(self._vocab, token))
        return spellings

    def spelling(self, token: int) -> bytes:
        """The bytes of a token; control tokens as they are spelled. Raises ValueError as ``piece`` does."""
        return self.piece(token) or bytes(L.llama_vocab_get_text(self._vocab, token) or b"")

    def longest_piece(self) -> int:
        """Length in bytes of the longest token; control tokens count as they are spelled."""
        vocab, piece = self._vocab, L.llama_token_to_piece
        return max(1, *(-int(piece(vocab, token, None, 0, 0, True)) for token in range(self.num_vocab)))

    def ends_generation(self, token: int) -> bool:
        return bool(L.llama_vocab_is_eog(self._vocab, token))

    def control_tokens(self) -> frozenset[int]:
        vocab = self._vocab
        return frozenset(token for token in range(self.num_vocab) if L.llama_vocab_is_control(vocab, token))

    @cached_property
    def controls(self) -> Controls:
        """The control tokens as they are spelled."""
        controls, user_defined = [], []
        for token in range(self.num_vocab):
            attributes = int(L.llama_vocab_get_attr(self._vocab, token))
            if attributes & _READ_ON_REQUEST:
                controls.append(self._text(token))
            elif attributes & L.LLAMA_TOKEN_ATTR_USER_DEFINED and _CONTROL_LIKE.fullmatch(text := self._text(token)):
                user_defined.append(text)
        return Controls(controls, user_defined)

    @property
    def chat_template(self) -> str | None:
        """The source of the model's own Jinja template."""
        return self._template(None)

    @property
    def tools_template(self) -> str | None:
        """The source of a second template, which some models have for conversations with tools."""
        return self._template(b"tool_use")

    def _template(self, name: bytes | None) -> str | None:
        text = L.llama_model_chat_template(self.model, name)
        return text.decode("utf-8", "replace") if text else None

    @property
    def rerank_template(self) -> str | None:
        """The prompt of a reranking model, with ``{query}`` and ``{document}`` in it."""
        return self._template(b"rerank")

    @property
    def around_texts(self) -> tuple[list[int], list[int]]:
        """The tokens before and after a text to embed."""
        plain, whole = self._tokenize("x", False), self._tokenize("x", False, adds=True)
        starts = range(len(whole) - len(plain) + 1)
        start = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
        return whole[:start], whole[start + len(plain) :]

    @property
    def around_pairs(self) -> tuple[list[int], list[int], list[int]]:
        """The tokens before a query, between it and a document, and after the document, as llama-server has them."""
        vocab = self._vocab
        bos, eos, sep = (int(one(vocab)) for one in (L.llama_vocab_bos, L.llama_vocab_eos, L.llama_vocab_sep))
        before = [bos] if L.llama_vocab_get_add_bos(vocab) else []
        after = [eos if eos >= 0 else sep] if L.llama_vocab_get_add_eos(vocab) else []
        between = [sep] if L.llama_vocab_get_add_sep(vocab) else []
        return [one for one in before if one >= 0], [one for one in after + between if one >= 0], after

    @property
    def bos_token(self) -> int | None:
        """The token with which every prompt of this model begins, if there is one."""
        token = int(L.llama_vocab_bos(self._vocab)) if L.llama_vocab_get_add_bos(self._vocab) else -1
        return token if token >= 0 else None

    @cached_property
    def special_texts(self) -> dict[str, str]:
        """The control tokens that templates call by names."""
        tokens = {
            "bos_token": L.llama_vocab_bos(self._vocab),
            "eos_token": L.llama_vocab_eos(self._vocab),
            "pad_token": L.llama_vocab_pad(self._vocab),
        }
        names = {name: self._text(token) for name, token in tokens.items() if token >= 0}
        return {"bos_token": "", "eos_token": ""} | names

    def _text(self, token: int) -> str:
        """The spelling of a token that stands for itself."""
        text: bytes = L.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

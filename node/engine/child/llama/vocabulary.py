"""The vocabulary of a loaded model, and the texts in its file. Immutable: any thread may use it at any time."""

import ctypes
from typing import Any

from mycelia.node.engine.child.llama.bindings import L, address_of_tokenize
from mycelia.proto.wire.errors import LocalError


class ModelVocabulary:
    """Texts to tokens and back."""

    def __init__(self, model: Any) -> None:
        """model: llama.cpp's handle, which must outlive this object."""
        self.model = model
        self._vocab = self.handle = L.llama_model_get_vocab(model)
        self.num_vocab = int(L.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The tokens of ``text``, none added. special: spelled control tokens become control tokens. Raises LocalError
        for a text that is too long."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = int(L.llama_tokenize(self._vocab, data, len(data), buffer, size, False, special))
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

    def longest_piece(self) -> int:
        """Length in bytes of the longest token; control tokens count as they are spelled."""
        vocab, piece = self._vocab, L.llama_token_to_piece
        return max(1, *(-int(piece(vocab, token, None, 0, 0, True)) for token in range(self.num_vocab)))

    def ends_generation(self, token: int) -> bool:
        return bool(L.llama_vocab_is_eog(self._vocab, token))

    def control_tokens(self) -> frozenset[int]:
        vocab = self._vocab
        return frozenset(token for token in range(self.num_vocab) if L.llama_vocab_is_control(vocab, token))

    @property
    def chat_template(self) -> str | None:
        """The source of the model's own Jinja template."""
        text = L.llama_model_chat_template(self.model, None)
        return text.decode("utf-8", "replace") if text else None

    @property
    def bos_token(self) -> int | None:
        """The token with which every prompt of this model begins, if there is one."""
        return int(L.llama_vocab_bos(self._vocab)) if L.llama_vocab_get_add_bos(self._vocab) else None

    def special_texts(self) -> tuple[str, str]:
        """The spellings of the begin and end tokens, for templates."""
        begin, end = L.llama_vocab_bos(self._vocab), L.llama_vocab_eos(self._vocab)
        texts = [L.llama_vocab_get_text(self._vocab, token) if token >= 0 else b"" for token in (begin, end)]
        return texts[0].decode("utf-8", "replace"), texts[1].decode("utf-8", "replace")

"""The part of an answer that its entry node keeps: what the client was told, and what still waits to be told."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from mycelia.node.engine.engine import Engine
from mycelia.node.requests.answer_frames import FRAME_BYTES, AnswerFrames
from mycelia.node.requests.prompt_logprobs import PromptReport
from mycelia.node.requests.spelled_text import SpelledText
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import (
    MAX_TEXT_BYTES_PER_FRAME,
    MAX_TEXT_TOKENS,
    EntryFrame,
    PromptLogprobs,
    Text,
    TokenLogprobs,
)

_UTF_8 = codecs.getincrementaldecoder("utf-8")


@dataclass
class RunningAnswer:
    """What the entry node knows of an answer on its way to the client."""

    engine: Engine
    """This node's own engine of the model."""
    frames: AnswerFrames
    started_at: float
    deadline_s: float | None
    """Counted from ``started_at``; None: no limit."""
    client: bytes
    """See ``Entry.ask``."""
    subnet: str
    """The client's, see ``Overlay.subnet``."""
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _UTF_8("replace"))
    _untold: list[int] = field(default_factory=list)
    _held: str = ""
    """Tokens that were not sent to the client yet, and their text up to its last whole character. A frame that ends
    inside a character, which is rare, waits for the next one. So the client's text is always the text of the client's
    tokens, and the answer can continue at another node with neither a gap nor a repetition."""
    spelled: SpelledText | None = None
    """Set if the client reads the model's format."""
    opened: str = ""
    """See ``Route.opened``."""
    num_tokens: int = 0
    """Tokens of the answer that came, those from before a rejoin included."""
    first_token_at: float | None = None
    was_told: bool = True
    """Whether a frame was sent since the last check, or the request came after it."""
    attempts: dict[int, trio.CancelScope] = field(default_factory=dict)
    expiry: trio.CancelScope | None = None
    """The scope of the task that ends the answer at its deadline; None: there is no deadline."""
    report: PromptReport | None = None
    """The logprobs of the prompt, if the client asks for them."""
    is_read_too_slowly: bool = False
    """More bytes wait than allowed: the answer is about to be ended."""

    def tell(self, frame: EntryFrame, num_bytes: int | None = None) -> None:
        """num_bytes: see ``AnswerFrames.put``."""
        self.was_told = True
        if not self.frames.put(frame, num_bytes):
            self.is_read_too_slowly = True

    def tell_known_logprobs(self) -> None:
        """Tell the client, once, what is known of its prompt from earlier ones."""
        for frame in self.report.known_frames() if self.report is not None else ():
            self.tell(frame, FRAME_BYTES)  # (the table and this answer hold the same objects)

    def report_prompt(self, frame: PromptLogprobs) -> None:
        """The serving node reported more of the prompt."""
        assert self.report is not None
        self.tell_known_logprobs()
        self.report.add(frame)
        self.tell(frame)

    def deliver(
        self, data: bytes, tokens: Sequence[int] = (), logprobs: tuple[TokenLogprobs, ...] = (), is_last: bool = False
    ) -> None:
        """Tells the client the next bytes and tokens, up to the last whole character; at the end, the rest."""
        if self.spelled is not None:
            data, logprobs = self.spelled.spelled(data, tokens), self.spelled.logprobs(logprobs)
        self._untold.extend(tokens)
        self.num_tokens += len(tokens)
        text, was_held = self._decoder.decode(data, is_last), self._held
        if was_held:
            self.tell(Text(text=was_held))
            self._held = ""
        is_whole = is_last or was_held or not self._decoder.getstate()[0]
        if not is_whole:
            self._held, text = text, ""
        told = self._untold[:MAX_TEXT_TOKENS] if is_whole else []
        while len(text) > MAX_TEXT_BYTES_PER_FRAME:  # (spelled control tokens make it longer than it came)
            self.tell(Text(text=text[:MAX_TEXT_BYTES_PER_FRAME]))
            text = text[MAX_TEXT_BYTES_PER_FRAME:]
        if text or logprobs or told:
            del self._untold[: len(told)]
            self.tell(Text(text=text, logprobs=logprobs, tokens=pack_tokens(told)))

    def left_s(self) -> float | None:
        return None if self.deadline_s is None else self.started_at + self.deadline_s - trio.current_time()

"""The step loop with a llama.cpp made of lists: the handling of decode calls that fail in any way."""

import threading
import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child import loop
from mycelia.node.engine.child.grammar.grammar import Grammar
from mycelia.node.engine.child.job import Limits
from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.llama import ABORTED, NO_ROOM, OK, RESTORED, Llama
from mycelia.node.engine.child.llama.sampler import Sampler
from mycelia.node.engine.child.loop import StepLoop, TextRead
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.node.engine.engine import COALESCE_S
from mycelia.proto.cache.meters import TokenRateMeter
from mycelia.proto.cache.sharing import Owner
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.proto.wire.messages import Sampling

VOCAB, END = 50, 49


class ListSampler(Sampler):
    """Chooses the last token plus one."""

    def __init__(self, llama: "ListLlama") -> None:
        self._next = llama.next_tokens

    def sample(self, output: int) -> int:
        return self._next[output]

    def choose(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> int | None:
        token = int(logits.argmax())
        return token if allowed[token] else None

    def close(self) -> None:
        pass


class NoEmbedder:
    max_tokens = step_tokens = 0

    def begin(self, tokens: list[int]) -> None: ...

    def step(self) -> None: ...

    def close(self) -> None: ...


NO_EMBEDDINGS = EmbeddingQueue(NoEmbedder(), 1, VOCAB)


class NoFlag:
    def raise_it(self) -> None: ...

    def clear(self) -> None: ...


class ListLlama(Llama):
    """Sequences are lists of tokens. ``results`` scripts the next decode calls; an abort keeps ``finished`` rows."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self.next_tokens: dict[int, int] = {}
        self.results: list[int] = []
        self.finished = 0
        self.copies_fail = False
        self.restores: list[int] = []
        """Results of the next restores; success when empty."""
        self.abort = NoFlag()  # type: ignore[assignment]
        self.calls: list[list[BatchRow]] = []
        self.replaced: list[tuple[int, int, int]] = []

    def decode(self, rows: Sequence[BatchRow]) -> tuple[int, list[int]]:
        self.calls.append(list(rows))
        result = self.results.pop(0) if self.results else OK
        outputs, length, left = [], 0, self.finished
        for row in rows:
            held = self.cells.setdefault(row.seq_id, [])
            assert len(held) == row.start, "a hole or a repeated position"
            if result == OK:
                held += row.tokens
            elif result == ABORTED:
                held += row.tokens[:left]
                left -= min(left, len(row.tokens))
            length += len(row.tokens)
            outputs.append(length - 1 if row.num_outputs else -1)
            self.next_tokens[length - 1] = min(row.tokens[-1] + 1, END)
        return result, outputs

    def end(self, seq_id: int) -> int:
        return len(self.cells.get(seq_id, []))

    def clear(self, seq_id: int) -> None:
        self.cells.pop(seq_id, None)

    def clear_all(self) -> None:
        self.cells.clear()

    def truncate(self, seq_id: int, length: int) -> bool:
        del self.cells.setdefault(seq_id, [])[length:]
        return len(self.cells[seq_id]) == length

    def copy_prefix(self, source: int, target: int, length: int) -> bool:
        if self.copies_fail:
            self.cells.pop(target, None)
            return False
        self.cells[target] = self.cells[source][:length]
        return True

    def replace_prefix(self, source: int, target: int, length: int) -> bool:
        assert self.cells[source][:length] == self.cells[target][:length]
        self.replaced.append((source, target, length))
        return True

    def save_range(self, seq_id: int, start: int, end: int) -> memoryview | None:
        tokens = self.cells[seq_id][start:end]
        assert len(tokens) == end - start
        return memoryview(pack_tokens(tokens))

    def restore_range(self, blob: memoryview, held: tuple[int, int], target: int, start: int, end: int) -> int:
        assert len(blob) == 4 * (held[1] - held[0]) and held[0] <= start < end <= held[1]
        assert len(self.cells.setdefault(target, [])) == start
        if self.restores:
            return self.restores.pop(0)
        self.cells[target] += unpack_tokens(bytes(blob))[start - held[0] : end - held[0]]
        return RESTORED

    def piece(self, token: int) -> bytes:
        return b"%d " % token

    def ends_generation(self, token: int) -> bool:
        return token == END

    def logits(self, output: int) -> NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        logits[self.next_tokens[output]] = 1.0
        return logits

    def sampler(self, sampling: Sampling, prompt: Sequence[int], resumed: int = 0) -> Sampler:
        return ListSampler(self)


class FakeGrammar(Grammar):
    """A grammar that allows the tokens listed in its text, and is ready at once unless the text is "endless"."""

    opened: ClassVar[list["FakeGrammar"]] = []
    released: ClassVar[threading.Event] = threading.Event()
    """Ends what is endless."""

    def __init__(self, sampling: Sampling, tokens: Sequence[int]) -> None:
        self.text = sampling.grammar
        self.is_closed = False
        self.opened.append(self)

    def compile(self) -> str:
        if self.text == "endless":
            self.released.wait()
        return self.text if self.text in ("nonsense", "endless") else ""

    def allowed(self) -> NDArray[np.bool_]:
        mask = np.zeros(VOCAB + 1, np.bool_)
        mask[[int(word) for word in self.text.split()]] = True
        return mask

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class Inbox(pipe.Replies):
    """Collects the messages to the parent."""

    def __init__(self) -> None:
        self.messages: list[ipc.FromChild] = []

    def put(self, message: ipc.FromChild) -> None:
        self.messages.append(message)

    def flush(self) -> None:
        pass


class Rig:
    """A loop, its model and its messages."""

    def __init__(
        self, cells: int = 200, tiers: TierStore | None = None, check: bool = True, check_idle: bool = False
    ) -> None:
        limits = Limits(num_cells=cells, context_tokens=cells, num_vocab=VOCAB, num_sequences=9, slots=4)
        self.llama, self.replies = ListLlama(), Inbox()
        self.loop = StepLoop(self.llama, limits, self.replies, check, FakeGrammar, NO_EMBEDDINGS, tiers, check_idle)

    def submit(
        self,
        key: int,
        prompt: Sequence[int],
        max_tokens: int = 3,
        stop: tuple[str, ...] = (),
        grammar: str = "",
        due_s: float | None = None,
        owner: Owner = Owner(),
        open_tokens: int = 0,
    ) -> None:
        sampling = Sampling(max_tokens=max_tokens, stop=stop, grammar=grammar)
        self.loop.inbox.put(ipc.Submit(key, pack_tokens(prompt), sampling, 0, due_s, b"", "", *owner, open_tokens))

    def run(self, key: int) -> ipc.Ended | ipc.Refused:
        """Step until ``key`` has ended; invariants are checked after every end."""
        for _ in range(1000):
            for message in self.replies.messages:
                if isinstance(message, ipc.Ended | ipc.Refused) and message.key == key:
                    return message
            waits = self.loop.grammars.num_waiting > 0 or len(self.loop.grammars) > 0
            assert self.loop.has_work or waits, f"nothing to do, and {key} has not ended"
            self.loop.step()
        raise AssertionError(f"{key} does not end")

    def text(self, key: int) -> bytes:
        return b"".join(m.text for m in self.replies.messages if isinstance(m, ipc.Generated) and m.key == key)

    def tokens(self, key: int) -> list[int]:
        frames = [m for m in self.replies.messages if isinstance(m, ipc.Generated) and m.key == key]
        return [token for frame in frames for token in unpack_tokens(frame.tokens)]


def test_an_answer_and_its_end() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3], 5)
    rig.submit(2, [46], 5)
    ended = rig.run(1)
    assert isinstance(ended, ipc.Ended) and ended.reason == "length" and ended.usage.completion_tokens == 5
    assert rig.tokens(1) == [4, 5, 6, 7, 8]
    stopped = rig.run(2)
    assert isinstance(stopped, ipc.Ended) and stopped.reason == "stop" and rig.tokens(2) == [47, 48]


def test_an_abort_keeps_what_was_finished_and_redoes_lost_logits() -> None:
    for finished in range(16):
        rig = Rig()
        rig.submit(1, [1] * 9)
        rig.submit(2, [2] * 6)
        rig.llama.results, rig.llama.finished = [ABORTED], finished
        rig.run(1), rig.run(2)
        assert rig.tokens(1) == [2, 3, 4] and rig.tokens(2) == [3, 4, 5]


@pytest.mark.parametrize(("can_abort", "num_tokens"), [(True, 2048), (False, 960)])
def test_chunks_are_short_where_nothing_ends_a_running_step(can_abort: bool, num_tokens: int) -> None:
    rig = Rig(cells=4000)
    rig.llama.can_abort = can_abort
    rig.loop.shared_until_s = 0.0
    rig.loop.jobs.reports.prefill.add(4000, 1.0)
    rig.submit(1, [1] * 3000)
    rig.loop.step()
    assert [sum(len(row.tokens) for row in call) for call in rig.llama.calls] == [num_tokens]


def test_steps_are_shorter_for_a_while_after_requests_came_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rig = Rig(cells=4000)

    def first_step(key: int) -> int:
        """Number of tokens of a long prompt in its first step."""
        rig.loop.jobs.reports.prefill = TokenRateMeter(100)
        rig.loop.jobs.reports.prefill.add(1_000, 1.0)
        rig.llama.calls.clear()
        rig.submit(key, [key % 2 + 1] * 3_000, 1)
        rig.run(key)
        return sum(len(row.tokens) for row in rig.llama.calls[0])

    assert first_step(0) < 600, "those that could go nowhere else come at once"
    now += loop.SHARED_S + 1
    assert first_step(1) == first_step(2) > 1_500
    rig.submit(3, [5, 6, 7])
    rig.loop.step()
    rig.submit(4, [8])
    rig.run(3), rig.run(4)
    assert first_step(5) < 600
    now += loop.SHARED_S + 1
    assert first_step(6) > 1_500


def test_no_room_evicts_then_gives_up_the_newest() -> None:
    rig = Rig()
    rig.submit(1, [9, 9, 9])
    rig.run(1)
    rig.submit(2, [1, 2])
    rig.submit(3, [5, 6])
    rig.llama.results = [NO_ROOM, NO_ROOM]
    refused = rig.run(3)
    assert isinstance(refused, ipc.Refused) and refused.code == "overloaded" and refused.retryable
    assert isinstance(rig.run(2), ipc.Ended)
    assert any(isinstance(m, ipc.CacheDelta) and m.evicted == [0] for m in rig.replies.messages)


def test_a_job_that_is_given_up_gives_up_its_duplicates_first() -> None:
    """Tokens that enter the tree must not occupy more cells than the tree counts."""
    rig = Rig()
    rig.submit(1, [1, 2, 3], 6)
    rig.submit(2, [1, 2, 3], 30)
    rig.run(1)
    num_before = len(rig.llama.replaced)
    rig.llama.results = [NO_ROOM]
    assert isinstance(rig.run(2), ipc.Refused)
    assert [length for _, _, length in rig.llama.replaced[num_before:]] == [8]


def test_a_broken_decode_fails_everybody_and_starts_over() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3])
    rig.run(1)
    rig.submit(2, [1, 2, 3])
    rig.submit(3, [7])
    rig.llama.results = [-3]
    for key in (2, 3):
        refused = rig.run(key)
        assert isinstance(refused, ipc.Refused) and refused.code == "internal" and refused.retryable
    assert any(isinstance(m, ipc.CacheDelta) and m.reset for m in rig.replies.messages)
    rig.submit(4, [1, 2, 3])
    ended = rig.run(4)
    assert isinstance(ended, ipc.Ended) and ended.usage.cached_tokens == 0


def test_a_copy_that_fails_is_a_miss() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3])
    rig.run(1)
    rig.llama.copies_fail = True
    rig.submit(2, [1, 2, 3, 4])
    ended = rig.run(2)
    assert isinstance(ended, ipc.Ended) and ended.usage.cached_tokens == 0 and rig.tokens(2) == [5, 6, 7]


def test_a_job_that_takes_over_the_evicted_leafs_own_id() -> None:
    rig = Rig(cells=100)
    rig.submit(1, [1] * 80, 5)
    rig.run(1)
    rig.submit(2, [1] * 60 + [2] * 20, 5)
    ended = rig.run(2)
    assert isinstance(ended, ipc.Ended) and ended.usage.cached_tokens == 60 and rig.tokens(2) == [3, 4, 5, 6, 7]


def test_cancel_keeps_what_was_computed() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3], 100)
    for _ in range(3):
        rig.loop.step()
    rig.loop.inbox.put(ipc.Cancel(1))
    ended = rig.run(1)
    assert isinstance(ended, ipc.Ended) and ended.reason == "cancelled"
    rig.submit(2, [1, 2, 3, 4, 5, 9])
    ended = rig.run(2)
    assert isinstance(ended, ipc.Ended) and ended.usage.cached_tokens == 5
    # An unknown key is no error: its request may have ended a moment ago.
    rig.loop.inbox.put(ipc.Cancel(77))
    rig.submit(3, [8])
    rig.run(3)


LATE = ("deadline", False)


def test_requests_end_at_their_deadline_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rig = Rig()
    rig.submit(1, [1, 2, 3], 100, due_s=101.0)
    for key in (2, 3, 4):
        rig.submit(key, [5 + key], 6)
    rig.submit(5, [20, 21], due_s=101.0)  # (all slots are taken)
    rig.submit(6, [20, 21], due_s=99.0)  # (the deadline has passed)
    FakeGrammar.opened.clear()
    rig.submit(7, [22], grammar="endless", due_s=101.0)
    for _ in range(3):
        rig.loop.step()
    assert [m.key for m in rig.replies.messages if isinstance(m, ipc.Refused)] == [6]
    now = 101.0
    for key in (1, 5, 6, 7):
        refused = rig.run(key)
        assert isinstance(refused, ipc.Refused) and (refused.code, refused.retryable) == LATE
    assert rig.tokens(1) == [4, 5, 6], "what was there in time came in time"
    FakeGrammar.released.set()
    for key in (2, 3, 4):
        assert isinstance(rig.run(key), ipc.Ended)
    FakeGrammar.released.clear()
    # The tokens computed in vain are cached.
    rig.submit(8, [1, 2, 3, 4, 5, 9], due_s=102.0)
    ended = rig.run(8)
    assert isinstance(ended, ipc.Ended) and ended.usage.cached_tokens == 5
    assert not rig.loop.jobs.options


def test_a_broken_sequence_found_at_the_deadline_costs_everybody_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rig = Rig()
    rig.submit(1, [1, 2, 3], 4)
    rig.run(1)
    rig.submit(2, [1, 2, 3], 50, due_s=101.0)
    rig.submit(3, [7], 50, due_s=101.0)
    for _ in range(8):
        rig.loop.step()
    monkeypatch.setattr(rig.llama, "replace_prefix", lambda *_: False)
    now = 101.0
    codes = []
    for key in (2, 3):
        refused = rig.run(key)
        assert isinstance(refused, ipc.Refused)
        codes.append(refused.code)
    assert codes == ["internal", "internal"]


@pytest.mark.parametrize("check_idle", [False, True])
def test_invariants_can_be_checked_whenever_the_last_request_ended(check_idle: bool) -> None:
    rig = Rig(check=False, check_idle=check_idle)
    rig.submit(1, [1, 2, 3], 2)
    rig.submit(2, [7, 8, 9], 5)
    rig.loop.step()
    rig.llama.cells[8] = [5]  # Cells that the scheduler does not know.
    rig.run(1)
    if not check_idle:
        rig.run(2)
        return
    with pytest.raises(AssertionError, match="sequence 8: 1 cells"):
        rig.run(2)
    del rig.llama.cells[8]
    rig.submit(3, [1, 2, 3], 2)
    assert isinstance(rig.run(3), ipc.Ended)


def test_vitals_end_at_rest() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3])
    rig.submit(2, [4, 5])
    rig.run(1), rig.run(2)
    last = [m.vitals for m in rig.replies.messages if isinstance(m, ipc.LoadChanged)][-1]
    assert (last.active_requests, last.waiting_requests, last.queued_tokens, last.slots) == (0, 0, 0, 4)
    assert last.prefill_rate > 0 and last.decode_rate > 0


def test_a_stop_string_ends_the_answer_and_its_tokens_are_counted() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3], 40, stop=("8 9", "6 7"))
    ended = rig.run(1)
    assert isinstance(ended, ipc.Ended) and ended.reason == "stop" and ended.usage.completion_tokens == 4
    assert rig.tokens(1) == [4, 5, 6, 7] and rig.text(1) == b"4 5 "


def test_what_is_not_decided_stays_when_a_request_is_cancelled() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3], 100, stop=("5 6 7 8 9 10 11 12 13",))
    for _ in range(6):
        rig.loop.step()
    rig.loop.inbox.put(ipc.Cancel(1))
    ended = rig.run(1)
    assert isinstance(ended, ipc.Ended) and ended.usage.completion_tokens > 2
    assert rig.tokens(1) == [4] and rig.text(1) == b"4 "


def test_a_grammar_that_allows_nothing_more_is_refused() -> None:
    rig = Rig()
    rig.submit(1, [1, 2, 3], 3, grammar="4 5 6")
    assert isinstance(rig.run(1), ipc.Ended) and rig.tokens(1) == [4, 5, 6]
    rig.submit(2, [1, 2, 3], 9, grammar="4 5 6")
    refused = rig.run(2)
    assert isinstance(refused, ipc.Refused) and (refused.code, refused.retryable) == ("bad_request", False)
    rig.submit(3, [1, 2, 3], 9, grammar="nonsense")
    refused = rig.run(3)
    assert isinstance(refused, ipc.Refused) and refused.message == "nonsense"
    rig.submit(4, [], 9, grammar="4")
    assert isinstance(rig.run(4), ipc.Refused)
    rig.submit(5, [1, 2, 3])
    assert isinstance(rig.run(5), ipc.Ended)


def test_grammars_wait_for_each_other_and_can_be_cancelled_at_any_time() -> None:
    FakeGrammar.opened.clear()
    rig = Rig()
    for key in range(2):  # As many as are compiled at once; none of them becomes ready.
        rig.submit(key, [1, 2, 3], grammar="endless")
    for key in range(4, 9):
        rig.submit(key, [1, 2, 3], grammar="4 5 6")
    rig.submit(9, [7])
    assert isinstance(rig.run(9), ipc.Ended)
    assert len(FakeGrammar.opened) == 2
    for key in (0, 1, 8):
        rig.loop.inbox.put(ipc.Cancel(key))
    FakeGrammar.released.set()
    for key in range(4, 8):
        assert isinstance(rig.run(key), ipc.Ended) and rig.tokens(key) == [4, 5, 6]
    assert len(FakeGrammar.opened) == 6
    while not all(grammar.is_closed for grammar in FakeGrammar.opened):
        rig.loop.step()  # (the thread of a dropped grammar closes it, maybe last)
    FakeGrammar.released.clear()


def test_tokens_after_the_first_share_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rig = Rig()

    def pieces(key: int) -> list[list[int]]:
        frames = [m for m in rig.replies.messages if isinstance(m, ipc.Generated) and m.key == key]
        return [list(unpack_tokens(frame.tokens)) for frame in frames]

    rig.submit(1, [1], 10)
    for _ in range(4):
        rig.loop.step()
    assert pieces(1) == [[2]], "the first token never waits"
    now += COALESCE_S
    rig.loop.step()
    assert pieces(1) == [[2], [3, 4, 5, 6]]
    rig.loop.step()
    assert pieces(1) == [[2], [3, 4, 5, 6]]
    rig.submit(2, [30], 10)
    rig.loop.step()
    assert pieces(1) == [[2], [3, 4, 5, 6], [7]], "a step that computes a prompt may be long"
    assert pieces(2) == [[31]]
    ended = rig.run(1)
    assert isinstance(ended, ipc.Ended) and pieces(1) == [[2], [3, 4, 5, 6], [7], [8, 9, 10, 11]]


def test_reading_a_text_is_charged_as_prefilling_is() -> None:
    rig = Rig()
    rig.loop.inbox.put(TextRead(b"c" * 32, "", 2.0))
    rig.submit(1, [1, 2, 3])
    rig.run(1)
    waiting = rig.loop.scheduler.waiting
    assert waiting.counter(b"c" * 32) > waiting.counter(b"d" * 32) + 100

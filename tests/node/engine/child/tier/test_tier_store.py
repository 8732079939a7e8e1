"""The second tier in the step loop, with a llama.cpp made of lists: restores and misses."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycelia.node.engine import ipc
from mycelia.node.engine.child.llama.llama import BROKEN, REFUSED
from mycelia.node.engine.child.loop import Close
from mycelia.node.engine.child.tier import tier_files
from mycelia.node.engine.child.tier.restore_rates import TRY_AGAIN_EVERY
from mycelia.node.engine.child.tier.tier_files import EdgeFiles
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.node.engine.engine import FIRST_EDGE_ID
from mycelia.proto.cache import edges
from mycelia.proto.cache.edges import Edge, Whose
from mycelia.proto.cache.sharing import Owner, plain
from mycelia.proto.cache.tier import Tier
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from tests.node.engine.child.test_loop import Rig

KEY = b"k" * 16
LARGE = 10**6
PROMPT = list(range(40)) * 2


class Tiers:
    """A store, its log lines, and a rig that uses it."""

    def __init__(self, cells: int = 100, ram: int = LARGE, disk: int = 0, folder: Path | None = None) -> None:
        self.said: list[str] = []
        self.files = EdgeFiles(folder, KEY) if folder is not None else None
        # A clock that hardly moves: computing takes no time here, and restoring must be faster.
        ticks = itertools.count()
        self.store = TierStore(Tier(ram, disk), self.files, lambda: 1e-12 * next(ticks), self.said.append)
        self.store.load(0.0)
        self.rig = Rig(cells, self.store)
        self.key = 0

    def ask(self, prompt: list[int], max_tokens: int = 3, owner: Owner = Owner()) -> int:
        """Answer a prompt and check the answer; returns the number of cached tokens."""
        self.key += 1
        self.rig.submit(self.key, prompt, max_tokens, owner=owner)
        ended = self.rig.run(self.key)
        assert isinstance(ended, ipc.Ended)
        assert self.rig.tokens(self.key) == [prompt[-1] + 1 + i for i in range(max_tokens)]
        return ended.usage.cached_tokens

    def evict(self) -> None:
        """Fill the cells with another prompt."""
        assert self.ask([41] * 90) < 90

    def written(self) -> None:
        """Wait for the files."""
        assert self.files is not None
        while self.files.is_writing:
            self.store.note_written(5.0)

    def close(self) -> None:
        self.rig.loop.inbox.put(Close())
        self.rig.loop.step()
        assert self.rig.loop.closed.is_set()


def test_a_prefix_that_left_the_cells_is_restored() -> None:
    tiers = Tiers()
    assert tiers.ask(PROMPT) == 0
    tiers.evict()
    assert tiers.ask([*PROMPT, 7]) == len(PROMPT)
    tiers.evict()
    # Half of it, and only tokens that no tier has are saved: the edge of the second prompt begins inside the first.
    assert tiers.ask([*PROMPT[:50], 3]) == 50
    assert max(edge.num_bytes for edge in tiers.store.tier) < 10 * len(PROMPT)
    assert tiers.said == []


def test_a_prefix_is_restored_onto_the_cells_that_are_there() -> None:
    tiers = Tiers(cells=130)
    tiers.ask([*PROMPT[:30], *[5] * 30], 1)
    tiers.ask([*PROMPT[:30], *[6] * 30], 1)
    tiers.ask([*PROMPT[:30], *[7] * 50], 1)
    assert len(tiers.store.tier) == 1
    tiers.ask([*PROMPT[:30], *[7] * 50, 8], 1)
    assert tiers.ask([*PROMPT[:30], *[5] * 30, 8], 1) == 60


def test_the_whole_prompt_is_never_restored() -> None:
    """The last token must be computed, for its logits."""
    tiers = Tiers()
    tiers.ask(PROMPT)
    tiers.evict()
    assert tiers.ask(PROMPT) == len(PROMPT) - 1


def test_changed_content_is_a_miss_and_goes() -> None:
    tiers = Tiers()
    tiers.ask(PROMPT)
    tiers.evict()
    (edge,) = [edge for edge in tiers.store.tier if edge.packed.startswith(pack_tokens(PROMPT))]
    edge.blob = memoryview(bytes(edge.blob_bytes))
    assert tiers.ask(PROMPT) == 0
    assert edge.gone and len(tiers.said) == 1


@pytest.mark.parametrize("result", [REFUSED, BROKEN])
def test_cells_that_cannot_be_restored_are_computed(result: int) -> None:
    tiers = Tiers()
    tiers.ask(PROMPT)
    tiers.evict()
    tiers.rig.llama.restores = [result]
    assert tiers.ask(PROMPT) == 0
    tiers.evict()
    assert tiers.ask(PROMPT) == len(PROMPT) - 1, "the blob is as good as before"


def test_a_broken_decode_leaves_the_tier_as_it_was() -> None:
    tiers = Tiers()
    tiers.ask(PROMPT)
    tiers.evict()
    tiers.rig.llama.results = [-3]
    tiers.rig.submit(77, [4, 4])
    assert isinstance(tiers.rig.run(77), ipc.Refused)
    assert told(tiers) >= {(*PROMPT, 40, 41)}
    assert tiers.ask(PROMPT) == len(PROMPT) - 1


def told(tiers: Tiers) -> set[tuple[int, ...]]:
    """The leaves of the second tier, as reported to the node."""
    leaves: dict[int, tuple[int, ...]] = {}
    for message in tiers.rig.replies.messages:
        if isinstance(message, ipc.CacheDelta):
            if message.reset:
                leaves.clear()
            for leaf in message.evicted:
                leaves.pop(leaf, None)
            for stored in message.stored:
                assert stored.leaf not in leaves
                leaves[stored.leaf] = tuple(unpack_tokens(stored.tokens))
    return {tokens for leaf, tokens in leaves.items() if leaf >= FIRST_EDGE_ID}


def test_the_node_knows_of_a_prefix_until_it_left_all_tiers() -> None:
    tiers = Tiers(ram=900)
    tiers.ask(PROMPT)
    tiers.evict()
    assert told(tiers) == {(*PROMPT, 40, 41)}
    tiers.ask([42] * 80)
    assert (*PROMPT, 40, 41) not in told(tiers)


def test_a_chain_of_runs_is_told_as_its_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(edges, "RUN_TOKENS", 16)
    first, longer = tuple(PROMPT[:41]), tuple(PROMPT[:71])
    with opened(tmp_path) as tiers:
        tiers.ask(list(first), 1)
        tiers.evict()
        assert len([edge for edge in tiers.store.tier if edge.packed.startswith(pack_tokens([0]))]) == 3
        assert [tokens for tokens in told(tiers) if tokens[0] == 0] == [first]
        assert tiers.ask(list(longer), 1) == 41
        tiers.evict()
        assert [tokens for tokens in told(tiers) if tokens[0] == 0] == [longer]
        # When the last edge goes, the edge before it is reported.
        (last,) = [edge for edge in tiers.store.tier if edge.packed == pack_tokens(longer)]
        tiers.store.discard(last)
        tiers.rig.loop.jobs.reports.cache()
        assert [tokens for tokens in told(tiers) if tokens[0] == 0] == [longer[:64]]
    with opened(tmp_path) as again:
        again.rig.loop.jobs.reports.cache()
        assert {tokens for tokens in told(again) if tokens[0] == 0} == {longer[:64]}


def test_restoring_must_be_faster_than_computing() -> None:
    """Slow restores are tried again from time to time."""
    tiers = Tiers()
    tiers.ask(PROMPT)
    tiers.evict()
    tiers.store.rates.add(10_000, 10_000 / 0.001, from_disk=False)
    restored = []
    for other in range(1, TRY_AGAIN_EVERY + 2):
        restored.append(tiers.ask(PROMPT) > 0)
        tiers.ask([other, *[41] * 89])
    assert restored == [False] * (TRY_AGAIN_EVERY - 1) + [True, True], "measured anew"


@contextmanager
def opened(folder: Path, ram: int = LARGE, disk: int = LARGE, cells: int = 100) -> Iterator[Tiers]:
    """Tiers with a disk, closed at the end."""
    tiers = Tiers(cells, ram, disk, folder)
    yield tiers
    tiers.close()


def test_a_restarted_engine_is_warm(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        first.ask(PROMPT)
        first.evict()
    assert len(list(tmp_path.rglob("*.edge"))) == 2
    with opened(tmp_path) as second:
        second.rig.loop.inbox.put(ipc.Cancel(0))
        second.rig.loop.step()
        assert (*PROMPT, 40, 41) in told(second), "what is on disk is advertised from the start"
        assert second.ask(PROMPT) == len(PROMPT) - 1
        assert second.ask([41] * 91) == 90
    with opened(tmp_path, ram=0) as third:
        assert third.ask(PROMPT) == len(PROMPT) - 1
        assert third.said == []


def size_of(path: Path) -> int:
    """0 if it has just been removed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_the_disk_holds_no_more_than_its_budget(tmp_path: Path) -> None:
    with opened(tmp_path, disk=1500, ram=0) as tiers:
        for first in range(40):
            tiers.ask([first] * 80)
            tiers.written()
            assert sum(map(size_of, tmp_path.rglob("*.edge"))) < 1500 + 3 * 100 + 700
        assert tiers.store.tier.disk_used <= 1500
    with opened(tmp_path, disk=400, ram=0) as tiers:
        assert tiers.store.tier.disk_used <= 400


def test_bad_files_are_deleted_with_one_line_and_others_stay(tmp_path: Path) -> None:
    with opened(tmp_path) as first:
        for token in range(5):
            first.ask([token] * 80)
    paths = sorted(tmp_path.rglob("*.edge"), key=lambda path: path.name)
    torn, flipped, renamed, content, _ = paths
    folder = torn.parent
    torn.write_bytes(torn.read_bytes()[:-1])
    data = bytearray(flipped.read_bytes())
    data[80] ^= 1
    flipped.write_bytes(data)
    renamed.rename(folder / "0123.edge")
    data = bytearray(content.read_bytes())
    data[-1] ^= 1
    content.write_bytes(data)
    for name, text in {"empty.edge": b"", "half.tmp": b"x", "notes.txt": b"mine"}.items():
        (folder / name).write_bytes(text)
    (folder / "folder.edge").mkdir()
    with opened(tmp_path) as second:
        assert len(second.store.tier) == 2, "a changed blob is found out when it is read"
        assert len(second.said) == 1 and "6 files" in second.said[0]
        cached = [second.ask([token] * 80) for token in range(5)]
        assert sorted(cached) == [0, 0, 0, 0, 79]
        assert len(second.said) == 2
    assert (folder / "notes.txt").read_bytes() == b"mine"
    assert not (folder / "half.tmp").exists()


@given(data=st.binary(max_size=300), at=st.integers(0, 400), swarm=st.sampled_from([b"", b"s" * 16]))
@settings(max_examples=200, deadline=None)
def test_no_file_is_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, swarm: bytes) -> None:
    """Any bytes in a file are an edge or ignored."""
    packed = pack_tokens([1, 2, 3])
    whose = Whose(b"tag", 1, swarm)
    edge = Edge(0, packed, 1, 4, bytes(32), Reuse(0.0), whose)
    good = tier_files.header(KEY, edge) + b"blob"
    path = tmp_path_factory.getbasetemp() / tier_files.file_name(packed, 1, whose)
    path.write_bytes(good)
    assert tier_files.read_header(path, KEY) is not None
    assert tier_files.read_header(path, b"x" * 16) is None
    changed = good[:at] + data + good[at + len(data) :]
    path.write_bytes(changed)
    found = tier_files.read_header(path, KEY)
    assert found is None or (found.packed, found.start, found.whose, changed[:-4]) == (packed, 1, whose, good[:-4])


def test_a_file_that_vanished_is_a_miss(tmp_path: Path) -> None:
    with opened(tmp_path, ram=0) as tiers:
        tiers.ask(PROMPT)
        tiers.evict()
        tiers.written()
        for path in tmp_path.rglob("*.edge"):
            path.unlink()
        assert tiers.ask(PROMPT) == 0


def test_a_full_disk_ends_the_writing_not_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with opened(tmp_path) as tiers:
        monkeypatch.setattr(os, "replace", full)
        tiers.ask(PROMPT)
        tiers.evict()
        tiers.written()
        assert tiers.ask(PROMPT) == len(PROMPT) - 1, "memory still has it"
        tiers.evict()
        assert len(tiers.said) == 1 and "No space left" in tiers.said[0]
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_the_writer_has_no_room_for_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_files, "MAX_QUEUED_BYTES", 1)
    with opened(tmp_path) as tiers:
        for token in range(6):
            tiers.ask([token] * 80)
        # No other event occurs: the writer itself wakes the loop.
        while not all(edge.on_disk for edge in tiers.store.tier):
            tiers.rig.loop.step()
        for token in range(6, 12):
            tiers.ask([token] * 80)
    assert len(list(tmp_path.rglob("*.edge"))) == 12


def test_closing_waits_for_a_slow_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a memory tier, which could keep the blobs."""
    monkeypatch.setattr(tier_files, "MAX_QUEUED_BYTES", 1)
    monkeypatch.setattr(edges, "RUN_TOKENS", 16)
    with opened(tmp_path, ram=0) as tiers:
        tiers.ask(PROMPT, 1)
    assert len(list(tmp_path.rglob("*.edge"))) == 5
    with opened(tmp_path, ram=0) as tiers:
        assert tiers.ask(PROMPT, 1) == len(PROMPT) - 1


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / KEY.hex()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="other users"):
        EdgeFiles(tmp_path, KEY)


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@given(st.lists(st.tuples(PROMPTS, st.integers(1, 5), st.booleans()), max_size=25), st.sampled_from([150, 900, LARGE]))
@settings(max_examples=80, deadline=None)
def test_whatever_is_asked_the_cells_are_the_prompts(requests: list[tuple[list[int], int, bool]], ram: int) -> None:
    """The loop checks all accounts after each request; the test checks that each row follows exactly its own tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges, "RUN_TOKENS", 8)
        tiers = Tiers(ram=ram)
        llama = tiers.rig.llama
        for key, (prompt, max_tokens, wait) in enumerate(requests):
            tiers.rig.submit(key, prompt, max_tokens)
            if wait:
                tiers.rig.run(key)
            for job in tiers.rig.loop.scheduler.running:
                assert job.seq_id is not None
                assert llama.cells.get(job.seq_id, []) == job.tokens[: job.num_computed]
        for key in range(len(requests)):
            assert isinstance(tiers.rig.run(key), ipc.Ended)
        tree, held = tiers.rig.loop.scheduler.tree, told(tiers)
        assert {seq_id: tuple(llama.cells[seq_id]) for seq_id in tree.seq_ids()} == {
            seq_id: tuple(plain(tree.tokens_of(seq_id))) for seq_id in tree.seq_ids()
        }
        assert held <= {tuple(unpack_tokens(edge.packed)) for edge in tiers.store.tier}

"""The engine process: ``python -m mycelia.node.engine.child.worker``, started by ``process.py``, never by hand.

It has four threads. The main thread owns the llama.cpp context and runs the step loop. The reader takes messages from
stdin and passes them on, so that a ping is answered at once. When stdin ends, as it does however the parent dies, the
reader ends the process at once, also in the middle of a decode; with a disk tier it first gives the main thread a few
seconds to write the cache. Two more threads read texts (``renders.py``), as the vocabulary is immutable: tokenizing
never waits for a prefill.

The end of stdin is the only sign of the parent's death: Linux's PR_SET_PDEATHSIG fires when the *thread* that started
the child ends, and that is one of trio's short-lived worker threads.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.backends import no_gpu_reason
from mycelia.node.engine.child.chat import ChatTemplate
from mycelia.node.engine.child.grammar.grammar import Grammars
from mycelia.node.engine.child.job import REPORT_ROWS, Limits
from mycelia.node.engine.child.llama.bindings import bindings_version
from mycelia.node.engine.child.llama.exact import ExactLlama, ExactStateLlama
from mycelia.node.engine.child.llama.llama import MAX_SEQUENCES, Llama
from mycelia.node.engine.child.llama.models import (
    LoadedModel,
    keeps_states,
    list_backends,
    model_digest,
    model_kind,
    open_model,
)
from mycelia.node.engine.child.llama.states import StateLlama
from mycelia.node.engine.child.loop import CLOSE_DEADLINE_S, Close, StepLoop, TextRead
from mycelia.node.engine.child.pooling.embedder import Embedder
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue
from mycelia.node.engine.child.pooling.loop import PooledLoop
from mycelia.node.engine.child.pooling.opening import open_pooled
from mycelia.node.engine.child.renders import SWITCH_S, Renders
from mycelia.node.engine.child.tier.tier_files import EdgeFiles
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.prompts import PromptLimit
from mycelia.node.engine.settings import available_memory_bytes
from mycelia.node.engine.sizing import CellBudget, Offload
from mycelia.node.formats.choosing import control_spellings, format_name
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.cache.checkpoints import EVERY_TOKENS
from mycelia.proto.cache.tier import Tier
from mycelia.proto.wire.blocks import namespace_key
from mycelia.proto.wire.errors import LocalError

BATCH_TOKENS = 2048
REPORT_BYTES = 32 << 20
"""Maximum size of the logits of one decode call that are needed for the logprobs of prompts."""
KV_SETTINGS, EXACT_KV_SETTINGS, ADAPTED = "f16", "f16, exact", ", lora "
"""Everything besides the model file that changes the KV cells; a part of the namespace. So a node in exact mode neither
reads files of a node in normal mode nor continues its answers."""


def _read_messages(stream: BinaryIO, service: "Service") -> None:
    """Run the reader thread. Its end ends the process, which would not notice the parent's death otherwise."""
    try:
        while (message := pipe.read_message(stream)) is not None:
            service.handle(message)
    except BaseException:  # noqa: BLE001 - reported on stderr, which the parent logs
        traceback.print_exc()
        os._exit(1)
    service.close()
    os._exit(0)


Loop = StepLoop | PooledLoop
"""The loop of a model that writes text, and of one that only reads it."""


class Service:
    """The receiver of the reader thread's messages. Empty until the model is loaded; the parent waits for that."""

    def __init__(self, replies: pipe.Replies) -> None:
        self._replies = replies
        self.loop: Loop | None = None
        self.renders: Renders | None = None

    def handle(self, message: ipc.ToChild) -> None:
        """Called by the reader thread."""
        assert self.loop is not None and self.renders is not None
        if isinstance(message, ipc.Render | ipc.Parse | ipc.Pair | ipc.Spell):
            self.renders.put(message)
        elif isinstance(message, ipc.Ping):
            self._replies.send(ipc.Pong(*self.loop.pulse(), self.renders.busy_s()))
        elif isinstance(message, ipc.Submit | ipc.Embed | ipc.Resize):
            self.loop.inbox.put(message)
        elif isinstance(message, ipc.Cancel):
            self.loop.inbox.put(message)
            self.loop.interrupt(message.key)

    def close(self) -> None:
        """Called by the reader thread: let the main thread write the cache, if there is a disk tier; bounded time."""
        if self.loop is not None and self.loop.saves_at_end:
            self.loop.inbox.put(Close())
            self.loop.interrupt()
            # A little more than the loop's own deadline: the running step has to end first.
            self.loop.closed.wait(CLOSE_DEADLINE_S + 1.0)


def load(message: ipc.Load, replies: pipe.Replies, service: Service) -> tuple[Loop, ipc.Loaded]:
    """Load the model and fill ``service``. Raises LocalError."""
    path = Path(message.model_path)
    memory = min(filter(None, (message.room_bytes, available_memory_bytes())), default=None)  # (weights included)
    model = _open_model(message, path)
    kind = model_kind(model.handle)
    digest, adapted = model_digest(path), ""
    if message.lora_path:  # (an adapter changes the cells)
        adapted = ADAPTED + model_digest(Path(message.lora_path)).hex()
    if kind != TEXT:
        pooled = open_pooled(message, model, kind, digest, KV_SETTINGS + adapted, replies)
        service.renders, service.loop = pooled.renders, pooled.loop
        return pooled.loop, pooled.loaded
    kv_settings = (EXACT_KV_SETTINGS if message.exact else KV_SETTINGS) + adapted
    budget = CellBudget(message.slots, None if memory is None else memory - message.ram_tier_bytes)
    llama = _open_llama(message, path, model, budget)
    limit = PromptLimit(llama.context_tokens, llama.longest_piece())
    template = ChatTemplate(llama.chat_template, llama, limit, llama.tools_template)
    tiers = _open_tiers(message, llama, namespace_key(digest, kv_settings))
    token_bytes = llama.cell_bytes + llama.saved_state_bytes // EVERY_TOKENS
    tier_bytes = message.disk_tier_bytes if message.is_dir_memory else message.ram_tier_bytes
    tier_tokens = tier_bytes // token_bytes if tiers is not None else 0
    # Host memory must hold all cells that can be idle at once. On a GPU the copies are not worth their time.
    demote_idle = not llama.offloaded and not llama.keeps_states and tier_tokens >= llama.num_cells
    may_reuse = llama.reuse and (tiers is not None or not llama.keeps_states)
    limits = Limits(
        num_cells=llama.num_cells,
        context_tokens=llama.context_tokens,
        num_vocab=llama.num_vocab,
        num_sequences=llama.spare,
        slots=message.slots,
        max_waiting=message.max_waiting,
        batch_tokens=BATCH_TOKENS,
        reported_tokens=min(Limits.reported_tokens, max(REPORT_BYTES // (4 * llama.num_vocab), REPORT_ROWS)),
        reuse=may_reuse,
        demote_idle=demote_idle,
        state_grid=llama.state_grid if llama.keeps_states else 0,
        has_cells=llama.has_cells,
        control_tokens=llama.control_tokens() if llama.keeps_states else frozenset(),
    )
    embeddings = EmbeddingQueue(Embedder(llama, message.threads), message.max_waiting, llama.num_vocab)
    loop = StepLoop(
        llama,
        limits,
        replies,
        message.check,
        Grammars(llama).open,
        embeddings,
        tiers,
        message.check_idle,
        message.share,
    )
    renders = Renders(template, llama.spelling, replies, lambda *read: loop.inbox.put(TextRead(*read)))
    service.renders, service.loop = renders, loop
    reuse = "none" if not may_reuse else "checkpoints" if llama.keeps_states else "prefix"
    format_ = format_name(llama.chat_template, llama.has_token)
    piece_ends, pieces = Vocabulary.of([llama.piece(token) for token in range(llama.num_vocab)]).packed()
    return loop, ipc.Loaded(
        digest,
        llama.context_tokens,
        llama.num_vocab,
        reuse,
        cells=llama.num_cells,
        cells_note=llama.cells_note,
        offload=llama.placement.describe(),
        no_gpu="" if llama.offloaded or message.gpu_layers == 0 or message.exact else no_gpu_reason(list_backends()),
        cache_tokens=tier_tokens + (0 if demote_idle else llama.num_cells),
        piece_ends=piece_ends,
        pieces=pieces,
        token_bytes=limit.token_bytes,
        begin_text=llama.special_texts["bos_token"],
        end_text=llama.special_texts["eos_token"],
        begin_token=llama.bos_token,
        chat_template=llama.chat_template or "",
        format=format_,
        spellings=control_spellings(format_, partial(llama.tokenize, special=True), llama.piece),
        kv_settings=kv_settings,
        chat_problem=template.problem,
    )


def _open_model(message: ipc.Load, path: Path) -> LoadedModel:
    """Load the weights. Raises LocalError."""
    wanted = message.gpu_layers, message.tensor_split, message.main_gpu, message.gpu_memory_bytes
    offload = Offload(0) if message.exact else Offload(*wanted)
    return open_model(path, offload, Path(message.lora_path) if message.lora_path else None)


def _open_llama(message: ipc.Load, path: Path, loaded: LoadedModel, budget: CellBudget) -> Llama:
    """Open a context of the model's kind. Raises LocalError."""
    sizes: dict[str, Any] = {
        "num_sequences": min(message.sequences + 1, MAX_SEQUENCES),  # One is for the second tier.
        "num_threads": message.threads,
        "batch_tokens": BATCH_TOKENS,
    }
    num_cells = message.cells or budget
    if message.exact and keeps_states(loaded.handle):
        return ExactStateLlama(path, num_cells=num_cells, memory=budget, loaded=loaded, **sizes)
    if message.exact:
        return ExactLlama(path, num_cells=num_cells, loaded=loaded, **sizes)
    if keeps_states(loaded.handle):
        return StateLlama(path, num_cells=num_cells, memory=budget, loaded=loaded, **sizes)
    return Llama(path, num_cells=num_cells, loaded=loaded, **sizes)


def _open_tiers(message: ipc.Load, llama: Llama, namespace: bytes) -> TierStore | None:
    """The second tier; None when it is off or this model's cells cannot be saved. Raises LocalError."""
    disk_bytes = message.disk_tier_bytes if message.cache_dir else 0
    if not llama.can_save or not (message.ram_tier_bytes or disk_bytes):
        return None
    files = None
    if disk_bytes:
        cells_key = namespace_key(namespace, bindings_version())
        try:
            files = EdgeFiles(Path(message.cache_dir), cells_key)
        except OSError as exc:
            raise LocalError(f"cannot use the cache directory {message.cache_dir}: {exc.strerror or exc}") from exc
    tiers = TierStore(Tier(message.ram_tier_bytes, disk_bytes, llama.keeps_states), files)
    tiers.load(time.time())
    return tiers


def main() -> None:
    """Serve the parent until stdin ends."""
    faulthandler.enable()  # (to stderr, of which the parent makes a report)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides.
    replies = pipe.Replies(os.dup(1))
    os.dup2(2, 1)  # A stray print must not land in the protocol.
    stream = sys.stdin.buffer
    wanted = pipe.read_message(stream)
    if not isinstance(wanted, ipc.Load):
        sys.exit("this is a part of mycelia and not to be started by hand")
    os.nice(wanted.niceness)
    sys.setswitchinterval(SWITCH_S)
    service = Service(replies)
    threading.Thread(target=_read_messages, args=(stream, service), daemon=True).start()
    try:
        loop, loaded = load(wanted, replies, service)
    except LocalError as exc:
        replies.send(ipc.LoadFailed(str(exc)))
        os._exit(1)
    replies.send(loaded)
    try:
        loop.run()
    except BaseException:  # noqa: BLE001 - reported on stderr, which the parent logs
        # Not sys.exit: the interpreter's shutdown would wait for the reader's lock on stdin.
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()

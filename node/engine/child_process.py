"""The engine's process: its start, what it has loaded, its last line, its end."""

import os
import subprocess
from collections import deque
from collections.abc import Sequence

import structlog
import trio

from mycelia.node.engine import ipc
from mycelia.node.engine.engine import ModelInfo
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.cache.tier import GIB
from mycelia.proto.wire.blocks import namespace_key
from mycelia.proto.wire.messages import Vitals

log = structlog.get_logger()

MAX_WORDS = 200
"""Lines of a child's stderr that are kept."""


def child_environment() -> dict[str, str]:
    """The parent's environment, with variables that keep llama.cpp from starting a debugger, and glibc from keeping
    memory.

    The memory tier allocates and frees blocks of megabytes in all sizes. By default glibc soon takes such blocks from
    its heap and leaves it full of holes: in 30 minutes of load an engine grew by 6 %. An explicit threshold stays
    fixed, and larger blocks go back to the system at once.

    OMP_WAIT_POLICY is not changed: with ``passive`` a decode step of two threads takes twice as long (44 ms instead of
    23 ms for four rows), and if other processes use the cores, fewer threads gain as much.
    """
    environment = dict(os.environ)
    environment.setdefault("GGML_NO_BACKTRACE", "1")
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    return environment


async def start_process(command: Sequence[str]) -> trio.Process:
    """A child with pipes for stdin, stdout and stderr. Raises OSError."""
    pipe = subprocess.PIPE
    return await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=pipe, env=child_environment())


async def end_process(child: trio.Process, grace_s: float) -> None:
    """Close stdin, which ends the child; kill it after ``grace_s``."""
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    await child.stdin.aclose()
    with trio.move_on_after(grace_s):
        await child.wait()
    if child.returncode is None:
        child.kill()
        await child.wait()
    await child.stdout.aclose()
    await child.stderr.aclose()


def load_message(settings: EngineSettings, num_cells: int | None) -> ipc.Load:
    """The first message to a child. num_cells: None lets the child choose."""
    return ipc.Load(
        model_path=str(settings.model_path),
        threads=settings.num_threads,
        cells=num_cells or 0,
        sequences=settings.sequences,
        slots=settings.slots,
        max_waiting=settings.max_waiting,
        check=settings.check,
        check_idle=settings.check_idle,
        ram_tier_bytes=settings.ram_tier_bytes,
        disk_tier_bytes=int(settings.disk_tier_gib * GIB),
        cache_dir=str(settings.cache_dir.absolute()) if settings.cache_dir is not None else "",
        gpu_layers=settings.gpu_layers,
        tensor_split=settings.tensor_split,
        main_gpu=settings.main_gpu,
        gpu_memory_bytes=settings.gpu_memory_bytes,
        share=settings.share,
        niceness=settings.niceness,
        exact=settings.exact,
        is_dir_memory=settings.is_dir_memory,
        room_bytes=settings.room_bytes or 0,
        lora_path=str(settings.lora_path or ""),
    )


def model_info(settings: EngineSettings, message: ipc.Loaded) -> ModelInfo:
    """The model that a child has loaded."""
    return ModelInfo(
        name=settings.model_name or settings.model_path.stem,
        namespace=namespace_key(message.model_digest, message.kv_settings),
        context_tokens=message.context_tokens,
        num_vocab=message.num_vocab,
        reuse=message.reuse,
        num_cells=message.cells,
        token_bytes=message.token_bytes,
        begin_text=message.begin_text,
        end_text=message.end_text,
        begin_token=message.begin_token,
        chat_template=message.chat_template,
        format=message.format,
        spellings=message.spellings,
        model_digest=message.model_digest,
        kv_settings=message.kv_settings,
        kind=message.kind,
    )


def log_loaded(message: ipc.Loaded, info: ModelInfo, pid: int | None, threads: int) -> None:
    facts = {"reuse": info.reuse, "cells": message.cells} if info.kind == TEXT else {"kind": info.kind}
    log.info("engine_ready", pid=pid, model=info.name, threads=threads, **facts)
    if message.offload:
        log.info("on_gpu", layers=message.offload)
    if message.no_gpu:
        log.warning("no_gpu", reason=message.no_gpu)
    if message.cells_note:
        log.warning("few_kv_cells", reason=message.cells_note)
    if message.chat_problem:
        log.warning("no_conversations", reason=message.chat_problem, still_served="/v1/completions")


def idle_vitals(slots: int) -> Vitals:
    """The vitals without any work. slots: 0 while there is no child."""
    return Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=slots)


class LastWords:
    """The last line that a child wrote to its stderr, usually the reason for its death, and the lines before it."""

    def __init__(self) -> None:
        self.last = ""
        self.lines: deque[str] = deque(maxlen=MAX_WORDS)
        self._is_stack = False

    def clear(self) -> None:
        self.last, self._is_stack = "", False
        self.lines.clear()

    async def read(self, stderr: trio.abc.ReceiveStream, end: trio.Event) -> None:
        """Logs the child's stderr. Sets ``end`` when the child has closed it."""
        rest = b""
        async for data in stderr:
            *lines, rest = (rest + data)[-65_536:].split(b"\n")
            for line in lines:
                text = line.decode("utf-8", "replace").strip()
                if text:
                    self.lines.append(line.decode("utf-8", "replace").rstrip())
                    # (Python prints the stack of a fault after the reason, if there is one)
                    if not self._is_stack:
                        self._is_stack = text.startswith("Fatal Python error")
                        if not (self._is_stack and self.last):
                            self.last = without_folder(text)
                    log.debug("engine_said", text=text)
        end.set()


def without_folder(words: str) -> str:
    """``words`` without the folder of the source file with which a failed assertion of llama.cpp begins."""
    place, separator, rest = words.partition(": ")
    return f"{place.rpartition('/')[2]}{separator}{rest}"

"""Fetches a model of the catalogue in a process of its own, ``mycelia model pull``, and passes on what that says."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial

import trio

from mycelia.node.errors import EXIT_TRY_LATER, PassingError, one_line
from mycelia.node.service.manager import program
from mycelia.proto.wire.errors import LocalError

MAX_LINE_BYTES = 4_096

Say = Callable[[str], None]


async def pull(name: str, say: Say) -> None:
    """Returns when the model is here. say: called with each line about the progress. Raises LocalError. Cancelling ends
    the process, and so does the end of this one, however it comes."""
    command = [*program(), "model", "pull", "--exit-with-parent", name]
    readable, writable = os.pipe()
    last = ""
    with os.fdopen(readable, "rb") as stdin, os.fdopen(writable, "wb"):  # (its end tells the child of the parent's)
        async with trio.open_nursery() as nursery:
            run = partial(
                trio.run_process,
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
                start_new_session=True,  # (Ctrl-C in a terminal is for the node)
            )
            process: trio.Process = await nursery.start(run, command)
            assert process.stderr is not None
            async for line in _lines(process.stderr):
                last = line
                say(line)
    code = process.returncode or 0
    if code < 0:
        raise LocalError(f"the download's process was ended by {signal.Signals(-code).name}")
    if code:
        kind = PassingError if code == EXIT_TRY_LATER else LocalError
        raise kind(last.removeprefix("mycelia: ") or f"the download ended with {code}")


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    """The lines that are not empty, each in printable text; too long ones in pieces."""
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            whole, rest = [*whole, rest], b""
        for line in whole:
            if line.strip():
                yield one_line(line.decode("utf-8", "replace").strip())[:300]
    if rest.strip():
        yield one_line(rest.decode("utf-8", "replace").strip())[:300]

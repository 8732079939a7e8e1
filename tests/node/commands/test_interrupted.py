"""Ctrl-C while a command still imports its modules."""

import subprocess
import sys
from signal import SIGINT

import pytest
import trio

DEADLINE_S = 300


@pytest.mark.parametrize("imported", ["click", "mycelia.node.commands.options", "mycelia.node.cli"])
async def test_ctrl_c_during_imports_is_an_exit_code_and_no_traceback(imported: str) -> None:
    # The command waits for its prompt, so that it cannot end before the signal comes.
    command = [sys.executable, "-X", "importtime", "-P", "-m", "mycelia.node", "--isolated", "ask", "-"]
    said, is_interrupted = b"", False
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None
        try:
            async for part in process.stderr:
                said += part
                if not is_interrupted and b" %s\n" % imported.encode() in said:
                    process.send_signal(SIGINT)
                    is_interrupted = True
            code = await process.wait()
        finally:
            process.kill()
    assert (code, b"Traceback" in said) == (130, False)

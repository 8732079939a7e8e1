"""Ctrl-C while a command still imports its modules."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

DEADLINE_S = 300


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN])
def disposition(request: pytest.FixtureRequest) -> Iterator[object]:
    """What SIGINT does in processes that are started meanwhile. A shell lets a script's background commands ignore it,
    which may be those that run the tests."""
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("imported", ["click", "mycelia.node.commands.options", "mycelia.node.cli"])
async def test_ctrl_c_during_imports_is_an_exit_code_and_no_traceback(imported: str, disposition: object) -> None:
    is_ignored = disposition is signal.SIG_IGN
    # The command waits for its prompt, so that it cannot end before the signal comes.
    command = [sys.executable, "-X", "importtime", "-P", "-m", "mycelia.node", "--isolated", "ask", "-"]
    said, is_interrupted = b"", False
    with trio.fail_after(DEADLINE_S):
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stderr is not None and process.stdin is not None
        try:
            async for part in process.stderr:
                said += part
                if not is_interrupted and b" %s\n" % imported.encode() in said:
                    process.send_signal(signal.SIGINT)
                    is_interrupted = True
                    if is_ignored:
                        await process.stdin.aclose()
            code = await process.wait()
        finally:
            process.kill()
    assert (code == 130, b"Traceback" in said) == (not is_ignored, False)

"""aider: one message on a file, and what it says of an error. Its answers are texts; it uses no tools."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from reports import MODEL, URL, cancels, metric, report

folder = pathlib.Path(tempfile.mkdtemp())
(folder / "notes.txt").write_text("hello\n")
prices = folder / ".aider" / "caches" / "model_prices_and_context_window.json"  # (else it looks for them in the web)
prices.parent.mkdir(parents=True)
prices.write_text('{"none": {}}')
COMMAND = [str(pathlib.Path(sys.executable).with_name("aider")), "--yes-always", "--no-git", "--analytics-disable"]
COMMAND += [
    "--no-check-update",
    "--no-show-model-warnings",
    "--no-show-release-notes",
    "--no-detect-urls",
    "--map-tokens=0",
]
PLACE = {
    "HOME": str(folder),
    "OPENAI_API_BASE": f"{URL}/v1",
    "OPENAI_API_KEY": "none",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def start(text, *options, model=MODEL):
    command = [*COMMAND, f"--model=openai/{model}", *options, "--message", text, "notes.txt"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | PLACE,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def says(*arguments, **options):
    told, _ = start(*arguments, **options).communicate()
    return told


def chat():
    told = says("Say hello.", "--no-stream")
    assert "Tokens: " in told and "litellm." not in told, told


def stream():
    told = says("Say hello.", "--stream")
    assert "Tokens: " in told and "litellm." not in told, told


def errors():
    told = says("Say hello.", model="gpt-9")
    assert "gpt-9" in told and "NotFoundError" in told, told
    (folder / "notes.txt").write_text("word " * 20_000)
    told = says("Say hello.")
    assert "exceed" in told and "context" in told, told
    (folder / "notes.txt").write_text("hello\n")


def cancel():
    """A prompt that takes seconds to compute, ended while the node does."""

    def ask():
        (folder / "notes.txt").write_text(" ".join(str(time.time_ns()) for _ in range(200)))
        process = start("Say hello.")
        while not metric("mycelia_requests_running"):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    cancels(ask)


report(chat, stream, errors, cancel)

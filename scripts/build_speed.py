"""Compares the speed of a build of llama.cpp with that in .venv: ``python scripts/build_speed.py FOLDER [ROUNDS]``.

FOLDER holds the other build's libraries, as ``scripts/llama-build`` leaves them. Each run is a process of its own with
one thread; the builds take turns, so that what else runs here slows both. Tokens per second of processor time: one
prefill of 256 tokens, then 64 tokens of an answer. Prints the medians, and exits 1 when the other build has less than
0.95 of the speed.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

PREFILL, DECODE, BATCH_TOKENS = 256, 64, 512
ROUNDS = 7
LEAST = 0.95


def measure() -> None:
    """Print the rates of the build that this process has."""
    from mycelia.node.engine.child.llama.batch import BatchRow
    from mycelia.node.engine.child.llama.llama import OK, Llama
    from mycelia.node.engine.models import resolve_model

    path = resolve_model("smollm2")
    llama = Llama(path, num_cells=512, num_sequences=4, num_threads=1, batch_tokens=BATCH_TOKENS)
    tokens = [token % 4000 + 100 for token in range(PREFILL)]
    llama.decode([BatchRow(0, 0, tokens[:64], 1)])  # (reads the weights)
    llama.clear_all()
    began = time.process_time()
    assert llama.decode([BatchRow(0, 0, tokens, 1)])[0] == OK
    middle = time.process_time()
    for position in range(PREFILL, PREFILL + DECODE):
        assert llama.decode([BatchRow(0, position, [tokens[position % PREFILL]], 1)])[0] == OK
    end = time.process_time()
    sys.stdout.write(f"{PREFILL / (middle - began)} {DECODE / (end - middle)}\n")


def run(folder: str | None) -> tuple[float, float]:
    """The rates of prefill and of decode. folder: None for the build in .venv."""
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    if folder is not None:
        environment["LLAMA_CPP_LIB_PATH"] = folder
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{folder or '.venv'} failed:\n{done.stderr}")
    prefill, decode = map(float, done.stdout.split()[-2:])
    return prefill, decode


def main(folder: str, rounds: int) -> int:
    folder = str(Path(folder).absolute())
    pairs = [(run(None), run(folder)) for _ in range(rounds)]
    is_fast = True
    for index, what in enumerate(("prefill", "decode")):
        native, other = (median(pair[side][index] for pair in pairs) for side in (0, 1))
        ratio = median(pair[1][index] / pair[0][index] for pair in pairs)
        is_fast = is_fast and ratio >= LEAST
        sys.stdout.write(
            f"{what}: {other:.1f} tokens per second of processor time, {native:.1f} with the build in .venv;"
            f" {ratio:.3f} of it ({rounds} pairs, median), {LEAST} is wanted\n"
        )
    return 0 if is_fast else 1


if __name__ == "__main__":
    if len(sys.argv) == 1:
        measure()
    else:
        sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS))

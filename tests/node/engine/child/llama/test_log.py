"""llama.cpp's log."""

import subprocess
import sys

PROGRAM = """
import gc
from mycelia.node.engine.child.llama.bindings import L, Log

log = Log()
del log
gc.collect()
logs = [bytearray(64) for _ in range(10_000)]  # (takes the memory that was freed)
assert not L.llama_model_load_from_file(b"missing.gguf", L.llama_model_default_params())
"""


def test_llama_cpp_may_write_after_the_end_of_a_log() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

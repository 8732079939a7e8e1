"""The low-level API of llama.cpp with common helpers: its log, an abort flag, its arrays of candidates.

Only this folder imports llama.cpp. In a build for many machines, its backends are plug-ins, which the import loads.
"""

import ctypes
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as _bindings
import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.llama.devices import Ggml

# The bindings are declared by decorators that type checkers cannot see through.
L: Any = _bindings
LIBRARY: Any = _bindings._lib
"""libllama as ctypes has loaded it. ggml's functions are found through it."""
FOLDER = Path(LIBRARY._name).parent
"""The folder of llama.cpp's libraries."""
Ggml(LIBRARY).load_plugins(FOLDER)

_LOG_LEVEL_ERROR = 4
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def bindings_version() -> str:
    """Version of llama.cpp's bindings: another version may serialise cells differently."""
    return str(llama_cpp.__version__)


def address_of_tokenize() -> int:
    """The address of ``llama_tokenize``."""
    return int(ctypes.cast(L.llama_tokenize, ctypes.c_void_p).value or 0)


class Log:
    """Keeps llama.cpp's last error lines and prints nothing."""

    _set_last: Any = None
    """The callback of the newest log. It outlives the log: llama.cpp holds a bare pointer to it."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=4)
        Log._set_last = L.llama_log_callback(self._write)
        L.llama_log_set(Log._set_last, None)

    def _write(self, level: int, text: bytes, _data: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _LOG_LEVEL_ERROR and line:
            self.errors.append(line)

    def reason(self, fallback: str) -> str:
        """The first error since the last call: it names the cause, later errors only repeat that loading failed."""
        line = self.errors[0] if self.errors else fallback
        self.errors.clear()
        for prefix in (
            "gguf_init_from_reader: ",
            "gguf_init_from_file: ",
            "llama_model_load: ",
            "error loading model: ",
        ):
            line = line.removeprefix(prefix)
        return line


class AbortFlag:
    """Stops a running decode from another thread. llama.cpp calls a callback before every graph node, thousands of
    times a step. A Python callback would need the GIL there, and a busy thread would stall the computation. libc's
    ``strlen`` has the right signature: with the address of the flag it returns 0 for an empty string (go on) and 1 for
    "\\1" (abort)."""

    def __init__(self) -> None:
        self._flag = ctypes.create_string_buffer(2)
        self.callback = ctypes.cast(ctypes.CDLL(None).strlen, L.ggml_abort_callback)
        self.address = ctypes.cast(self._flag, ctypes.c_void_p)

    def raise_it(self) -> None:
        self._flag[0] = b"\x01"

    def clear(self) -> None:
        self._flag[0] = b"\x00"


class Candidates:
    """Tokens with their logits, as llama.cpp's samplers take them."""

    def __init__(self, tokens: NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]) -> None:
        self.data = np.zeros(len(tokens), _CANDIDATE)
        self.data["id"], self.data["logit"] = tokens, logits
        pointer = ctypes.cast(self.data.ctypes.data, ctypes.POINTER(L.llama_token_data))
        self.array = L.llama_token_data_array(pointer, len(tokens), -1, False)


def address_of(data: "np.ndarray[Any, np.dtype[np.uint8]]") -> Any:
    """A pointer to the bytes of ``data``, which must outlive it."""
    return ctypes.cast(data.ctypes.data, ctypes.POINTER(ctypes.c_uint8))

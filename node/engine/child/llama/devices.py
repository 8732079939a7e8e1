"""The devices that llama.cpp computes on, and the facts of a model that decide how much memory it takes.

This file imports nothing of llama.cpp: callers pass the library or its bindings. The functions of ggml's device
registry are declared here, because llama-cpp-python does not declare them.

A build for many machines (GGML_BACKEND_DL) has its backends as plug-ins, and llama-cpp-python loads none. llama.cpp
would then look for them beside Python's executable and in the current directory, and run what it finds there.
"""

import ctypes
import os
import re
from pathlib import Path
from typing import Any

from mycelia.node.engine.gguf import num_cached_heads
from mycelia.node.engine.sizing import MICRO_BATCH_TOKENS, Device, ModelShape

_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")
"""The values of ggml's enum ggml_backend_dev_type, in order."""
MAX_LISTED = 64
NO_DRIVER = "no driver offers a GPU"
KV_BYTES = 2
"""Size of one number in the KV cache: a 16-bit float."""

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_dev_count": (ctypes.c_size_t, []),
    "ggml_backend_dev_get": (ctypes.c_void_p, [ctypes.c_size_t]),
    "ggml_backend_dev_name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "ggml_backend_dev_description": (ctypes.c_char_p, [ctypes.c_void_p]),
    "ggml_backend_dev_type": (ctypes.c_int, [ctypes.c_void_p]),
    "ggml_backend_dev_memory": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]),
    "ggml_backend_reg_count": (ctypes.c_size_t, []),
    "ggml_backend_reg_get": (ctypes.c_void_p, [ctypes.c_size_t]),
    "ggml_backend_reg_name": (ctypes.c_char_p, [ctypes.c_void_p]),
    "ggml_backend_load_all_from_path": (None, [ctypes.c_char_p]),
}

_GPU_LIBRARY = re.compile(r"libggml-(cuda|vulkan|hip|musa|sycl|opencl)\.(so|dylib)[.\d]*")
_BACKENDS = {"cuda": "CUDA", "vulkan": "Vulkan", "hip": "ROCm", "musa": "MUSA", "sycl": "SYCL", "opencl": "OpenCL"}
"""The names that the libraries' backends have in ggml's registry."""


class Ggml:
    """ggml's device registry, found through a loaded libllama, which depends on ggml."""

    def __init__(self, library: Any) -> None:
        """library: libllama as a ctypes library. Raises AttributeError when it lacks one of the functions."""
        self._calls: dict[str, Any] = {}
        for name, (result, arguments) in _FUNCTIONS.items():
            # A new function object: other code may declare the library's cached one differently.
            self._calls[name] = ctypes.CFUNCTYPE(result, *arguments)((name, library))

    def load_plugins(self, folder: Path) -> None:
        """Load the backends that are plug-ins, from ``folder`` alone: for the processor the fastest variant that it can
        run, for GPUs those whose driver is there. Does nothing in a build whose backends are linked. Raises ImportError
        if there is no backend at all."""
        if self.backends():
            return
        self._call("load_all_from_path", os.fsencode(folder))
        if not self.backends():
            raise ImportError(f"llama.cpp's backends are missing in {folder}")

    def unusable(self, folder: Path) -> dict[str, str]:
        """The GPU backends in ``folder`` that did not start on this machine, with the reasons."""
        present, reasons = self.backends(), dict[str, str]()
        for path in sorted(folder.iterdir()):
            found = _GPU_LIBRARY.fullmatch(path.name)
            name = _BACKENDS[found[1]] if found else ""
            if name and name not in present and name not in reasons:
                try:
                    ctypes.CDLL(str(path))
                    reasons[name] = NO_DRIVER
                except OSError as exc:
                    reasons[name] = str(exc)
        return reasons

    def backends(self) -> list[str]:
        """The backends that work, such as CUDA and CPU, with or without such a device."""
        count = min(self._call("reg_count"), MAX_LISTED)
        return [_text(self._call("reg_name", self._call("reg_get", index))) for index in range(count)]

    def devices(self) -> list[Device]:
        """All devices in llama.cpp's order, with their free memory; ggml reports all memory of a processor as free."""
        found = []
        for index in range(min(self._call("dev_count"), MAX_LISTED)):
            device = self._call("dev_get", index)
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self._call("dev_memory", device, ctypes.addressof(free), ctypes.addressof(total))
            kind = self._call("dev_type", device)
            found.append(
                Device(
                    name=_text(self._call("dev_name", device)),
                    description=_text(self._call("dev_description", device)),
                    kind=_KINDS[kind] if 0 <= kind < len(_KINDS) else "unknown",
                    total_bytes=total.value,
                    free_bytes=free.value,
                )
            )
        return found

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._calls[f"ggml_backend_{name}"](*arguments)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace").strip()


def library_version(library: Any) -> str:
    """The version that a loaded libllama reports; empty when it reports none."""
    try:
        return _text(ctypes.CFUNCTYPE(ctypes.c_char_p)(("llama_version", library))())
    except AttributeError:
        return ""


def read_shape(bindings: Any, model: Any, path: Path) -> ModelShape:
    """The facts of a loaded model that sizes depend on. bindings: llama_cpp's low-level module. path: its file."""
    num_layers = int(bindings.llama_model_n_layer(model))
    heads, width = int(bindings.llama_model_n_head(model)), int(bindings.llama_model_n_embd(model))
    # llama.cpp tells the KV heads of the first layer, which in a hybrid model may have none. The file has all.
    cached_heads = num_cached_heads(path)
    if cached_heads is None:
        cached_heads = num_layers * (int(bindings.llama_model_n_head_kv(model)) or heads)
    kind = read_metadata(bindings, model, "general.architecture")
    key = _number(bindings, model, f"{kind}.attention.key_length", width // max(heads, 1))
    value = _number(bindings, model, f"{kind}.attention.value_length", width // max(heads, 1))
    if read_metadata(bindings, model, f"{kind}.attention.key_length_mla"):
        value = 0  # Latent attention computes the values from the keys and stores none.
    num_vocab = int(bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(model)))
    return ModelShape(
        num_layers=num_layers,
        trained_tokens=max(int(bindings.llama_model_n_ctx_train(model)), 0),
        weight_bytes=int(bindings.llama_model_size(model)),
        layer_cell_bytes=-(-cached_heads * (key + value) * KV_BYTES // max(num_layers, 1)),
        batch_bytes=MICRO_BATCH_TOKENS * num_vocab * 4,
    )


def read_metadata(bindings: Any, model: Any, name: str) -> str:
    """A short text or number from the model file's header, as text; empty when it is missing or a list."""
    text = ctypes.create_string_buffer(256)
    length = bindings.llama_model_meta_val_str(model, name.encode(), text, len(text))
    return text.value.decode("utf-8", "replace") if length > 0 else ""


def _number(bindings: Any, model: Any, name: str, default: int) -> int:
    text = read_metadata(bindings, model, name)
    return int(text) if text.isascii() and text.isdigit() else default

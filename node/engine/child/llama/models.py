"""Models and devices of llama.cpp, without a context."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from mycelia.node.engine.child.llama.bindings import FOLDER, LIBRARY, L, Log
from mycelia.node.engine.child.llama.devices import Ggml, read_metadata
from mycelia.node.engine.gguf import parts_of
from mycelia.node.engine.kinds import kind_of
from mycelia.node.engine.sizing import Device, Offload, usable_gpus
from mycelia.proto.wire.errors import LocalError


def model_digest(path: Path) -> bytes:
    """The BLAKE3 hash of a model's file: 0.14 s of CPU time for 98 MB. Of several files, the hash of their hashes."""
    digests = [_file_digest(part) for part in parts_of(path)]
    return digests[0] if len(digests) == 1 else blake3(b"".join(digests)).digest()


def _file_digest(path: Path) -> bytes:
    hasher = blake3()
    hasher.update_mmap(path)
    return hasher.digest()


def list_devices() -> list[Device]:
    return Ggml(LIBRARY).devices()


def list_backends() -> list[str]:
    """The backends of this build, such as CUDA and CPU, with or without such a device."""
    return [*unusable_backends(), *Ggml(LIBRARY).backends()]


def unusable_backends() -> dict[str, str]:
    """The backends of this build that did not start on this machine, with the reasons."""
    return Ggml(LIBRARY).unusable(FOLDER)


def find_gpus(offload: Offload) -> tuple[Device, ...]:
    """The GPUs that a model would be spread over, with their free memory. Raises LocalError; see ``usable_gpus``."""
    return usable_gpus(list_devices(), offload, list_backends())


def model_params(offload: Offload, gpus: Sequence[Device]) -> Any:
    """llama.cpp's parameters to load a model onto ``gpus``, the result of ``find_gpus``."""
    params = L.llama_model_default_params()
    params.n_gpu_layers = -1 if offload.layers is None else offload.layers
    if not gpus:
        # Even with no layers on a GPU llama.cpp would send large batches there, unless it has no GPU.
        params.n_gpu_layers, params.split_mode, params.main_gpu = 0, L.LLAMA_SPLIT_MODE_NONE, -1
    elif offload.main_gpu is not None:
        params.split_mode, params.main_gpu = L.LLAMA_SPLIT_MODE_NONE, offload.main_gpu
    elif offload.split:
        # llama.cpp reads as many numbers as there are devices. ctypes keeps the array as long as ``params``.
        params.tensor_split = (ctypes.c_float * max(int(L.llama_max_devices()), len(gpus)))(*offload.split)
    return params


def load_model(path: Path, params: Any, log: Log) -> Any:
    """Load a model. Raises LocalError, also for a kind of model that cannot be served."""
    model = L.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        reason = log.reason("llama.cpp gave no reason")
        hint = "; fewer --gpu-layers take less of it" if params.n_gpu_layers and "out of memory" in reason else ""
        raise LocalError(f"cannot load the model {path}: {reason}{hint}")
    if L.llama_model_has_encoder(model) or not L.llama_model_has_decoder(model):
        raise LocalError(f"cannot serve {path}: it is not a decoder-only text model")
    if L.llama_model_is_diffusion(model):
        raise LocalError(f"cannot serve {path}: diffusion models do not generate token by token")
    return model


def load_adapter(model: Any, path: Path, log: Log) -> Any:
    """Load a LoRA adapter of ``model``. Raises LocalError."""
    adapter = L.llama_adapter_lora_init(model, os.fsencode(path))
    if not adapter:
        raise LocalError(f"cannot use the adapter {path} with this model: {log.reason('it belongs to another one?')}")
    return adapter


class LoadedModel(NamedTuple):
    """A model and what it was loaded with: llama.cpp keeps pointers to the log and to the parameters."""

    handle: Any
    params: Any
    log: Log
    gpus: tuple[Device, ...]
    offload: Offload
    path: Path
    adapter: Any = None
    """A LoRA adapter; None: none."""

    def adapt(self, context: Any) -> None:
        """Apply the adapter, if there is one, to a new context."""
        if self.adapter is not None:
            adapters, scales = (L.llama_adapter_lora_p_ctypes * 1)(self.adapter), (ctypes.c_float * 1)(1.0)
            if L.llama_set_adapters_lora(context, adapters, 1, scales):
                raise LocalError(f"the adapter does not fit: {self.log.reason('llama.cpp gave no reason')}")

    def open_context(self, **wanted: Any) -> Any:
        """A context with llama.cpp's names of the parameters. The caller frees it with ``llama_free``. Raises
        LocalError."""
        params = L.llama_context_default_params()
        for name, value in wanted.items():
            setattr(params, name, value)
        context = L.llama_init_from_model(self.handle, params)
        if not context:
            raise LocalError(f"cannot open another context: {self.log.reason('no memory for it?')}")
        self.adapt(context)
        return context


def open_model(path: Path, offload: Offload, lora_path: Path | None = None) -> LoadedModel:
    """Load a model onto the GPUs that ``offload`` wants, and an adapter of it. Raises LocalError."""
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    log = Log()
    L.llama_backend_init()
    gpus = find_gpus(offload)
    params = model_params(offload, gpus)
    model = load_model(path, params, log)
    adapter = load_adapter(model, lora_path, log) if lora_path is not None else None
    return LoadedModel(model, params, log, gpus, offload, path, adapter)


def model_kind(model: Any) -> str:
    """See ``kinds.py``."""
    architecture = read_metadata(L, model, "general.architecture")
    return kind_of(architecture, read_metadata(L, model, f"{architecture}.pooling_type"))


def keeps_states(model: Any) -> bool:
    """Whether the model keeps one state per sequence, besides or instead of cells: see ``states.py``."""
    return bool(L.llama_model_is_recurrent(model) or L.llama_model_is_hybrid(model))

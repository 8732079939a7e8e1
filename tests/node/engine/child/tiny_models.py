"""Tiny models of random weights, written as GGUF files: recurrent and hybrid kinds, for which no package ships a file.

The tokens are <s>, </s>, <unk> and one for each byte. Equal arguments give equal files.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Types of tokens."""
NUM_VOCAB = 3 + 256
CONTEXT = 4096
HEADS, KERNEL, GROUPS, LORA = 4, 4, 2, 8
"""Heads, width of the convolution, groups of heads in linear attention, and the rank of small matrices."""

Shape = Sequence[int]
"""As llama.cpp names them: the innermost dimension first."""
Value = int | float | bool | str | list[int] | list[float] | list[str]

KINDS = ("mamba", "mamba2", "rwkv7", "falcon-h1", "granitehybrid", "lfm2", "qwen35")


def write_model(path: Path, kind: str, num_layers: int = 4, seed: int = 0, scale: int = 1) -> Path:
    """Write a model of one of ``KINDS`` to ``path``, and return it. scale: factor on all widths."""
    sizes, rng = Sizes(kind, scale), np.random.default_rng(seed)
    metadata = {"general.architecture": kind, **_vocabulary(), **sizes.metadata(num_layers)}
    tensors = {name: _weights(name, shape, rng) for name, shape in sizes.shapes(num_layers).items()}
    write_gguf(path, metadata, tensors)
    return path


def write_adapter(path: Path, kind: str, num_layers: int = 4, seed: int = 1, rank: int = 4) -> Path:
    """Write a LoRA adapter of the model that ``write_model`` writes with the same arguments, and return the path."""
    sizes, rng = Sizes(kind, 1), np.random.default_rng(seed)
    metadata: dict[str, Value] = {
        "general.architecture": kind,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(rank),
    }
    tensors = {}
    for name, (width, height) in (
        (name, shape) for name, shape in sizes.shapes(num_layers).items() if "ffn_up" in name
    ):
        tensors[f"{name}.lora_a"] = rng.normal(0.0, 0.3, (rank, width)).astype(np.float32)
        tensors[f"{name}.lora_b"] = rng.normal(0.0, 0.3, (height, rank)).astype(np.float32)
    write_gguf(path, metadata, tensors)
    return path


class Sizes:
    """The shapes of the tensors of one kind of model."""

    def __init__(self, kind: str, scale: int) -> None:
        self.kind = kind
        self.width, self.inner, self.feed, self.head = 64 * scale, 128 * scale, 128 * scale, 16 * scale
        self.state = 32 if kind == "qwen35" else 16
        self.ssm_heads = 4 * scale
        self.is_recurrent = kind in ("mamba", "mamba2", "rwkv7")

    def attends(self, layer: int) -> bool:
        return self.kind == "falcon-h1" or (not self.is_recurrent and layer % 4 == 3)

    def metadata(self, num_layers: int) -> dict[str, Value]:
        kind = self.kind
        sizes: dict[str, Value] = {
            "context_length": CONTEXT,
            "embedding_length": self.width,
            "block_count": num_layers,
            "feed_forward_length": 0 if self.is_recurrent else self.feed,
            "attention.head_count": 0 if self.is_recurrent else HEADS,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "vocab_size": NUM_VOCAB,
        }
        if not self.is_recurrent:
            heads = [2 if self.attends(layer) else 0 for layer in range(num_layers)]
            sizes["attention.head_count_kv"] = 2 if kind in ("falcon-h1", "qwen35") else heads
            sizes["rope.dimension_count"] = self.head
        if kind == "qwen35":
            sizes["rope.dimension_sections"] = [self.head // 4, self.head // 8, self.head // 8, 0]
            sizes |= {"attention.key_length": self.head, "attention.value_length": self.head}
        if kind == "lfm2":
            sizes["shortconv.l_cache"] = 3
        elif kind == "rwkv7":
            sizes |= {"wkv.head_size": self.head * 4, "token_shift_count": 2, "attention.layer_norm_epsilon": 1e-5}
            sizes |= {f"attention.{name}_lora_rank": LORA for name in ("decay", "iclr", "value_residual_mix", "gate")}
            sizes["feed_forward_length"] = self.feed
        else:
            sizes |= {"ssm.conv_kernel": KERNEL, "ssm.state_size": self.state}
            sizes["ssm.inner_size"] = self.ssm_heads * self.state if kind == "qwen35" else self.inner
            sizes["ssm.time_step_rank"] = self.ssm_heads
            sizes["ssm.group_count"] = {"qwen35": GROUPS, "mamba": 0}.get(kind, 1)
        return {f"{kind}.{name}": value for name, value in sizes.items()}

    def shapes(self, num_layers: int) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {
            "token_embd.weight": [self.width, NUM_VOCAB],
            "output.weight": [self.width, NUM_VOCAB],
            "token_embd_norm.weight" if self.kind == "lfm2" else "output_norm.weight": [self.width],
        }
        if self.kind == "rwkv7":
            shapes |= {"token_embd_norm.weight": [self.width], "token_embd_norm.bias": [self.width]}
            shapes["output_norm.bias"] = [self.width]
        for layer in range(num_layers):
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in self._layer(layer).items()}
        return shapes

    def _layer(self, layer: int) -> dict[str, Shape]:
        width, feed = self.width, self.feed
        shapes: dict[str, Shape] = {"attn_norm.weight": [width]}
        if not self.is_recurrent:
            norms = {"qwen35": "post_attention_norm.weight", "falcon-h1": "ffn_norm"}
            shapes[norms.get(self.kind, "ffn_norm.weight")] = [width]
            shapes |= {"ffn_gate.weight": [width, feed], "ffn_down.weight": [feed, width]}
            shapes["ffn_up.weight"] = [width, feed]
        if self.attends(layer):
            shapes["attn_q.weight"] = [width, 2 * width if self.kind == "qwen35" else width]
            shapes |= {"attn_k.weight": [width, 2 * self.head], "attn_v.weight": [width, 2 * self.head]}
            shapes["attn_output.weight"] = [width, width]
            if self.kind in ("lfm2", "qwen35"):
                shapes |= {"attn_q_norm.weight": [self.head], "attn_k_norm.weight": [self.head]}
        if not self.attends(layer) or self.kind == "falcon-h1":
            shapes |= self._recurrent()
        return shapes

    def _rwkv(self) -> dict[str, Shape]:
        width = self.width
        shapes: dict[str, Shape] = {"attn_norm.bias": [width], "attn_norm_2.weight": [width]}
        shapes["attn_norm_2.bias"] = [width]
        for part in "wav":
            shapes |= {f"time_mix_{part}0.weight": [width], f"time_mix_{part}1.weight": [width, LORA]}
            shapes[f"time_mix_{part}2.weight"] = [LORA, width]
        shapes |= {"time_mix_g1.weight": [width, LORA], "time_mix_g2.weight": [LORA, width]}
        shapes["time_mix_lerp_fused.weight"] = [width, 1, 1, 6]
        shapes |= {f"time_mix_{name}.weight": [width] for name in ("k_k", "k_a", "r_k")}
        shapes |= {f"time_mix_{name}.weight": [width, width] for name in ("key", "value", "receptance", "output")}
        shapes |= {
            "time_mix_ln.weight": [width],
            "time_mix_ln.bias": [width],
            "channel_mix_lerp_k.weight": [width, 1, 1],
        }
        return shapes | {"channel_mix_key.weight": [width, self.feed], "channel_mix_value.weight": [self.feed, width]}

    def _recurrent(self) -> dict[str, Shape]:
        if self.kind == "rwkv7":
            return self._rwkv()
        width, inner, state, heads = self.width, self.inner, self.state, self.ssm_heads
        if self.kind == "lfm2":
            return {
                "shortconv.conv.weight": [3, width],
                "shortconv.in_proj.weight": [width, 3 * width],
                "shortconv.out_proj.weight": [width, width],
            }
        if self.kind == "qwen35":
            mixed = 2 * GROUPS * state + heads * state
            return {
                "attn_qkv.weight": [width, mixed],
                "attn_gate.weight": [width, heads * state],
                "ssm_conv1d.weight": [KERNEL, mixed],
                "ssm_dt.bias": [heads],
                "ssm_a": [heads],
                "ssm_beta.weight": [width, heads],
                "ssm_alpha.weight": [width, heads],
                "ssm_norm.weight": [state],
                "ssm_out.weight": [heads * state, width],
            }
        shapes: dict[str, Shape] = {"ssm_out.weight": [inner, width]}
        if self.kind == "mamba":
            return shapes | {
                "ssm_in.weight": [width, 2 * inner],
                "ssm_conv1d.weight": [KERNEL, inner],
                "ssm_conv1d.bias": [inner],
                "ssm_x.weight": [inner, heads + 2 * state],
                "ssm_dt.weight": [heads, inner],
                "ssm_dt.bias": [inner],
                "ssm_a": [state, inner],
                "ssm_d": [inner],
            }
        return shapes | {
            "ssm_in.weight": [width, 2 * inner + 2 * state + heads],
            "ssm_conv1d.weight": [KERNEL, inner + 2 * state],
            "ssm_conv1d.bias": [inner + 2 * state],
            "ssm_dt.bias": [heads],
            "ssm_a": [1, heads],
            "ssm_d": [1, heads],
            "ssm_norm.weight": [inner, 1],
        }


def _weights(name: str, shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
    places = tuple(reversed(shape))
    if "norm" in name or "_ln." in name:
        return np.full(places, float(name.endswith((".weight", "ffn_norm"))), np.float32)
    if "lerp" in name:
        return rng.uniform(0.0, 1.0, places).astype(np.float32)
    if name.endswith("ssm_a"):
        return -rng.uniform(0.05, 1.0, places).astype(np.float32)
    size = 1.0 if "embd" in name else 1.5 / np.sqrt(shape[0])
    return rng.normal(0.0, size, places).astype(np.float32)


def _vocabulary() -> dict[str, Value]:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [0.0] * len(texts),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *([BYTE] * 256)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a GGUF file, version 3, with all tensors as 32-bit floats."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head.append(_string(key) + _typed(value))
    offset = 0
    for name, tensor in tensors.items():
        head.append(_string(name) + struct.pack("<I", tensor.ndim))
        head.append(struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape)) + struct.pack("<IQ", 0, offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    data = b"".join(head)
    with path.open("wb") as file:
        file.write(data + bytes(-len(data) % ALIGNMENT))
        for tensor in tensors.values():
            file.write(tensor.tobytes() + bytes(-tensor.nbytes % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    if isinstance(value, list):
        kind = STRING if isinstance(value[0], str) else FLOAT32 if isinstance(value[0], float) else INT32
        items = [_typed(item)[4:] for item in value]
        return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)
    if isinstance(value, bool):
        return struct.pack("<IB", BOOL, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    return struct.pack("<If", FLOAT32, value) if isinstance(value, float) else struct.pack("<II", UINT32, value)

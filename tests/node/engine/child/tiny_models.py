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
WIDTH, INNER, STATE, HEADS, KERNEL, FEED = 64, 128, 16, 4, 4, 128
"""Widths of the model, of recurrent layers and of a state; heads; widths of the convolution and the feed-forward."""
HEAD = WIDTH // HEADS

Shape = Sequence[int]
"""As llama.cpp names them: the innermost dimension first."""
Value = int | float | bool | str | list[int] | list[float] | list[str]

KINDS = ("mamba", "mamba2", "falcon-h1", "granitehybrid", "lfm2", "qwen35")


def write_model(path: Path, kind: str, num_layers: int = 4, seed: int = 0, width: int = WIDTH) -> Path:
    """Write a model of one of ``KINDS``. Mutates nothing else; returns ``path``."""
    rng = np.random.default_rng(seed)
    metadata = {"general.architecture": kind, **_vocabulary(), **_sizes(kind, num_layers)}
    shapes: dict[str, Shape] = {"token_embd.weight": [WIDTH, NUM_VOCAB], "output.weight": [WIDTH, NUM_VOCAB]}
    shapes["token_embd_norm.weight" if kind == "lfm2" else "output_norm.weight"] = [WIDTH]
    for layer in range(num_layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _layer(kind, layer).items()}
    tensors = {name: _weights(name, shape, rng) for name, shape in shapes.items()}
    write_gguf(path, metadata, tensors)
    return path


def _attends(kind: str, layer: int) -> bool:
    return kind == "falcon-h1" or (kind not in ("mamba", "mamba2") and layer % 4 == 3)


def _sizes(kind: str, num_layers: int) -> dict[str, Value]:
    heads = [2 if _attends(kind, layer) else 0 for layer in range(num_layers)]
    sizes: dict[str, Value] = {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": num_layers,
        "feed_forward_length": 0 if kind.startswith("mamba") else FEED,
        "attention.head_count": 0 if kind.startswith("mamba") else HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": NUM_VOCAB,
    }
    if not kind.startswith("mamba"):
        sizes["attention.head_count_kv"] = 2 if kind in ("falcon-h1", "qwen35") else heads
        sizes["rope.dimension_count"] = HEAD
    if kind == "qwen35":
        sizes |= {"rope.dimension_sections": [4, 2, 2, 0], "attention.key_length": HEAD, "attention.value_length": HEAD}
    if kind == "lfm2":
        sizes["shortconv.l_cache"] = 3
    else:
        groups = {"qwen35": 2, "mamba": 0}.get(kind, 1)
        ranks = {"mamba": 4, "qwen35": 4}.get(kind, INNER // 32)
        state = 32 if kind == "qwen35" else STATE
        sizes |= {"ssm.conv_kernel": KERNEL, "ssm.inner_size": INNER, "ssm.state_size": state}
        sizes |= {"ssm.time_step_rank": ranks, "ssm.group_count": groups}
    return {f"{kind}.{name}": value for name, value in sizes.items()}


def _layer(kind: str, layer: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"attn_norm.weight": [WIDTH]}
    if not kind.startswith("mamba"):
        shapes["post_attention_norm.weight" if kind == "qwen35" else "ffn_norm.weight"] = [WIDTH]
        shapes |= {"ffn_gate.weight": [WIDTH, FEED], "ffn_down.weight": [FEED, WIDTH], "ffn_up.weight": [WIDTH, FEED]}
    if kind == "falcon-h1":
        del shapes["ffn_norm.weight"]
        shapes["ffn_norm"] = [WIDTH]
    if _attends(kind, layer):
        queries = 2 * WIDTH if kind == "qwen35" else WIDTH
        shapes |= {"attn_q.weight": [WIDTH, queries], "attn_output.weight": [WIDTH, WIDTH]}
        shapes |= {"attn_k.weight": [WIDTH, 2 * HEAD], "attn_v.weight": [WIDTH, 2 * HEAD]}
        if kind in ("lfm2", "qwen35"):
            shapes |= {"attn_q_norm.weight": [HEAD], "attn_k_norm.weight": [HEAD]}
    if not _attends(kind, layer) or kind == "falcon-h1":
        shapes |= _recurrent(kind)
    return shapes


def _recurrent(kind: str) -> dict[str, Shape]:
    if kind == "lfm2":
        inner: Shape = [WIDTH, 3 * WIDTH]
        return {
            "shortconv.conv.weight": [3, WIDTH],
            "shortconv.in_proj.weight": inner,
            "shortconv.out_proj.weight": [WIDTH, WIDTH],
        }
    if kind == "qwen35":
        heads, groups, state = 4, 2, 32
        mixed = 2 * groups * state + heads * state
        return {
            "attn_qkv.weight": [WIDTH, mixed],
            "attn_gate.weight": [WIDTH, heads * state],
            "ssm_conv1d.weight": [KERNEL, mixed],
            "ssm_dt.bias": [heads],
            "ssm_a": [heads],
            "ssm_beta.weight": [WIDTH, heads],
            "ssm_alpha.weight": [WIDTH, heads],
            "ssm_norm.weight": [state],
            "ssm_out.weight": [heads * state, WIDTH],
        }
    if kind == "mamba":
        return {
            "ssm_in.weight": [WIDTH, 2 * INNER],
            "ssm_conv1d.weight": [KERNEL, INNER],
            "ssm_conv1d.bias": [INNER],
            "ssm_x.weight": [INNER, 4 + 2 * STATE],
            "ssm_dt.weight": [4, INNER],
            "ssm_dt.bias": [INNER],
            "ssm_a": [STATE, INNER],
            "ssm_d": [INNER],
            "ssm_out.weight": [INNER, WIDTH],
        }
    heads = INNER // 32
    return {
        "ssm_in.weight": [WIDTH, 2 * INNER + 2 * STATE + heads],
        "ssm_conv1d.weight": [KERNEL, INNER + 2 * STATE],
        "ssm_conv1d.bias": [INNER + 2 * STATE],
        "ssm_dt.bias": [heads],
        "ssm_a": [1, heads],
        "ssm_d": [1, heads],
        "ssm_norm.weight": [INNER, 1],
        "ssm_out.weight": [INNER, WIDTH],
    }


def _weights(name: str, shape: Shape, rng: np.random.Generator) -> NDArray[np.float32]:
    places = tuple(reversed(shape))
    if "norm" in name:
        return np.ones(places, np.float32)
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

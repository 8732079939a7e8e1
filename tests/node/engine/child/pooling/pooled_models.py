"""Tiny embedding and reranking models of random weights, written as GGUF files. Equal arguments give equal files.

``bert`` has a vocabulary of letters, as words are split in BERT; ``qwen3`` one of bytes, with the control tokens that
its rerank template has.
"""

from pathlib import Path

import numpy as np

from tests.node.engine.child.tiny_models import CONTROL, NORMAL, UNKNOWN, Value, write_gguf

MEAN, FIRST, LAST, RANK = 1, 2, 3, 4
"""llama.cpp's pooling types."""
WIDTH, FEED, HEADS, LAYERS, CONTEXT = 32, 64, 4, 2, 96
PAD, UNK, CLS, SEP = range(4)
TEMPLATE = "<|im_start|>Judge.<|im_end|><Query>: {query}\n<Document>: {document}<|im_end|>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
_BLANK = "\u2581"


def write_bert(path: Path, pooling: int) -> Path:
    """A model of BERT's kind; of RANK with a classification head of two layers. Returns ``path``."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(_BLANK + letter for letter in _LETTERS), *_LETTERS]
    metadata: dict[str, Value] = {
        "general.architecture": "bert",
        "bert.context_length": CONTEXT,
        "bert.embedding_length": WIDTH,
        "bert.block_count": LAYERS,
        "bert.feed_forward_length": FEED,
        "bert.attention.head_count": HEADS,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL, UNKNOWN, CONTROL, CONTROL, *([NORMAL] * (len(tokens) - 4))],
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.bos_token_id": CLS,
        "tokenizer.ggml.unknown_token_id": UNK,
        "tokenizer.ggml.seperator_token_id": SEP,
        "tokenizer.ggml.padding_token_id": PAD,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), WIDTH),
        "position_embd.weight": (CONTEXT, WIDTH),
        "token_types.weight": (2, WIDTH),
        "token_embd_norm.weight": (WIDTH,),
        "token_embd_norm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"blk.{layer}.{name}.weight": (WIDTH, WIDTH), f"blk.{layer}.{name}.bias": (WIDTH,)}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"blk.{layer}.{name}.weight": (WIDTH,), f"blk.{layer}.{name}.bias": (WIDTH,)}
        shapes |= {f"blk.{layer}.ffn_up.weight": (FEED, WIDTH), f"blk.{layer}.ffn_up.bias": (FEED,)}
        shapes |= {f"blk.{layer}.ffn_down.weight": (WIDTH, FEED), f"blk.{layer}.ffn_down.bias": (WIDTH,)}
    if pooling == RANK:
        shapes |= {"cls.weight": (WIDTH, WIDTH), "cls.bias": (WIDTH,)}
        shapes |= {"cls.output.weight": (1, WIDTH), "cls.output.bias": (1,)}
    return _write(path, metadata, shapes)


def write_qwen3(path: Path, pooling: int, template: str = TEMPLATE) -> Path:
    """A model of Qwen3's kind, whose tokens attend to earlier ones only; of RANK with a head of two classes, and a
    template for pairs if ``template`` is not empty. Returns ``path``."""
    head, tokens = WIDTH // HEADS, ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    controls = ["<|im_start|>", "<|im_end|>"]
    metadata: dict[str, Value] = {
        "general.architecture": "qwen3",
        "qwen3.context_length": CONTEXT,
        "qwen3.embedding_length": WIDTH,
        "qwen3.block_count": LAYERS,
        "qwen3.feed_forward_length": FEED,
        "qwen3.attention.head_count": HEADS,
        "qwen3.attention.head_count_kv": HEADS,
        "qwen3.attention.key_length": head,
        "qwen3.attention.value_length": head,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.pooling_type": pooling,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + controls,
        "tokenizer.ggml.scores": [0.0] * (len(tokens) + 2),
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *([6] * 256), CONTROL, CONTROL],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    if pooling == RANK:
        metadata["qwen3.classifier.output_labels"] = ["yes", "no"]
        if template:
            metadata["tokenizer.chat_template.rerank"] = template
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens) + 2, WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {
            "attn_norm": (WIDTH,),
            "ffn_norm": (WIDTH,),
            "attn_q_norm": (head,),
            "attn_k_norm": (head,),
        }
        own |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        own |= {"ffn_gate": (FEED, WIDTH), "ffn_up": (FEED, WIDTH), "ffn_down": (WIDTH, FEED)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
    if pooling == RANK:
        shapes["cls.output.weight"] = (2, WIDTH)
    return _write(path, metadata, shapes)


def _write(path: Path, metadata: dict[str, Value], shapes: dict[str, tuple[int, ...]]) -> Path:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        if "norm" in name:
            tensors[name] = np.full(shape, float(name.endswith("weight")), np.float32)
        else:
            tensors[name] = rng.normal(0.0, 0.3 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1]), shape).astype(
                np.float32
            )
    write_gguf(path, metadata, tensors)
    return path

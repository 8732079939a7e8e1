"""``dimensions``: the first numbers of a vector, for models that allow it."""

import numpy as np
import pytest

from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.short_vectors import shortened

VECTOR = np.random.default_rng(1).normal(size=768).astype(np.float32)


@pytest.mark.parametrize("name", ["embeddinggemma-300M-Q8_0", "Qwen3-Embedding-0.6B", "jina-embeddings-v3"])
def test_a_short_vector_has_the_direction_of_the_first_numbers_and_length_1(name: str) -> None:
    short = shortened(name, 256)
    assert short is not None
    cut = short(VECTOR)
    assert len(cut) == 256 and cut.dtype == np.float32 and np.linalg.norm(cut) == pytest.approx(1)
    assert cut / cut[0] == pytest.approx(VECTOR[:256] / VECTOR[0], rel=1e-4)


def test_nomics_vectors_are_centred_first() -> None:
    short = shortened("nomic-embed-text-v1.5.f16", 64)
    assert short is not None
    centred = (VECTOR - VECTOR.mean())[:64]
    assert short(VECTOR) == pytest.approx(centred / np.linalg.norm(centred), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "dimensions", "says"),
    [
        ("smollm2", 64, "no shorter ones"),
        ("smollm2", 769, "no shorter ones"),
        ("nomic-embed-text-v1", 64, "no shorter ones"),
        ("embeddinggemma", 64, "128 to 768"),
        ("embeddinggemma", 769, "128 to 768"),
    ],
)
def test_other_widths_are_refused(name: str, dimensions: int, says: str) -> None:
    short = shortened(name, dimensions)
    assert short is not None
    with pytest.raises(HttpError, match=says) as caught:
        short(VECTOR)
    assert caught.value.status == 400


def test_the_models_own_width_is_always_good() -> None:
    short = shortened("smollm2", 768)
    assert short is not None and short(VECTOR) is VECTOR and shortened("smollm2", None) is None

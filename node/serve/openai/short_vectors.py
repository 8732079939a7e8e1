"""Shorter vectors: ``dimensions`` of embeddings.

A model trained for it (Matryoshka representation learning, https://arxiv.org/abs/2205.13147) puts most of a text's
meaning into the first numbers of its vector. From any other model, the first numbers alone say little. No model file
tells whether it is such a model, so they are listed here by name.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mycelia.node.serve.http.errors import HttpError

_LEAST = {
    r"embedding-?gemma": 128,
    r"nomic-embed-text-v1\.5": 64,
    r"nomic-embed-text-v2": 256,
    r"qwen3-embedding": 32,
    r"mxbai-embed-large": 512,
    r"snowflake-arctic-embed-(m-v1\.5|[ml]-v2)": 256,
    r"jina-embeddings-v3": 32,
    r"jina-embeddings-v4": 128,
}
"""Pattern in the model's name -> the fewest dimensions that its authors recommend."""
_CENTRED = re.compile(r"nomic-embed-text-v1\.5")
"""Models whose vectors are centred before they are cut, by their authors' instructions."""


@dataclass(frozen=True)
class Shortened:
    model: str
    dimensions: int

    def __call__(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first numbers of ``vector``, scaled to length 1. Raises HttpError if that is no vector of the model."""
        if self.dimensions == len(vector):
            return vector
        least = next((least for pattern, least in _LEAST.items() if re.search(pattern, self.model.lower())), None)
        if least is None:
            raise _refusal(f"{self.model!r} has vectors of {len(vector)} dimensions, and no shorter ones")
        if not least <= self.dimensions < len(vector):
            raise _refusal(f"{self.model!r} has vectors of {least} to {len(vector)} dimensions")
        centre = vector.mean() if _CENTRED.search(self.model.lower()) else 0.0
        cut = vector[: self.dimensions] - centre
        return (cut / max(float(np.linalg.norm(cut)), 1e-12)).astype(np.float32)


def shortened(model: str, dimensions: int | None) -> Shortened | None:
    """None: vectors of the model's own width are wanted."""
    return None if dimensions is None else Shortened(model, dimensions)


def _refusal(message: str) -> HttpError:
    return HttpError(400, message, param="dimensions")

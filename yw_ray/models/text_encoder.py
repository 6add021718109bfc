"""Text encoders: class names -> unit vectors.

Place in the flow: Vocabulary.texts -> embed_texts -> (T, 512) rows, picked by `Batch.text_ids`.
Source: YOLO-World (arXiv 2401.17270) prompts a CLIP text tower with bare class names.
`HashedWords` is a stated stand-in where no weights can be had: runs with it are never results.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.backbone import TEXT_DIM
from yw_ray.recipe import TextConfig


class HashedWords(nn.Module):
    """Each word is a fixed random unit vector; a text is the normalised sum of its words.

    Texts that share words are similar ("red circle" is made of "red" and "circle"), nothing else
    is known about them. Needs no weights; equal on every machine. The empty text has a vector of
    its own.
    """

    def encode(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, 512) float32 unit rows."""
        rows = [sum(_word_vector(word) for word in text.lower().split() or [""]) for text in texts]
        stacked = torch.from_numpy(np.array(rows, dtype=np.float64).reshape(-1, TEXT_DIM))
        return F.normalize(stacked, dim=-1).float()


def _word_vector(word: str) -> np.ndarray:
    digest = hashlib.sha256(word.encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    vector = rng.standard_normal(TEXT_DIM)
    return vector / np.linalg.norm(vector)


def embed_texts(encoder: HashedWords, texts: Sequence[str]) -> Tensor:
    """T texts -> (T, 512) float32 unit rows on the CPU."""
    return encoder.encode(texts)


def build_text_encoder(config: TextConfig) -> HashedWords:
    """The encoder that the recipe names.

    Raises: ValueError for an encoder that needs weights when none are at hand.
    """
    if config.encoder == "hashed-words":
        return HashedWords()
    raise ValueError("text.encoder=clip-vit-b32 is not wired up yet; use text.encoder=hashed-words")

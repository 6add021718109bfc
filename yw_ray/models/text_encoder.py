"""Text encoders: class names -> unit vectors.

Place in the flow: Vocabulary.texts -> embed_texts -> (T, 512) rows, picked by `Batch.text_ids`.
Source: YOLO-World (arXiv 2401.17270) prompts the text tower of CLIP ViT-B/32 with bare class names.
`HashedWords` is a stated stand-in where no weights can be had: runs with it are never results.
open_clip is imported only when CLIP is asked for.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yw_ray.models.backbone import TEXT_DIM
from yw_ray.recipe import TextConfig

ARCHITECTURE = "ViT-B-32-quickgelu"
MAX_TOKENS = 77
END_TOKEN = 49407
_TEXTS_AT_ONCE = 256


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


class ClipText(nn.Module):
    """The text tower of CLIP ViT-B/32, randomly initialised until weights are loaded.

    cache_dir: where `embed_texts` keeps what a frozen tower computed; None keeps nothing.
    """

    def __init__(self, cache_dir: Path | None = None) -> None:
        super().__init__()
        import open_clip
        from open_clip.transformer import QuickGELU, TextTransformer

        settings: Any = open_clip.get_model_config(ARCHITECTURE)
        self.tower = TextTransformer(
            **settings["text_cfg"], output_dim=settings["embed_dim"], act_layer=QuickGELU
        )
        self.cache_dir = cache_dir

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, L) int64 token ids, padded with the end token to the longest text.

        Nothing is cut off, and padding after the first end token cannot change a vector.
        Raises: ValueError for a text of more than 77 tokens.
        """
        rows = []
        for text in texts:
            ids = self._tokenizer.encode(text)
            if len(ids) + 2 > MAX_TOKENS:
                raise ValueError(
                    f"text of {len(ids) + 2} tokens exceeds the encoder's {MAX_TOKENS}: "
                    f"{text[:60]!r}...; shorten it"
                )
            rows.append([self._tokenizer.sot_token_id, *ids, END_TOKEN])
        longest = max((len(row) for row in rows), default=0)
        padded = [row + [END_TOKEN] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), longest)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, L) token ids -> (T, 512) float32 unit rows, with gradients where asked for."""
        return F.normalize(self.project(tokens).float(), dim=-1)

    def project(self, tokens: Tensor) -> Tensor:
        """(T, L) token ids -> (T, 512) projected features, not normalised.

        open_clip's own forward wants all 77 positions; class names need a tenth of them.
        """
        tower, length = self.tower, tokens.shape[1]
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        # the first of the largest ids is the end of the text
        pooled = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        return tower.ln_final(pooled) @ tower.text_projection

    def encode(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, 512) float32 unit rows on the tower's device."""
        device = self.tower.token_embedding.weight.device
        parts = [
            self(self.tokenize(texts[i : i + _TEXTS_AT_ONCE]).to(device))
            for i in range(0, len(texts), _TEXTS_AT_ONCE)
        ]
        return torch.cat(parts) if parts else torch.empty(0, TEXT_DIM, device=device)

    def digest(self) -> str:
        """Hash of the weights; equal for equal weights wherever they came from."""
        state = hashlib.sha256()
        for name, tensor in sorted(self.tower.state_dict().items()):
            state.update(name.encode())
            state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return state.hexdigest()


TextEncoder = HashedWords | ClipText


def embed_texts(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """T texts -> (T, 512) float32 unit rows, the one door for every encoder.

    A frozen tower's rows come without gradient, on the CPU, from the disk cache where it holds
    them: the key is a hash of the weights and the texts, so neither can go stale. A tower that is
    trained (its parameters require gradients and gradients are enabled) is run each time, on its
    device, with gradients.
    Raises: ValueError for a text of more than 77 tokens.
    """
    if isinstance(encoder, HashedWords):
        return encoder.encode(texts)
    trained = any(p.requires_grad for p in encoder.parameters())
    if trained and torch.is_grad_enabled():
        return encoder.encode(texts)
    if encoder.cache_dir is None:
        return _frozen_rows(encoder, texts)
    key = hashlib.sha256(encoder.digest().encode())
    for text in texts:
        key.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    path = encoder.cache_dir / f"{key.hexdigest()}.npy"
    cached = _read_rows(path, len(texts))
    if cached is None:
        cached = _frozen_rows(encoder, texts)
        _write_rows(path, cached)
    return cached


@torch.no_grad()
def _frozen_rows(encoder: ClipText, texts: Sequence[str]) -> Tensor:
    was_training = encoder.training
    rows = encoder.eval().encode(texts).cpu()
    encoder.train(was_training)
    return rows


def _read_rows(path: Path, num_texts: int) -> Tensor | None:
    """Cached rows, or None where there are none or the file is not what we wrote."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if rows.shape != (num_texts, TEXT_DIM) or rows.dtype != np.float32:
        return None
    return torch.from_numpy(rows)


def _write_rows(path: Path, rows: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")
    with part.open("wb") as stream:
        np.save(stream, rows.numpy(), allow_pickle=False)
    part.replace(path)


def build_text_encoder(
    config: TextConfig,
    *,
    pretrained: str | None = "openai",
    state: Mapping[str, Tensor] | None = None,
    cache_dir: Path | None = None,
    trainable: bool = False,
) -> TextEncoder:
    """The encoder that the recipe names.

    Args:
        pretrained: open_clip's tag or file of weights; None leaves the tower random.
        state: the tower's tensors by open_clip's names, preferred over `pretrained` (official
            checkpoints give them through `weights.official.text_tower_from_official`).
        cache_dir: keep embeddings of a frozen tower here.
        trainable: leave gradients on.
    Raises: ValueError in one line when the weights cannot be had.
    """
    if config.encoder == "hashed-words":
        return HashedWords()
    encoder = ClipText(cache_dir)
    if state is None and pretrained is not None:
        state = _open_clip_weights(pretrained, set(encoder.tower.state_dict()))
    if state is not None:
        encoder.tower.load_state_dict(dict(state))
    return encoder.train(trainable).requires_grad_(trainable)


def _open_clip_weights(pretrained: str, names: set[str]) -> dict[str, Tensor]:
    import open_clip

    try:
        model = open_clip.create_model(ARCHITECTURE, pretrained=pretrained)
    except Exception as error:  # download and file errors of several libraries
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"no CLIP weights for {ARCHITECTURE} from {pretrained!r} ({reason}); start from an "
            f"official checkpoint that carries the text tower, or use text.encoder=hashed-words"
        ) from error
    return {name: t for name, t in model.state_dict().items() if name in names}

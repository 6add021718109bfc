"""Build: the model and the text vectors of a run, from a recipe and its starting weights.

Place in the flow: every worker, evaluation job and dry run that needs real weights starts here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from yw_ray.data.vocabulary import Vocabulary
from yw_ray.jobs.convert import official_tensors
from yw_ray.models.reparam import fold_vocabulary
from yw_ray.models.text_encoder import (
    ClipText,
    TextEncoder,
    build_text_encoder,
    embed_texts,
)
from yw_ray.models.yolo_world import YoloWorld, build_model
from yw_ray.recipe import Recipe
from yw_ray.weights.official import (
    LoadReport,
    has_text_tower,
    load_official,
    text_tower_from_official,
    unwrap,
)


def initial_model(
    recipe: Recipe, vocabulary: Vocabulary, reports: list[LoadReport] | None = None
) -> YoloWorld:
    """The model before the first step: from `init_from`, else random by the recipe's seed.

    A re-parameterised model that starts from text-conditioned weights gets the vocabulary folded
    in. A model that trains its text tower carries it.

    Args: reports: what was loaded is appended here.
    """
    torch.manual_seed(recipe.seed)
    texts_model = recipe.model.model_copy(update={"prompts": "texts"})
    folds = recipe.model.prompts == "reparam" and recipe.init_from is not None
    model = build_model(texts_model if folds else recipe.model)
    if recipe.train_text_encoder:
        encoder = text_encoder_of(recipe, trainable=True)
        if not isinstance(encoder, ClipText):
            raise ValueError(
                "train_text_encoder needs text.encoder=clip-vit-b32; the stand-in has no weights"
            )
        model.text_encoder = encoder
    if recipe.init_from:
        report = load_official(model, official_tensors(Path(recipe.init_from)))
        if reports is not None:
            reports.append(report)
    if folds:
        eval_rows = vocabulary.eval_text_ids()
        vectors = embed_texts(text_encoder_of(recipe), vocabulary.texts)[eval_rows]
        model = fold_vocabulary(model, vectors)
    return model


def check_weights(recipe: Recipe, vocabulary: Vocabulary) -> str:
    """What the starting weights bring to the model, one line; empty for a random start.

    Raises: ValueError in one line when they do not fit, or when the text tower cannot be had.
    """
    text_encoder_of(recipe)
    if not recipe.init_from:
        return ""
    reports: list[LoadReport] = []
    initial_model(recipe, vocabulary, reports)
    return f"{recipe.init_from}: {reports[0].summary()}"


def text_encoder_of(recipe: Recipe, *, trainable: bool = False) -> TextEncoder:
    """The recipe's text encoder; CLIP's weights come from the starting checkpoint if it has them.

    Raises: ValueError in one line where no weights can be had.
    """
    state = None
    path = Path(recipe.init_from) if recipe.init_from else None
    if recipe.text.encoder == "clip-vit-b32" and path is not None:
        content = official_tensors(path)
        if has_text_tower(content):
            state = text_tower_from_official(unwrap(content))
    return build_text_encoder(
        recipe.text,
        state=state,
        cache_dir=Path(recipe.tracking.storage) / "text_cache",
        trainable=trainable,
    )


def text_vectors(recipe: Recipe, model: YoloWorld, texts: tuple[str, ...]) -> Tensor:
    """(T, 512) vectors of texts for a model: by its own tower where it trains one."""
    encoder = model.text_encoder
    if isinstance(encoder, ClipText):
        with torch.no_grad():
            return embed_texts(encoder, texts)
    return embed_texts(text_encoder_of(recipe), texts)

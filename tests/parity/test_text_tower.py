"""The text tower against recorded features, and its published names."""

from pathlib import Path

import golden_models as gm
import numpy as np
import pytest
import torch
from torch import Tensor

from yw_ray.models.text_encoder import ClipText, build_text_encoder, embed_texts
from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import ModelConfig, TextConfig
from yw_ray.weights.official import (
    export_official,
    load_official,
    load_text_tower,
    text_tower_to_official,
)

ATOL = 1e-5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        paths = gm.files(metafunc.config, "text_tower")
        metafunc.parametrize("path", paths, ids=[p.stem for p in paths])


@pytest.fixture(scope="module")
def encoder(goldens: Path) -> ClipText:
    tensors = gm.manifest(goldens, "text_tower")["tensors"]
    make = gm.recipe(goldens).weight
    state = {n: torch.from_numpy(np.asarray(make(n, shape))) for n, (shape, _) in tensors.items()}
    built = build_text_encoder(TextConfig(), pretrained=None)
    assert isinstance(built, ClipText)
    load_text_tower(built, {"state_dict": state})
    return built


@pytest.fixture(scope="module")
def official(encoder: ClipText) -> dict[str, Tensor]:
    return text_tower_to_official(encoder.tower.state_dict())


def test_tower_has_the_recorded_names_shapes_and_order(
    goldens: Path, encoder: ClipText, official: dict[str, Tensor]
) -> None:
    recorded = gm.manifest(goldens, "text_tower")
    assert list(official) == list(recorded["tensors"])
    for name, tensor in official.items():
        assert [list(tensor.shape), str(tensor.dtype)[6:]] == recorded["tensors"][name], name
    assert sum(p.numel() for p in encoder.parameters()) == recorded["parameters"]


def test_tower_survives_both_translations(goldens: Path, official: dict[str, Tensor]) -> None:
    make = gm.recipe(goldens).weight
    for name, tensor in official.items():
        np.testing.assert_array_equal(tensor.numpy(), make(name, tensor.shape), err_msg=name)


def test_text_features_equal_the_recorded_ones(path: Path, encoder: ClipText) -> None:
    recorded = gm.read(path)
    tokens = torch.tensor(recorded["input_ids"])
    with torch.no_grad():
        raw, unit = encoder.project(tokens), encoder(tokens)
    gm.check_summary(raw, recorded["text_embeds"], "text_embeds", samples_atol=ATOL)
    np.testing.assert_allclose(unit.numpy(), recorded["normalised"], atol=ATOL, rtol=0)
    np.testing.assert_allclose((unit @ unit.T).numpy(), recorded["cosines"], atol=ATOL, rtol=0)


def test_layers_equal_the_recorded_ones(path: Path, encoder: ClipText) -> None:
    # Padding positions are part of the record and see the attention mask, which our own calls do
    # without: it cannot reach the pooled position. So the layers are driven here by hand.
    recorded = gm.read(path)
    tokens, keep = torch.tensor(recorded["input_ids"]), torch.tensor(recorded["attention_mask"])
    length = tokens.shape[1]
    mask = torch.full((length, length), float("-inf")).triu_(1).expand(len(tokens), -1, -1)
    mask = mask.masked_fill(keep[:, None, :] == 0, float("-inf"))
    tower = encoder.tower
    per_head = mask.repeat_interleave(tower.heads, 0)
    taps = {}
    with torch.no_grad():
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        for i, block in enumerate(tower.transformer.resblocks):
            x = block(x, attn_mask=per_head)
            taps[f"layer{i}"] = x
    for name, want in recorded["taps"].items():
        gm.check_summary(taps[name], want, name)


def test_padding_does_not_change_a_vector(path: Path, encoder: ClipText) -> None:
    recorded = gm.read(path)
    tokens, keep = torch.tensor(recorded["input_ids"]), recorded["attention_mask"]
    with torch.no_grad():
        together = encoder(tokens)
        alone = [encoder(row[: sum(k)][None])[0] for row, k in zip(tokens, keep, strict=True)]
    np.testing.assert_allclose(together.numpy(), torch.stack(alone).numpy(), atol=ATOL, rtol=0)


def test_embeddings_are_unit_rows_and_come_from_the_cache_unchanged(
    encoder: ClipText, tmp_path: Path
) -> None:
    texts = ["person", "", "traffic light"]
    encoder.cache_dir = tmp_path
    first = embed_texts(encoder, texts)
    assert first.shape == (3, 512) and first.dtype == torch.float32 and not first.requires_grad
    np.testing.assert_allclose(first.norm(dim=1).numpy(), 1, atol=1e-6)
    (file,) = tmp_path.iterdir()
    np.save(file, first.numpy() * 2)  # shows that the second call reads
    np.testing.assert_array_equal(embed_texts(encoder, texts).numpy(), first.numpy() * 2)
    file.write_bytes(b"damaged")
    np.testing.assert_array_equal(embed_texts(encoder, texts).numpy(), first.numpy())
    embed_texts(encoder, texts[::-1])
    assert len(list(tmp_path.iterdir())) == 2
    encoder.tower.ln_final.bias.data[0] += 1  # other weights, other embeddings
    changed = embed_texts(encoder, texts)
    encoder.tower.ln_final.bias.data[0] -= 1
    encoder.cache_dir = None
    assert len(list(tmp_path.iterdir())) == 3 and not torch.allclose(changed, first)


def test_a_text_beyond_the_context_is_named_in_one_line(encoder: ClipText) -> None:
    ids = encoder.tokenize(["word " * 75, "a"])
    assert ids.shape == (2, 77) and ids[1].tolist()[2:] == [49407] * 75
    with pytest.raises(ValueError, match=r"^text of 78 tokens exceeds .*'word word") as error:
        encoder.tokenize(["fine", "word " * 76])
    assert "\n" not in str(error.value)


def test_a_trained_tower_gives_gradients_through_the_same_door(encoder: ClipText) -> None:
    encoder.requires_grad_(True)
    rows = embed_texts(encoder, ["person", "dog"])
    rows[0, 0].backward()
    grads = [p.grad for p in encoder.parameters()]
    encoder.requires_grad_(False)
    encoder.zero_grad()
    assert all(g is not None for g in grads)
    np.testing.assert_allclose(
        rows.detach().numpy(), embed_texts(encoder, ["person", "dog"]).numpy(), atol=ATOL
    )


def test_a_model_exports_its_tower_in_the_official_place_and_loads_it(
    goldens: Path, encoder: ClipText, official: dict[str, Tensor]
) -> None:
    config = ModelConfig(size="n")
    model, other = build_model(config), build_model(config)
    model.text_encoder = encoder
    fresh = build_text_encoder(TextConfig(), pretrained=None)
    other.text_encoder = fresh
    exported = export_official(model)
    names = list(exported)
    start = names.index(next(iter(official)))
    assert names[start : start + len(official)] == list(official)
    assert names[start - 1].startswith("backbone.image_model.stage4")
    assert names[start + len(official)].startswith("neck.")
    report = load_official(other, {"state_dict": exported})
    assert set(report.loaded) == set(exported) and not report.problems
    again = export_official(other)
    assert all(torch.equal(exported[name], again[name]) for name in names)
    without = {name: t for name, t in exported.items() if name not in official}
    with pytest.raises(ValueError, match=r"^weights do not fit the model: 197 missing"):
        load_official(other, without)
    with pytest.raises(ValueError, match="lacks 197 of 197 text tower tensors"):
        load_text_tower(fresh, without)

"""The model as a whole: shapes, layouts, precision, initial values, prompts, edges."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yw_ray.models.backbone import SCALES, STRIDES
from yw_ray.models.outputs import RawOutputs
from yw_ray.models.reparam import fold_vocabulary
from yw_ray.models.yolo_world import PromptEmbeddings, YoloWorld, build_model, normalize_images
from yw_ray.recipe import ModelConfig

VARIANTS = {
    "v2": ModelConfig(size="n"),
    "v1_dual_seg": ModelConfig(size="n", version="v1", neck="dual_vlpan", segmentation=True),
    "v1_efficient": ModelConfig(size="n", version="v1", neck="efficient"),
    "v2_seg": ModelConfig(size="n", segmentation=True),
    "reparam": ModelConfig(size="n", prompts="reparam", num_prompts=6),
    "prompts": ModelConfig(size="n", prompts="embeddings", num_prompts=6, prompt_adapter=True),
}


def texts(batch: int = 2, num: int = 6, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(batch, num, 512, generator=g), dim=-1)


def images(batch: int = 2, h: int = 64, w: int = 96, seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(seed))


def make(name: str, seed: int = 0) -> tuple[YoloWorld, Tensor | None]:
    torch.manual_seed(seed)
    config = VARIANTS[name]
    return build_model(config), texts() if config.prompts == "texts" else None


def tensors(outputs: RawOutputs) -> list[Tensor]:
    extra = [*(outputs.mask_coeffs or ()), *([] if outputs.protos is None else [outputs.protos])]
    return [*outputs.cls_logits, *outputs.box_dist, *extra]


def settle(model: YoloWorld, text_feats: Tensor | None = None) -> YoloWorld:
    """The model in eval mode, its batch norms holding the statistics of one batch."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(4, seed=9), None if text_feats is None else texts(4, seed=9))
    for norm in norms:
        norm.momentum = 0.03
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_have_the_stated_shapes_and_every_parameter_gets_a_gradient(name: str) -> None:
    model, text_feats = make(name)
    outputs = model(images(), text_feats)
    for i, stride in enumerate(STRIDES):
        h, w = 64 // stride, 96 // stride
        assert outputs.cls_logits[i].shape == (2, 6, h, w)
        assert outputs.box_dist[i].shape == (2, 64, h, w)
        assert outputs.mask_coeffs is None or outputs.mask_coeffs[i].shape == (2, 32, h, w)
    assert outputs.protos is None or outputs.protos.shape == (2, 32, 16, 24)
    assert (outputs.protos is not None) == VARIANTS[name].segmentation
    sum(t.square().sum() for t in tensors(outputs)).backward()  # type: ignore[union-attr]
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", VARIANTS)
def test_channels_last_changes_layout_only(name: str) -> None:
    model, text_feats = make(name)
    settle(model, text_feats)
    with torch.no_grad():
        plain = tensors(model(images(), text_feats))
        fast = images().contiguous(memory_format=torch.channels_last)
        last = tensors(model.to(memory_format=torch.channels_last)(fast, text_feats))
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)
        assert b.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_texts", [6, 100])
def test_autocast_gives_finite_float32_logits_and_gradients(
    dtype: torch.dtype, num_texts: int
) -> None:
    model, _ = make("v1_dual_seg")
    text_feats = texts(num=num_texts)
    reference = model(images(), text_feats)
    with torch.autocast("cpu", dtype):
        outputs = model(images(), text_feats)
    assert all(t.dtype == torch.float32 for t in outputs.cls_logits)
    for a, b in zip(tensors(reference), tensors(outputs), strict=True):
        error = (a - b.float()).square().mean().sqrt()
        assert error < 100 * torch.finfo(dtype).eps * a.std()  # an untrained net amplifies
    sum(t.float().square().mean() for t in tensors(outputs)).backward()  # type: ignore[union-attr]
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_and_backward_never_ask_the_device_for_a_value(name: str) -> None:
    with torch.device("meta"):  # reading a value from a meta tensor raises
        model = build_model(VARIANTS[name])
        text_feats = torch.empty(2, 100, 512) if VARIANTS[name].prompts == "texts" else None
        outputs = model(torch.empty(2, 3, 64, 64), text_feats)
        sum(t.sum() for t in tensors(outputs)).backward()  # type: ignore[union-attr]
    assert outputs.cls_logits[0].is_meta


def test_compiles_without_graph_breaks() -> None:
    model, _ = make("v1_dual_seg")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    outputs = compiled(images(), texts(num=100))  # enough texts for the running maximum
    assert outputs.cls_logits[0].shape[1] == 100


def test_batch_norms_can_be_synchronised() -> None:
    model, _ = make("v2_seg")
    plain = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    kinds = {type(m) for m in synced.modules() if hasattr(m, "running_mean")}
    assert kinds == {nn.SyncBatchNorm} and plain
    assert synced.head.contrasts[0].norm.eps == 1e-3
    assert synced.backbone.stem.bn.momentum == 0.03


def test_initial_values_are_the_published_ones() -> None:
    model, _ = make("v1_dual_seg")
    v2, _ = make("v2")
    for i, want in enumerate((-11.537, -10.150, -8.764)):
        assert model.head.contrasts[i].bias.item() == pytest.approx(want, abs=2e-3)
        assert v2.head.contrasts[i].bias.item() == pytest.approx(want, abs=2e-3)
        assert model.head.contrasts[i].logit_scale.item() == pytest.approx(math.log(1 / 0.07))
        assert v2.head.contrasts[i].logit_scale.item() == -1.0
        assert (v2.head.box_branches[i][-1].bias == 1).all()
        assert (v2.head.cls_branches[i][-1].bias == 0).all()
    branch = v2.head.cls_branches[2][0].conv.weight  # He, fan-out
    assert branch.std().item() == pytest.approx(math.sqrt(2 / (branch.shape[0] * 9)), rel=0.05)
    stem = v2.backbone.stem.conv.weight  # torch's default: uniform within 1 / sqrt(fan-in)
    assert 0.9 < stem.abs().max().item() * math.sqrt(27) <= 1.0
    assert (v2.neck.top_down[0].attention.bias == 0).all()


def test_head_ignores_the_length_of_text_vectors_and_the_neck_does_not() -> None:
    model, text_feats = make("v2")
    assert text_feats is not None
    settle(model, text_feats)
    with torch.no_grad():
        maps = model.neck(model.backbone(images()), text_feats)
        once, thrice = model.head(maps, text_feats), model.head(maps, 3 * text_feats)
        other = model.neck(model.backbone(images()), 3 * text_feats)
    for a, b in zip(once.cls_logits, thrice.cls_logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(maps, other, strict=True))


def test_predictions_do_not_depend_on_the_order_of_texts() -> None:
    model, text_feats = make("v1_dual_seg")
    assert text_feats is not None
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    model.eval()
    with torch.no_grad():
        a, b = model(images(), text_feats), model(images(), text_feats[:, order])
    for x, y in zip(a.cls_logits, b.cls_logits, strict=True):
        torch.testing.assert_close(x[:, order], y, atol=1e-5, rtol=1e-5)
    for x, y in zip(a.box_dist, b.box_dist, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_pictures_become_rgb_in_the_unit_range() -> None:
    bgr = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    rgb = normalize_images(bgr)
    assert rgb.dtype == torch.float32 and rgb.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(rgb.numpy(), bgr.numpy()[:, ::-1] / 255.0, rtol=1e-6)


def test_folding_twice_with_other_vocabularies_leaves_the_model_alone() -> None:
    model, text_feats = make("v2")
    settle(model, text_feats)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for num, seed in ((6, 3), (4, 4)):
        vocabulary = texts(1, num, seed)
        folded = fold_vocabulary(model, vocabulary[0])
        with torch.no_grad():
            want, got = model(images(), vocabulary.expand(2, -1, -1)), folded(images())
        for a, b in zip(tensors(want), tensors(got), strict=True):
            torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)
        built = build_model(ModelConfig(size="n", prompts="reparam", num_prompts=num))
        built.load_state_dict(folded.state_dict())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_learned_prompts_fold_like_texts() -> None:
    model, _ = make("prompts")
    settle(model)
    with torch.no_grad():
        a, b = model(images()), fold_vocabulary(model)(images())
    for x, y in zip(a.cls_logits, b.cls_logits, strict=True):
        torch.testing.assert_close(x, y, atol=2e-3, rtol=1e-3)


def test_learned_prompts_are_unit_rows_and_stay_so_behind_the_adapter() -> None:
    torch.manual_seed(0)
    bare, adapted = PromptEmbeddings(5, adapter=False), PromptEmbeddings(5, adapter=True)
    for prompts in (bare, adapted):
        with torch.no_grad():
            torch.testing.assert_close(prompts(3).norm(dim=-1), torch.ones(3, 5))
            prompts.embeddings.mul_(2)
    with torch.no_grad():
        torch.testing.assert_close(bare(1).norm(dim=-1), torch.full((1, 5), 2.0))
        torch.testing.assert_close(adapted(1).norm(dim=-1), torch.ones(1, 5))


def test_a_text_encoder_in_the_model_is_trained_through_it() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 512)

        def forward(self, tokens: Tensor) -> Tensor:
            return nn.functional.normalize(self.table(tokens[:, 0]), dim=-1)

    model, _ = make("v2")
    model.text_encoder = Lookup()
    names = [name for name, _ in model.named_children()]
    assert names == ["backbone", "text_encoder", "neck", "head"]
    tokens, rows = torch.tensor([[2, 0], [5, 0], [7, 0]]), torch.tensor([[0, 1], [2, 1]])
    outputs = model(images(), tokens=tokens, token_rows=rows)
    outputs.cls_logits[0].sum().backward()
    used = model.text_encoder.table.weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == [2, 5, 7]


@pytest.mark.parametrize("change", [{"version": "v1"}, {"neck": "dual_vlpan"}])
def test_what_cannot_be_folded_is_refused_in_one_line(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="reparam") as error:
        build_model(ModelConfig.model_validate({"size": "n", "prompts": "reparam", **change}))
    assert "\n" not in str(error.value)
    with torch.device("meta"):
        model = build_model(ModelConfig.model_validate({"size": "n", **change}))
    with pytest.raises(ValueError, match="only a text-conditioned v2 model"):
        fold_vocabulary(model, torch.empty(3, 512))
    with pytest.raises(ValueError, match=r"shape \(K, 512\), got \(3, 8\)"):
        fold_vocabulary(model, torch.empty(3, 8))


def test_scale_n_is_s_at_half_its_width() -> None:
    n, s = SCALES["n"], SCALES["s"]
    assert [2 * c for c in n.pyramid] == list(s.pyramid) and n.pyramid == (64, 128, 256)
    assert n.num_heads == (1, 2, 4) and s.num_heads == (2, 4, 8)

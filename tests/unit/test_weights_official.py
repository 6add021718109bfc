"""Official checkpoints: safe reading, wrappers, which differences are allowed."""

import collections
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from yw_ray.models.yolo_world import YoloWorld, build_model
from yw_ray.recipe import ModelConfig
from yw_ray.weights.checkpoint_file import StandIn, read_checkpoint
from yw_ray.weights.official import (
    TEXT_TOWER,
    export_official,
    has_text_tower,
    load_official,
    unwrap,
)


def model_of(seed: int = 0, **changes: Any) -> YoloWorld:
    torch.manual_seed(seed)
    return build_model(ModelConfig.model_validate({"size": "n", **changes}))


def equal_shared(model: YoloWorld, state: dict[str, Tensor]) -> bool:
    own = export_official(model)
    return all(torch.equal(own[name], state[name]) for name in own if name in state)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A framework that exists while a file is written and is gone when it is read."""
    module = types.ModuleType("lostframework")

    class ConfigDict(dict):  # type: ignore[type-arg]
        pass

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values = [1.0, 2.0]

    class Names(list):  # type: ignore[type-arg]
        pass

    for cls in (ConfigDict, HistoryBuffer, Names):
        cls.__module__, cls.__qualname__ = "lostframework", cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "lostframework", module)
    return module


def test_a_file_with_framework_objects_gives_its_tensors_and_imports_nothing(
    tmp_path: Path, framework: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = export_official(model_of(1))
    state["half"] = torch.arange(6, dtype=torch.float16).reshape(2, 3).T
    shared = torch.arange(10.0)
    content = {
        "meta": {
            "cfg": framework.ConfigDict(a=framework.ConfigDict(b=1)),
            "history": framework.HistoryBuffer(),
            "names": framework.Names(["a", "b"]),
            "path": Path("x"),
            "counts": collections.Counter("abca"),
            "big": 2**70,
            "sets": {frozenset({1}), (2, None, True, b"x")},
        },
        "state_dict": state,
        "view": shared[2:5],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(content, tmp_path / "f.pth")
    monkeypatch.delitem(sys.modules, "lostframework")
    read = read_checkpoint(tmp_path / "f.pth")
    assert "lostframework" not in sys.modules
    assert isinstance(read["meta"]["history"], StandIn)
    assert read["state_dict"].keys() == state.keys()
    for name, tensor in read["state_dict"].items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name
    assert torch.equal(read["view"], shared[2:5]) and torch.equal(read["parameter"], torch.ones(2))
    fresh = model_of(2)
    load_official(fresh, {"state_dict": {k: v for k, v in state.items() if k != "half"}})
    assert equal_shared(fresh, state)


class _Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch ran",), "system"),
        (eval, ("open('ran', 'w')",), "eval"),
        (exec, ("open('ran', 'w')",), "exec"),
        (os.mkdir, ("ran",), "mkdir"),
        (__import__, ("antigravity",), "__import__"),
        (open, ("ran", "w"), "open"),
    ],
)
def test_a_file_that_asks_to_run_code_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, args: Any, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": _Call(function, *args)}, "f.pth")
    with pytest.raises(ValueError, match=f"asks to run .*{named}.*refused") as error:
        read_checkpoint(Path("f.pth"))
    assert "\n" not in str(error.value) and not Path("ran").exists()


def test_a_bare_pickle_or_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "f.pth"
    ran = tmp_path / "ran"
    torch.save({"a": torch.ones(1000), "meta": Path("x")}, tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("x", "y")
    for content in (
        pickle.dumps(_Call(os.mkdir, str(ran))),
        b"not a checkpoint",
        b"",
        good[: len(good) // 2],
        (tmp_path / "other.zip").read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checkpoint .*f\.pth") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value) and not ran.exists()
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, expected a dict"):
        read_checkpoint(path)


def test_wrappers_are_taken_off_and_averaged_weights_are_preferred() -> None:
    bare, raw = export_official(model_of(1)), export_official(model_of(2))
    wrapped = {
        "state_dict": {f"module.{k}": v for k, v in bare.items()},
        "ema_state_dict": {
            **{f"module.{k}": v for k, v in raw.items()},
            "steps": torch.tensor(7),
        },
        "meta": {"epoch": 1},
    }
    for checkpoint, which, want in (
        (bare, False, bare),
        (wrapped, False, bare),
        (wrapped, True, raw),
        ({"ema_state_dict": wrapped["ema_state_dict"]}, False, raw),
    ):
        model = model_of(3)
        report = load_official(model, checkpoint, raw=which)
        assert not report.missing and not report.unexpected and equal_shared(model, want)
    with pytest.raises(ValueError, match="holds no tensors, only: meta"):
        unwrap({"meta": {}})


def test_known_differences_are_allowed_and_reported_by_reason() -> None:
    v1_dual = export_official(model_of(1, version="v1", neck="dual_vlpan"))
    v2 = export_official(model_of(1))
    position_ids = {TEXT_TOWER + "text_model.embeddings.position_ids": torch.arange(77)[None]}
    tower_part = {TEXT_TOWER + "text_model.final_layer_norm.bias": torch.zeros(512)}
    cases: list[tuple[dict[str, Any], dict[str, Tensor], str]] = [
        ({}, {**v2, **position_ids}, "position ids"),
        ({}, {**v2, **tower_part}, "text tower tensors left"),
        ({"neck": "efficient"}, v2, "text attention tensors skipped"),
        ({"version": "v1"}, v1_dual, "text update tensors skipped"),
        ({"segmentation": True}, v2, "segmentation tensors left"),
        ({"prompts": "embeddings", "num_prompts": 3}, v2, "prompt tensors left"),
    ]
    for changes, state, reason in cases:
        model = model_of(2, **changes)
        report = load_official(model, state)
        assert not report.problems and equal_shared(model, state)
        assert [r for r in report.explained if r.startswith(reason)], report.summary()
        assert reason in report.summary()


def test_unknown_differences_are_refused_by_name_and_change_nothing() -> None:
    state = export_official(model_of(1))
    stem, extra = "backbone.image_model.stem.conv.weight", "neck.surprise.weight"
    broken = {**state, extra: torch.ones(1), stem: torch.ones(2, 2)}
    del broken["bbox_head.head_module.cls_contrasts.0.norm.weight"]
    model = model_of(2)
    before = export_official(model)
    with pytest.raises(ValueError) as error:
        load_official(model, broken)
    line = str(error.value)
    assert "\n" not in line and extra in line and "cls_contrasts.0.norm.weight" in line
    assert f"{stem} [2, 2] for [16, 3, 3, 3]" in line
    assert equal_shared(model, before)
    report = load_official(model, broken, strict=False)
    assert report.unexpected == (extra,) and len(report.problems) == 3
    assert [name for name, *_ in report.mismatched] == [stem]
    other = export_official(model)
    assert torch.equal(other[stem], before[stem])
    assert torch.equal(
        other["neck.downsample_layers.0.conv.weight"], state["neck.downsample_layers.0.conv.weight"]
    )


def test_weights_of_another_generation_or_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"missing: .*cls_contrasts\.0\.norm"):
        load_official(model_of(), export_official(model_of(version="v1")))
    with torch.device("meta"):
        small = build_model(ModelConfig(size="s"))
    with pytest.raises(ValueError, match="of another shape"):
        load_official(small, export_official(model_of()))


def test_a_detector_without_tower_says_so() -> None:
    assert not has_text_tower(export_official(model_of()))

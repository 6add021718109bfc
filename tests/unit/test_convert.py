"""Weights in and out by the command line: nothing lost, nothing run, one line for what is wrong."""

import pickle
from pathlib import Path

import pytest
import torch

from yw_ray.cli import main as cli
from yw_ray.jobs.convert import official_tensors, open_model
from yw_ray.models.text_encoder import HashedWords
from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import ModelConfig
from yw_ray.weights.official import export_official, load_official


def call(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v2 detector in the official layout and wrapping, random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "official.pth"
    tensors = export_official(build_model(ModelConfig(size="n")).eval())
    torch.save({"state_dict": tensors, "meta": {"epoch": 3}}, path)
    return path


def test_import_and_export_give_back_every_tensor(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("weights", "import", official, "--out", tmp_path / "ours.pt") == 0
    assert "v2-n vlpan_bn, prompts texts" in capsys.readouterr().out
    assert (
        call("weights", "export-official", tmp_path / "ours.pt", "--out", tmp_path / "b.pth") == 0
    )
    before = torch.load(official, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert call("weights", "import", official, "--out", tmp_path / "ours.pt") == 2
    assert "exists" in capsys.readouterr().err


def test_a_vocabulary_is_folded_again_and_again_and_equals_the_conditioned_model(
    official: Path, tmp_path: Path
) -> None:
    source = open_model(official).model.eval()
    images = torch.rand(1, 3, 64, 64)
    for names in (["red circle", "blue star"], ["a"], [f"thing {i}" for i in range(90)]):
        texts, out = tmp_path / f"{len(names)}.txt", tmp_path / f"{len(names)}.pt"
        texts.write_text("\n".join(names))
        code = call(
            "reparam", official, "--texts", texts, "--out", out, "--encoder", "hashed-words"
        )
        assert code == 0
        folded = open_model(out)
        assert folded.texts == tuple(names) and folded.config.num_prompts == len(names)
        with torch.no_grad():
            ours = folded.model.eval()(images)
            theirs = source(images, HashedWords().encode(names)[None])
        for a, b in zip(ours.cls_logits, theirs.cls_logits, strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": True},
        {"neck": "efficient"},
        {"prompts": "embeddings", "num_prompts": 7},
    ],
)
def test_a_detection_file_starts_another_kind_of_model_and_says_what_it_left(
    official: Path, change: dict[str, object]
) -> None:
    model = build_model(ModelConfig.model_validate({"size": "n", **change}))
    report = load_official(model, official_tensors(official))
    assert not report.problems and report.explained and len(report.loaded) > 100


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("open('sprung', 'w')",))


@pytest.mark.parametrize("kind", ["trap", "text", "other", "absent"])
def test_what_is_no_detector_is_refused_in_one_line(
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    if kind == "trap":
        torch.save({"state_dict": {"a": torch.ones(1)}, "meta": Trap()}, path)
    elif kind == "text":
        path.write_bytes(pickle.dumps("hello"))
    elif kind == "other":
        torch.save({"state_dict": {"layer.weight": torch.ones(1)}}, path)
    assert call("weights", "import", path, "--out", tmp_path / "out.pt") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert not (tmp_path / "out.pt").exists() and not (tmp_path / "sprung").exists()

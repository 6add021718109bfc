"""The stand-in text encoder and the door to all encoders."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from yw_ray.models import text_encoder as module
from yw_ray.models.text_encoder import HashedWords, build_text_encoder, embed_texts
from yw_ray.recipe import TextConfig

WORDS = TextConfig(encoder="hashed-words")


def test_hashed_words_are_unit_rows_equal_in_every_process() -> None:
    texts = ["red circle", "blue square", "", "Red  Circle"]
    rows = embed_texts(build_text_encoder(WORDS), texts)
    assert rows.shape == (4, 512) and rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    assert torch.equal(rows[0], rows[3])
    code = (
        "from yw_ray.models.text_encoder import *\n"
        f"print(embed_texts(HashedWords(), {texts!r})[:, :3].flatten().tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(rows[:, :3].flatten().tolist())


def test_texts_are_made_of_their_words() -> None:
    pair, red, circle, square, empty = embed_texts(
        HashedWords(), ["red circle", "red", "circle", "square", ""]
    )
    assert float(pair @ red) == pytest.approx(float(pair @ circle), abs=1e-6)
    assert float(pair @ red) > 0.6
    assert abs(float(pair @ square)) < 0.2 and abs(float(empty @ pair)) < 0.2
    torch.testing.assert_close(pair, torch.nn.functional.normalize(red + circle, dim=0))


def test_no_texts_give_no_rows() -> None:
    assert embed_texts(HashedWords(), []).shape == (0, 512)


def test_open_clip_is_not_imported_unless_asked_for() -> None:
    code = (
        "import sys\n"
        "from yw_ray.models.text_encoder import *\n"
        "embed_texts(build_text_encoder(TextConfig(encoder='hashed-words')), ['a'])\n"
        "print('open_clip' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_missing_clip_weights_are_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoTower(torch.nn.Module):
        def __init__(self, cache_dir: Path | None) -> None:
            super().__init__()
            self.tower = torch.nn.Linear(1, 1)

    monkeypatch.setattr(module, "ClipText", NoTower)
    with pytest.raises(ValueError, match=r"text\.encoder=hashed-words") as error:
        build_text_encoder(TextConfig(), pretrained=str(tmp_path / "absent.pt"))
    assert "\n" not in str(error.value)

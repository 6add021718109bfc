"""What the generated world is: its difficulty, its classes and the base / novel split.

Place in the flow: `synth.py` draws it; jobs read `world.json` back to know which classes are novel.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yw_ray.data.shapes import HUES, SHAPES

WORLD_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How hard the generated world is."""

    colors: tuple[str, ...] = ("red", "yellow", "green", "cyan", "blue", "magenta")
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "moon")
    num_novel: int = 6
    """Pairs kept out of training; each colour and each shape is in at most one of them."""
    num_objects: tuple[int, int] = (1, 4)
    """Fewest and most objects of a picture (fewer where no free place is found)."""
    side: tuple[float, float] = (0.25, 0.6)
    """Smallest and largest object side, share of the picture's side."""
    max_overlap: float = 0.0
    """Largest box overlap allowed, share of the smaller box; later objects lie on top."""
    max_rotation_deg: float = 10.0
    noise: float = 6.0
    """Standard deviation of the background noise, grey levels."""
    novel_share: float = 0.25
    """Share of novel objects in validation pictures."""
    common_weight: float = 0.5
    """How often a common pair is drawn, relative to a frequent one (a third are common)."""
    empty_share: float = 0.02
    crowd_share: float = 0.02
    """Share of pictures with a crowd region (RLE, iscrowd 1)."""
    split_share: float = 0.05
    """Share of objects cut into two parts by a gap (polygons of two parts)."""

    def __post_init__(self) -> None:
        for name, values, known in (
            ("colors", self.colors, tuple(HUES)),
            ("shapes", self.shapes, SHAPES),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not values or len(set(values)) != len(values):
                raise ValueError(f"world.{name} must be distinct names of {known}, got {values}")
        sides = len(self.colors), len(self.shapes)
        most = min(sides) if min(sides) > 1 else 0  # each colour and shape needs other partners
        if not 0 <= self.num_novel <= most:
            raise ValueError(f"world.num_novel must be 0 to {most}, got {self.num_novel}")
        if not 1 <= self.num_objects[0] <= self.num_objects[1]:
            raise ValueError(f"world.num_objects must be 1 <= low <= high, got {self.num_objects}")
        if not 0.05 <= self.side[0] <= self.side[1] <= 0.8:
            raise ValueError(f"world.side must be 0.05 <= low <= high <= 0.8, got {self.side}")
        for name in ("max_overlap", "novel_share", "empty_share", "crowd_share", "split_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"world.{name} must be 0 to 1, got {getattr(self, name)}")
        if not 0 < self.common_weight <= 1:
            raise ValueError(f"world.common_weight must be in (0, 1], got {self.common_weight}")


@dataclass(frozen=True)
class Pair:
    """One class. frequency: r for novel pairs, c or f for base pairs."""

    category_id: int
    color: str
    shape: str
    frequency: str

    @property
    def text(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def novel(self) -> bool:
        return self.frequency == "r"


@dataclass(frozen=True, kw_only=True)
class World:
    """What `world.json` says. category_ids: text -> id in all annotation files of the world."""

    seed: int
    num_train: int
    num_val: int
    image_size: int
    base: tuple[str, ...]
    novel: tuple[str, ...]
    category_ids: dict[str, int]
    digest: str
    config: dict[str, Any] = field(default_factory=dict)


def class_pairs(config: WorldConfig) -> tuple[Pair, ...]:
    """All classes of the world, in the order of the json's categories (ids have gaps)."""
    pairs: list[Pair] = []
    base_seen = 0
    for i, color in enumerate(config.colors):
        for j, shape in enumerate(config.shapes):
            index = i * len(config.shapes) + j
            # a shifted diagonal: every colour and every shape at most once
            if i < config.num_novel and j == (i + 2) % len(config.shapes):
                frequency = "r"
            else:
                frequency = "c" if base_seen % 3 == 2 else "f"
                base_seen += 1
            pairs.append(Pair(1 + index + index // 5, color, shape, frequency))
    return tuple(pairs)


def load_world(folder: Path) -> World:
    """Read `world.json`.

    Raises: ValueError if the folder holds no finished world.
    """
    path = folder / "world.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format")
        if version != WORLD_FORMAT:
            raise ValueError(
                f"{path} has format {version}, expected {WORLD_FORMAT}: generate it again"
            )
        content["base"], content["novel"] = tuple(content["base"]), tuple(content["novel"])
        return World(**content)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no world.json: run `yw-ray prepare synth` first"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not a world description: generate the world again") from None

"""The stream on a local Ray: the order of the plan, the same samples wherever they are made."""

from pathlib import Path

import numpy as np
import pytest

from yw_ray.data.feed import SampleMaker, ordered_samples, plan_for
from yw_ray.data.sample import Sample
from yw_ray.data.shards import load_manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.data.windows import read_windows
from yw_ray.jobs.cluster import ensure_ray, wait_for_resources
from yw_ray.recipe import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    Recipe,
    ScheduleConfig,
    TextConfig,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def recipe(world: Path) -> Recipe:
    return Recipe(
        name="tiny",
        model=ModelConfig(size="n"),
        text=TextConfig(encoder="hashed-words", num_train_texts=30),
        data=DataConfig(train=str(world / "train"), image_size=64, lanes=4, window_rows=16),
        augment=AugmentConfig(mixup=0.5),
        schedule=ScheduleConfig(epochs=2, global_batch=16, close_mosaic_epochs=0),
    )


def _equal(a: Sample, b: Sample) -> bool:
    return (
        a.image_id == b.image_id
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.text_ids, b.text_ids)
    )


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ray_reads_the_windows_of_the_plan_in_order(recipe: Recipe, world_size: int) -> None:
    from yw_ray.jobs.stream import ray_windows

    ensure_ray()
    folder = Path(recipe.data.train)
    plan = plan_for(recipe, load_manifest(folder))
    wanted = plan.worker_windows(1, world_size - 1, world_size, first_step=2)
    by_ray = list(ray_windows(folder, wanted, cpus=1))
    here = list(read_windows(folder, wanted))
    assert [(w, s) for w, s, _ in by_ray] == [(w, s) for w, s, _ in here]
    for (_, _, a), (_, _, b) in zip(by_ray, here, strict=True):
        assert [r.jpeg for r in a] == [r.jpeg for r in b]


def test_samples_made_by_ray_tasks_equal_those_of_worker_threads_bit_for_bit(
    recipe: Recipe,
) -> None:
    from yw_ray.jobs.stream import ray_samples

    ensure_ray()
    folder = Path(recipe.data.train)
    manifest = load_manifest(folder)
    plan = plan_for(recipe, manifest)
    make = SampleMaker(recipe, plan, Vocabulary.from_classes(manifest.classes))
    lanes = [lane for s in range(plan.steps_per_epoch) for lane in plan.worker_lanes(1, 2, s)]
    wanted = plan.worker_windows(0, 1, 2)
    here = ordered_samples(
        read_windows(folder, wanted), lanes, make, threads=3, cache_bytes=2**18, ahead=8
    )
    there = ray_samples(folder, wanted, lanes, make, cpus=1, cache_bytes=2**24)
    for a, b in zip(here, there, strict=True):
        assert _equal(a, b)


def test_a_cluster_that_stays_too_small_is_named_with_what_it_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ensure_ray()
    with pytest.raises(ValueError, match=r"needs 1000 CPU \(cluster has 4\)"):
        wait_for_resources({"CPU": 1000}, wait_s=1)
    assert "waiting up to 1 s for 1000 CPU" in capsys.readouterr().out

"""The order of samples: a pure function of digest, seed, epoch and step."""

import numpy as np
import pytest

from yw_ray.data.plan import Plan, RowGroup, check_world, epoch_ids, share_windows

DIGEST = "0123456789abcdef" * 4


def make_plan(rows: list[int], lanes: int = 8, window: int = 16, batch: int = 16, seed: int = 0):
    groups = [RowGroup(f"{i // 3:05d}.parquet", i % 3, n) for i, n in enumerate(rows)]
    plan = Plan(
        groups, digest=DIGEST, seed=seed, lanes=lanes, window_rows=window, global_batch=batch
    )
    ids = np.split(np.arange(sum(rows)), np.cumsum(rows)[:-1])
    return plan, [part.tolist() for part in ids]


def worker_order(plan: Plan, ids: list[list[int]], epoch: int, world: int, first: int = 0):
    """Per step, the set of (lane, id) that `world` workers serve, as the feed does."""
    number = {group: k for k, group in enumerate(plan.groups)}
    steps: list[list[tuple[int, int]]] = [[] for _ in range(plan.steps_per_epoch)]
    for rank in range(world):
        queues: dict[int, list[int]] = {}
        for window, skip in plan.worker_windows(epoch, rank, world, first):
            rows = [
                ids[number[p.group]][row] for p in window.pieces for row in range(p.start, p.stop)
            ]
            queues.setdefault(window.lane, []).extend(rows[k] for k in window.order[skip:])
        for step in range(first, plan.steps_per_epoch):
            for lane in plan.worker_lanes(rank, world, step):
                steps[step].append((lane, queues[lane].pop(0)))
        assert not any(queues.values())
    return [sorted(step) for step in steps]


SIZES = [[64] * 6 + [13], [5], [64, 64, 1], [1] * 11, [300, 7]]


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("batch", [8, 16, 4])
def test_every_id_comes_once_an_epoch_and_padding_is_all_in_the_last_batch(rows, batch):
    plan, ids = make_plan(rows, batch=batch)
    for epoch in range(2):
        order = epoch_ids(plan, ids, epoch)
        flat = order.ravel()
        assert sorted(flat[: plan.num_rows].tolist()) == list(range(plan.num_rows))
        assert flat.size - plan.num_rows == plan.padding < batch


@pytest.mark.parametrize("rows", SIZES)
def test_one_two_four_and_eight_workers_make_the_same_global_batches(rows):
    plan, ids = make_plan(rows)
    reference = epoch_ids(plan, ids, 1)
    for world in (1, 2, 4, 8):
        steps = worker_order(plan, ids, 1, world)
        for step, pairs in enumerate(steps):
            assert sorted(i for _, i in pairs) == sorted(reference[step].tolist())
        assert steps == worker_order(plan, ids, 1, 1)


@pytest.mark.parametrize("rows", SIZES[:3])
@pytest.mark.parametrize("batch", [16, 4])
def test_a_restart_from_any_cursor_continues_exactly(rows, batch):
    plan, ids = make_plan(rows, batch=batch)
    whole = worker_order(plan, ids, 0, 2)
    for first in range(plan.steps_per_epoch):
        assert worker_order(plan, ids, 0, 2, first)[first:] == whole[first:]


def test_two_epochs_differ_two_equal_plans_agree_and_seed_and_digest_matter():
    plan, ids = make_plan(SIZES[0])
    again, _ = make_plan(SIZES[0])
    other, _ = make_plan(SIZES[0], seed=1)
    first = epoch_ids(plan, ids, 0)
    assert (first == epoch_ids(again, ids, 0)).all()
    assert (first != epoch_ids(plan, ids, 1)).any()
    assert (first != epoch_ids(other, ids, 0)).any()
    moved = Plan(plan.groups, digest="f" * 64, seed=0, lanes=8, window_rows=16, global_batch=16)
    assert (first != epoch_ids(moved, ids, 0)).any()


def test_a_sample_generator_depends_on_seed_epoch_and_image_alone():
    plan, _ = make_plan(SIZES[0])
    wide, _ = make_plan(SIZES[0], lanes=4, window=64)
    draw = plan.sample_rng(3, 42).random(4)
    assert (draw == wide.sample_rng(3, 42).random(4)).all()
    assert (draw != plan.sample_rng(4, 42).random(4)).any()
    assert (draw != plan.sample_rng(3, 43).random(4)).any()


def test_a_window_holds_at_most_its_rows_and_reads_few_row_groups():
    plan, _ = make_plan([64] * 40, lanes=4, window=256, batch=32)
    for lane in range(4):
        for window in plan.lane_windows(0, lane):
            assert sum(piece.rows for piece in window.pieces) <= 256
            assert len(window.pieces) <= 5


def test_a_worker_count_that_does_not_divide_the_lanes_names_the_nearest():
    with pytest.raises(ValueError, match=r"set compute.workers to 2 or 4"):
        check_world(3, 8, 16)
    check_world(8, 8, 16)


def test_shares_of_an_evaluation_cover_each_row_once():
    plan, ids = make_plan(SIZES[0])
    number = {group: k for k, group in enumerate(plan.groups)}
    for world in (1, 2, 3, 7):
        seen = [
            ids[number[p.group]][row]
            for rank in range(world)
            for window in share_windows(plan.groups, rank=rank, world=world, window_rows=50)
            for p in window.pieces
            for row in range(p.start, p.stop)
        ]
        assert seen == list(range(plan.num_rows))


def test_shards_without_images_are_refused():
    with pytest.raises(ValueError, match="hold no images"):
        Plan([], digest=DIGEST, seed=0, lanes=8, window_rows=16, global_batch=16)

"""Prepare: annotation file and pictures -> a folder of shards, made by Ray Data tasks.

Place in the flow: the first job; everything after it reads shards. The driver parses the json once
and cuts it into tasks; each task reads and checks its pictures and writes one file, so no picture
passes the driver and the bytes written do not depend on Ray's scheduling. Pictures and output must
lie on storage that every node sees.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from yw_ray.data.annotations import MIN_TRAIN_SIDE, AnnotationSet, load_json, parse_annotations
from yw_ray.data.folders import publishing
from yw_ray.data.shard_writer import (
    Options,
    ShardResult,
    ShardTask,
    missing_images,
    shard_tasks,
    write_manifest,
    write_shard,
)
from yw_ray.data.shards import (
    ANNOTATIONS_FILE,
    MANIFEST_FILE,
    BadImage,
    Manifest,
    file_sha256,
    load_manifest,
)
from yw_ray.data.synth import WorldConfig, write_world

_SHOWN = 5


def prepare_coco(
    images: Path,
    annotations: Path,
    out: Path,
    *,
    split: Literal["train", "val"],
    seed: int = 0,
    rows_per_file: int = 2048,
    max_bad_share: float = 0.01,
    num_cpus: int | None = None,
) -> Manifest:
    """Prepare a set in COCO's layout.

    Args:
        images: folder that the json's `file_name` values are below.
        split: training drops images with a side below 32 px; validation keeps all.
        seed: of the global shuffle.
        rows_per_file: a multiple of 64.
        max_bad_share: share of unusable pictures above which to stop (one is always allowed).
        num_cpus: logical CPUs of a local cluster, if one must be started.
    Returns: the manifest; the one that is there if `out` is already prepared like this.
    Raises: ValueError if the inputs are unusable or `out` holds something else.
    """
    options = Options(split=split, style="coco", base=False, seed=seed, rows_per_file=rows_per_file)
    return _prepare(images, annotations, out, options, max_bad_share, num_cpus)


def prepare_lvis(
    images: Path,
    annotations: Path,
    out: Path,
    *,
    split: Literal["train", "val"],
    base: bool = False,
    seed: int = 0,
    rows_per_file: int = 2048,
    max_bad_share: float = 0.01,
    num_cpus: int | None = None,
) -> Manifest:
    """Prepare a set in LVIS's layout.

    Args:
        images: folder that holds `train2017/` and `val2017/`.
        split: training also drops images without an object of the kept classes.
        base: leave the rare classes out everywhere (LVIS-Base, 866 classes of v1).
    The others, Returns and Raises: see `prepare_coco`.
    """
    options = Options(split=split, style="lvis", base=base, seed=seed, rows_per_file=rows_per_file)
    return _prepare(images, annotations, out, options, max_bad_share, num_cpus)


def prepare_synth(
    out: Path,
    world: WorldConfig | None = None,
    *,
    num_train: int = 2000,
    num_val: int = 300,
    image_size: int = 160,
    seed: int = 0,
    style: Literal["coco", "lvis"] = "coco",
    rows_per_file: int = 256,
    num_cpus: int | None = None,
) -> tuple[Manifest, Manifest]:
    """Generate a world in `out/raw` and prepare `out/train` and `out/val`.

    Training shards know the base classes only, validation shards all of them.
    Returns: manifests of the training and the validation shards.
    Raises: ValueError for bad numbers, or if `out` holds another world.
    """
    raw = out / "raw"
    write_world(
        raw,
        num_train=num_train,
        num_val=num_val,
        image_size=image_size,
        seed=seed,
        config=world or WorldConfig(),
    )
    manifests = []
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        options = Options(
            split=split,
            style=style,
            base=style == "lvis" and split == "train",
            seed=seed,
            rows_per_file=rows_per_file,
        )
        lvis = style == "lvis"
        images = raw if lvis else raw / split
        annotations = raw / "annotations" / f"{'lvis_' if lvis else ''}{split}.json"
        manifests.append(_prepare(images, annotations, out / split, options, 0.0, num_cpus))
    return manifests[0], manifests[1]


def _prepare(
    images: Path,
    annotations: Path,
    out: Path,
    options: Options,
    max_bad_share: float,
    num_cpus: int | None,
) -> Manifest:
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share must be 0 to 1, got {max_bad_share}")
    images, annotations, out = images.resolve(), annotations.resolve(), out.resolve()
    console = Console(stderr=True)
    sources = {"annotations": file_sha256(annotations)}
    if (out / MANIFEST_FILE).exists():
        manifest = _finished(out, options, sources)
        console.print(f"{out} is already prepared: {manifest.num_images} images, nothing to do")
        return manifest
    with publishing(out) as folder:
        parsed = _parse(annotations, options)
        missing = missing_images(images, [image.path for image in parsed.images])
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(parsed.images)} images are not below {images} (first: "
                f"{missing[0]}): name the folder that file names are relative to, or fetch them"
            )
        results = _write_all(
            shard_tasks(parsed.images, options), images, folder, max_bad_share, num_cpus, console
        )
        shutil.copyfile(annotations, folder / ANNOTATIONS_FILE)
        if file_sha256(folder / ANNOTATIONS_FILE) != sources["annotations"]:
            raise ValueError(f"{annotations} changed while it was prepared: run again")
        write_manifest(folder, results, parsed, options, sources)
        manifest = load_manifest(folder)  # files written on a disk of another node would show here
    _tell(console, out, manifest)
    return manifest


def _parse(annotations: Path, options: Options) -> AnnotationSet:
    content = load_json(annotations)
    train = options.split == "train"
    try:
        return parse_annotations(
            content,
            style=options.style,
            frequencies="cf" if options.base else "rcf",
            min_side=MIN_TRAIN_SIDE if train else 0,
            filter_empty=train and options.style == "lvis",
        )
    except ValueError as error:
        raise ValueError(f"{annotations}: {error}") from None


def _finished(out: Path, options: Options, sources: dict[str, str]) -> Manifest:
    """The manifest of a folder that was prepared from the same sources with the same options.

    Raises: ValueError naming the first difference.
    """
    manifest = load_manifest(out)
    wanted: dict[str, Any] = {**vars(options), "sources": sources}
    for name, value in wanted.items():
        have = getattr(manifest, name)
        if have != value:
            said = (
                "made from another annotation file"
                if name == "sources"
                else f"{name} {have}, asked for {value}"
            )
            raise ValueError(
                f"{out} holds another prepared set ({said}): name another folder or remove it"
            )
    return manifest


def _write_all(
    tasks: Sequence[ShardTask],
    images: Path,
    folder: Path,
    max_bad_share: float,
    num_cpus: int | None,
    console: Console,
) -> list[ShardResult]:
    """Run all tasks and return their results in file order.

    Raises: ValueError if too many pictures are bad or a file cannot be written.
    """
    total = sum(len(task.images) for task in tasks)
    allowed = max(1, int(max_bad_share * total))
    results: dict[str, ShardResult] = {}
    bad: list[BadImage] = []
    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        _ImagesPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("preparing", total=total)
        for file, result in _run(tasks, images, folder, num_cpus):
            if isinstance(result, str):
                raise ValueError(f"cannot write {file}: {result}; nothing was kept")
            results[file] = result
            bad += result.bad
            if len(bad) > allowed:
                raise ValueError(
                    f"{len(bad)} images cannot be used, {allowed} of {total} may be (first: "
                    f"{bad[0].path} {bad[0].reason}): repair them or raise max_bad_share"
                )
            rows = result.shard.rows if result.shard else 0
            progress.advance(bar, rows + len(result.bad))
    if all(result.shard is None for result in results.values()):
        raise ValueError(
            f"none of the {total} images can be used (first: {bad[0].path} {bad[0].reason})"
        )
    return [results[task.file] for task in tasks]


def _run(
    tasks: Sequence[ShardTask], images: Path, folder: Path, num_cpus: int | None
) -> Iterator[tuple[str, ShardResult | str]]:
    """Results as Ray finishes them, one Ray task a file."""
    from yw_ray.jobs.cluster import ensure_ray

    ensure_ray(num_cpus)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # ours is shown
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    with ray.data.DataContext.current(context):
        # an item a file: annotations travel through the object store, which may spill to disk
        items = [{"task": pickle.dumps((task, images, folder))} for task in tasks]
        data = ray.data.from_items(items, override_num_blocks=len(items)).map(_write_task)
        for row in data.iter_rows():
            yield row["file"], pickle.loads(row["result"])


def _write_task(row: dict[str, Any]) -> dict[str, Any]:
    """What runs in a Ray task. A full disk is the user's to mend: it travels as text."""
    task, images, folder = pickle.loads(row["task"])
    result: ShardResult | str
    try:
        result = write_shard(task, images, folder)
    except OSError as error:
        result = error.strerror or str(error)
    return {"file": task.file, "result": pickle.dumps(result)}


class _ImagesPerSecond(ProgressColumn):
    """Mean speed since the start, which a bar that moves by whole files can state."""

    def render(self, task: Task) -> Text:
        speed = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{speed:.0f} images/s", style="progress.data.speed")


def _tell(console: Console, out: Path, manifest: Manifest) -> None:
    console.print(
        f"{out}: {manifest.num_images} of {manifest.num_source_images} images in "
        f"{len(manifest.shards)} shards, {manifest.num_objects} objects "
        f"({manifest.num_crowd} crowds, {manifest.num_without_polygon} without polygon), "
        f"{len(manifest.classes)} classes, digest {manifest.dataset_digest[:12]}",
        soft_wrap=True,
    )
    for reason, number in manifest.dropped.items():
        console.print(f"  left out by the rules: {number} {reason}", soft_wrap=True)
    for image in manifest.quarantine[:_SHOWN]:
        console.print(f"  set aside: {image.path} {image.reason}", soft_wrap=True, markup=False)
    if len(manifest.quarantine) > _SHOWN:
        console.print(f"  and {len(manifest.quarantine) - _SHOWN} more, see {MANIFEST_FILE}")

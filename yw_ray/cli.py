"""Command line: `yw-ray COMMAND ...`.

Place in the flow: a thin layer; each command is a typed function read by tyro, and loads what it
needs only when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


def prepare_coco(
    images: Path,
    annotations: Path,
    out: Path,
    split: Literal["train", "val"] = "train",
    seed: int = 0,
    max_bad_share: float = 0.01,
) -> None:
    """COCO pictures and annotations -> a folder of shards.

    Args:
        images: folder of the pictures that `file_name` in the annotations is below.
        annotations: json file in COCO's layout.
        out: folder to make; a finished one of the same sources is left alone.
        split: training drops pictures with a side below 32 px, validation keeps all.
        seed: of the global shuffle.
        max_bad_share: share of unusable pictures above which to stop (one is always allowed).
    """
    from yw_ray.jobs import prepare

    prepare.prepare_coco(
        images, annotations, out, split=split, seed=seed, max_bad_share=max_bad_share
    )


def prepare_lvis(
    images: Path,
    annotations: Path,
    out: Path,
    split: Literal["train", "val"] = "train",
    base: bool = False,
    seed: int = 0,
    max_bad_share: float = 0.01,
) -> None:
    """LVIS pictures and annotations -> a folder of shards.

    Args:
        images: folder that holds `train2017/` and `val2017/`.
        annotations: json file in LVIS v1's layout.
        out: folder to make; a finished one of the same sources is left alone.
        split: training drops pictures without an object, validation keeps all.
        base: LVIS-Base: leave the rare classes out everywhere.
        seed: of the global shuffle.
        max_bad_share: share of unusable pictures above which to stop (one is always allowed).
    """
    from yw_ray.jobs import prepare

    prepare.prepare_lvis(
        images,
        annotations,
        out,
        split=split,
        base=base,
        seed=seed,
        max_bad_share=max_bad_share,
    )


def prepare_synth(
    out: Path,
    num_train: int = 2000,
    num_val: int = 300,
    image_size: int = 160,
    seed: int = 0,
    style: Literal["coco", "lvis"] = "coco",
) -> None:
    """A generated world of coloured shapes: OUT/raw, and shards in OUT/train and OUT/val.

    Args:
        out: folder to make.
        num_train: training pictures, of base classes only.
        num_val: validation pictures, of base and novel classes.
        image_size: side of the pictures, pixels.
        seed: of the world.
        style: annotation layout to prepare from.
    """
    from yw_ray.jobs import prepare

    prepare.prepare_synth(
        out, num_train=num_train, num_val=num_val, image_size=image_size, seed=seed, style=style
    )


def verify(data: Positional[Path]) -> None:
    """Check every shard of a prepared folder against its manifest.

    Args:
        data: the folder.
    """
    from yw_ray.data.shards import verify_dataset

    manifest = verify_dataset(data)
    print(f"{data}: {manifest.num_images} images in {len(manifest.shards)} shards, all whole")


def evaluate(
    checkpoint: Positional[Path],
    data: Path | None = None,
    out: Path | None = None,
    workers: int = 0,
    max_images: int | None = None,
) -> None:
    """Score a checkpoint (its average) on prepared validation shards.

    Args:
        checkpoint: a checkpoint folder of a run.
        data: shards to score; default: those of the checkpoint's recipe.
        out: folder for detections and table; default: beside the checkpoint.
        workers: Ray workers; 0 predicts in this process.
        max_images: score only the first images.
    """
    from yw_ray.jobs.evaluate_job import evaluate_checkpoint

    evaluate_checkpoint(checkpoint, data=data, out=out, workers=workers, max_images=max_images)


def score(
    gt: Path,
    dt: Path,
    kind: Literal["bbox", "segm"] = "bbox",
    style: Literal["coco", "lvis"] = "coco",
    engine: Literal["hotcoco", "pycocotools", "lvis"] = "hotcoco",
    json: Path | None = None,
) -> None:
    """AP of any pair of COCO or LVIS files, without a model.

    Args:
        gt: annotation file.
        dt: result file, a list of detections.
        kind: boxes or masks.
        style: whose rules.
        engine: hotcoco is the fast one, the others are for comparison.
        json: also write metrics (fractions) and protocol here.
    """
    from rich.console import Console

    from yw_ray.evaluation.score import score_files, score_json

    table = score_files(gt, dt, kind, style, engine)
    Console().print(table.rich_table())
    if json is not None:
        json.write_text(score_json(table))


def quickstart(storage: Path = Path("runs"), workers: int = 2) -> None:
    """The main job on a generated world: prepare, stream, train, evaluate, record.

    Args:
        storage: folder for the data, the run and the MLflow store.
        workers: training workers.
    """
    from yw_ray.jobs.quickstart import run_quickstart

    run_quickstart(storage, workers)


def ui(storage: Path = Path("runs"), port: int = 5000) -> None:
    """The MLflow UI over the runs of a storage folder, on loopback.

    Args:
        storage: the folder that holds `mlflow.db`.
        port: to listen on.
    """
    from yw_ray.tracking.ui import serve_ui

    serve_ui(storage, port)


def weights_import(official: Positional[Path], out: Path) -> None:
    """An official YOLO-World checkpoint -> a model file, every key accounted for.

    Args:
        official: the published .pth.
        out: file to write.
    """
    from yw_ray.jobs.convert import import_weights

    print(import_weights(official, out))


def weights_export(weights: Positional[Path], out: Path) -> None:
    """A model file or a run's checkpoint -> the official layout.

    Args:
        weights: model file, or checkpoint folder (its average is taken).
        out: .pth to write.
    """
    from yw_ray.jobs.convert import export_weights

    print(export_weights(weights, out))


def reparam(
    weights: Positional[Path],
    texts: Path,
    out: Path,
    encoder: Literal["clip-vit-b32", "hashed-words"] | None = None,
) -> None:
    """Fold a vocabulary into text-conditioned weights, as often as wished.

    Args:
        weights: official .pth, model file or checkpoint folder.
        texts: class names in label order: a JSON list, or a line each.
        out: model file to write.
        encoder: default: the tower in the weights, else CLIP's.
    """
    from yw_ray.jobs.convert import reparameterise

    print(reparameterise(weights, texts, out, encoder))


def model_card(
    size: Literal["n", "s", "m", "l", "x", "xl"],
    version: Literal["v1", "v2"] = "v2",
    segmentation: bool = False,
    image_size: int = 640,
    num_texts: int = 80,
) -> None:
    """Parameters and operations of an architecture.

    Args:
        size: scale.
        version: generation; v1 has the dual neck.
        segmentation: with mask branches.
        image_size: side of the input, pixels.
        num_texts: prompts given.
    """
    from yw_ray.models.model_card import model_card as count
    from yw_ray.recipe import ModelConfig

    neck: Literal["vlpan_bn", "dual_vlpan"] = "dual_vlpan" if version == "v1" else "vlpan_bn"
    config = ModelConfig(size=size, version=version, neck=neck, segmentation=segmentation)
    print(count(config, image_size=image_size, num_texts=num_texts))


COMMANDS: dict[str, Callable[..., None]] = {
    "quickstart": quickstart,
    "prepare coco": prepare_coco,
    "prepare lvis": prepare_lvis,
    "prepare synth": prepare_synth,
    "verify": verify,
    "evaluate": evaluate,
    "score": score,
    "weights import": weights_import,
    "weights export-official": weights_export,
    "reparam": reparam,
    "model-card": model_card,
    "ui": ui,
}


def main(args: list[str] | None = None) -> None:
    """Find the command, read its options, run it; a user's mistake is one line and exit code 2."""
    from yw_ray.jobs.launch import one_line_errors

    sys.exit(one_line_errors(lambda: _main(list(sys.argv[1:] if args is None else args))))


def _main(args: list[str]) -> int:
    from yw_ray.jobs.launch import parse

    words = next((n for n in (2, 1) if " ".join(args[:n]) in COMMANDS), 0)
    if not words:
        return _overview(args)
    name = " ".join(args[:words])
    parse(COMMANDS[name], args[words:], prog=f"yw-ray {name}")
    return 0


def _overview(args: list[str]) -> int:
    import difflib

    if args and args[0] not in ("-h", "--help", "prepare", "weights"):
        near = difflib.get_close_matches(" ".join(args[:2]), COMMANDS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown command {args[0]!r}{hint} (yw-ray --help lists them)")
    print("usage: yw-ray COMMAND [OPTIONS]   (yw-ray COMMAND --help for its options)\n")
    width = max(map(len, COMMANDS))
    for name, function in COMMANDS.items():
        print(f"  {name:<{width}}  {(function.__doc__ or '').splitlines()[0]}")
    return 0


if __name__ == "__main__":
    main()

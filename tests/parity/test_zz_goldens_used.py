"""No recorded number lies unused: each file of the golden kinds is read by some parity test."""

from pathlib import Path

KINDS = (
    "assigner",
    "forward",
    "head_loss",
    "loss",
    "manifest",
    "params",
    "pipeline",
    "postprocess",
    "reparam",
    "schedule",
    "text_tower",
    "units",
)


def test_every_golden_file_was_read(goldens: Path, opened_files: set[str]) -> None:
    files = [p for kind in KINDS for p in sorted((goldens / kind).rglob("*")) if p.is_file()]
    assert files
    unread = [str(p.relative_to(goldens)) for p in files if str(p.absolute()) not in opened_files]
    assert not unread

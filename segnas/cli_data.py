"""`segnas data`: make synthetic streets, check a dataset."""

from pathlib import Path

import click

from segnas.cli_options import DATASET, FILE, JSON, ROOT, SEED, emit
from segnas.errors import InputError


@click.group()
def data() -> None:
    """Make or check a dataset."""


@data.command("make")
@click.option("--out", type=FILE, required=True, help="Folder to make.")
@click.option("--size", default="512x1024", show_default=True, metavar="HxW", help="Size of the images, HEIGHTxWIDTH.")
@click.option("--train", "train_count", type=click.IntRange(1), default=300, show_default=True, help="Images to train on.")
@click.option("--val", "val_count", type=click.IntRange(1), default=60, show_default=True, help="Images to evaluate on.")
@SEED
@JSON
def make_data(out: Path, size: str, train_count: int, val_count: int, seed: int, as_json: bool) -> None:
    """Make synthetic streets in the genuine Cityscapes layout."""
    from segnas.screen import RichScreen
    from segnas.streets import write_streets
    from segnas.target import parse_size

    height, width = parse_size(size)
    with RichScreen().step("making synthetic streets") as progress:
        counts = {"train": train_count, "val": val_count}
        write_streets(out, counts=counts, height=height, width=width, seed=seed, progress=lambda done, total: progress(done, total, ""))
    found = {"data": str(out), "train": train_count, "val": val_count, "height": height, "width": width}
    emit(found, as_json, [f"{out}: {train_count} train and {val_count} val images of {height}x{width}"])


@data.command("check")
@DATASET
@ROOT
@JSON
def check_data(name: str, data_root: Path, as_json: bool) -> None:
    """Find missing pairs, wrong sizes and illegal labels, and say which files."""
    from segnas.data import check_dataset

    result = check_dataset(name, data_root)
    rows = [f"{s.split:<8} {s.pairs} pairs, sizes {', '.join(f'{h}x{w}' for h, w in s.sizes) or 'none'}" for s in result.splits]
    found = {"problems": list(result.problems), "splits": {s.split: s.pairs for s in result.splits}}
    emit(found, as_json, [*rows, *result.problems, f"{len(result.problems)} problems"])
    if result.problems:
        raise InputError(f"{data_root} has {len(result.problems)} problems, listed above")

"""What the files of the command line share: options, and how a result is printed."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import click

from segnas.errors import UsageError
from segnas.target import Target

FILE = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
THREADS = click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Intra-op threads of the runtime.")
SIZE = click.option("--size", required=True, metavar="HxW", help="Size of the engine's input, HEIGHTxWIDTH.")
SEED = click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Every random draw follows from it.")
DATASET = click.option(
    "--data", "name", default="cityscapes", show_default=True, help="Dataset: cityscapes (streets of `segnas data make` too) or camvid."
)
CLASSES = click.option("--classes", type=click.IntRange(2, 256), default=19, show_default=True, help="Classes of the dataset: the head's width.")
DEVICE = click.option("--device", default="cpu", show_default=True, help="Where to search and train: cpu or cuda.")
ALLOW = click.option(
    "--allow-mismatch",
    "allow",
    multiple=True,
    type=click.Choice([field.name for field in fields(Target)]),
    help="A field in which the table's target may differ from this one's; may be repeated, and is recorded in what is written.",
)
ROOT = click.option("--data-root", type=FILE, required=True, help="Folder of the dataset.")


def emit(found: object, as_json: bool, lines: Sequence[str]) -> None:
    """Print a result on stdout: JSON values, or the lines for people."""
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join(lines))
    sys.stdout.flush()


def require_suffix(out: Path, *suffixes: str, option: str = "--out") -> None:
    """UsageError, with a name that would do, where the option's path ends in none of these suffixes: the file's content goes by its name."""
    if out.suffix not in suffixes:
        raise UsageError(f"{option} {out} was given; the name of a {' or '.join(suffixes)} file is needed, such as {out.with_suffix(suffixes[0])}")

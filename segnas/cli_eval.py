"""`segnas eval` and `segnas predict`: how right an engine is, and what it sees."""

from pathlib import Path

import click

from segnas.cli_options import DATASET, FILE, JSON, emit
from segnas.errors import InputError, UsageError

WORKERS = click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that decode and count.  [default: the cores that the engine leaves free, 1 to 8]",
)
UPSAMPLE = click.option(
    "--upsample",
    type=click.Choice(["nearest"]),
    help="Enlarge labels where an engine gives smaller ones than needed; it costs accuracy.",
)
CORNERS = click.option("--align-corners", is_flag=True, help="Enlarge logits corner on corner, as some papers do, rather than at half-pixel centres.")


@click.command("eval")
@click.argument("files", type=FILE, nargs=-1)
@click.option("--merge", "merging", is_flag=True, help="FILES are evaluation.json of parts: add them exactly, rather than run an engine.")
@click.option("--predictions", type=FILE, help="Score this folder of label images, a NAME*.png of raw ids for each image, rather than run an engine.")
@DATASET
@click.option("--data-root", type=FILE, help="Folder of the dataset.")
@click.option("--split", default="val", show_default=True, help="Split that is evaluated.")
@click.option("--part", metavar="K/N", help="Only the K-th of N parts of the images; --merge adds them.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many images.")
@click.option("--size", metavar="HxW", help="Input size of an engine that takes several.  [default: the one that it is tuned for]")
@UPSAMPLE
@CORNERS
@click.option("--flip", is_flag=True, help="Average with the mirror image; engines of logits only.")
@click.option("--scales", default="1", show_default=True, help="Average over these scales, such as 0.75,1,1.25; dynamic engines of logits only.")
@WORKERS
@click.option("--out", type=FILE, help="Folder for evaluation.json and the journal, from which a killed evaluation goes on.")
@click.option("--official-json", type=FILE, help="Also write the JSON file of the official Cityscapes script, with its keys and its NaN.")
@JSON
def evaluate(
    files: tuple[Path, ...],
    merging: bool,
    predictions: Path | None,
    name: str,
    data_root: Path | None,
    split: str,
    part: str | None,
    limit: int | None,
    size: str | None,
    upsample: str | None,
    align_corners: bool,
    flip: bool,
    scales: str,
    workers: int | None,
    out: Path | None,
    official_json: Path | None,
    as_json: bool,
) -> None:
    """Measure the mIoU of an engine, by the official Cityscapes rules, at the size of the ground truth.

    Example: segnas eval runs/quickstart/model.onnx --data-root runs/quickstart/streets --out runs/quickstart/eval
    """
    from segnas.data import open_dataset
    from segnas.evaluating import RESULT_NAME, engine_evaluation, merged, official_text, read_part
    from segnas.files import plain, read_noun, require_writable, write_noun, write_text
    from segnas.report import Evaluation, ScoringProtocol
    from segnas.score_lines import evaluation_lines
    from segnas.screen import RichScreen
    from segnas.submissions import submission_evaluation
    from segnas.target import parse_size

    _require_one_of(files, merging, predictions)
    if official_json is not None:
        require_writable(official_json)
    if merging:
        found = merged([(str(file), read_noun(file, Evaluation)) for file in files])
    else:
        if data_root is None:
            raise UsageError("--data-root is missing: give the folder of the dataset")
        dataset, chosen = open_dataset(name, data_root, split), read_part(part, limit)
        with RichScreen().step(f"evaluating on {dataset.name} {split}") as progress:
            if predictions is not None:
                found = submission_evaluation(predictions, dataset, part=chosen, workers=workers, progress=progress)
            else:
                wish = ScoringProtocol(None if size is None else parse_size(size), upsample, align_corners, flip, _scales(scales))
                found = engine_evaluation(files[0], dataset, protocol=wish, part=chosen, workers=workers, out=out, progress=progress)
    if out is not None and (merging or predictions is not None):
        write_noun(out / RESULT_NAME, found)
    if official_json is not None:
        write_text(official_json, official_text(found))
    emit(plain(found), as_json, evaluation_lines(found))


@click.command()
@click.argument("engine", type=FILE)
@click.argument("source")
@click.option("--out", type=FILE, required=True, help="A file for an image, a folder for a folder, a .mp4 or .avi for a video; label ids: a folder.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["overlay", "labels", "colours", "side-by-side"]),
    default="overlay",
    show_default=True,
    help="Colours over the picture; PNGs of raw label ids, as the benchmark server takes them; colours alone; picture and colours side by side.",
)
@click.option("--opacity", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="How much of the picture an overlay hides.")
@click.option("--frames", type=click.IntRange(1), help="At most so many frames of a video or a camera.")
@UPSAMPLE
@CORNERS
@click.option("--overwrite", is_flag=True, help="Make again what is there already.")
@JSON
def predict(
    engine: Path,
    source: str,
    out: Path,
    kind: str,
    opacity: float,
    frames: int | None,
    upsample: str | None,
    align_corners: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Show what an engine sees in SOURCE: an image, a folder of images, a video, or a camera (camera:0), to be stopped with Ctrl-C.

    Example: segnas predict runs/quickstart/model.onnx runs/quickstart/streets/leftImg8bit/val --out runs/quickstart/seen
    """
    from typing import cast

    from segnas.files import plain
    from segnas.predicting import Wish, predict, prediction_lines
    from segnas.runtime.predict import Kind
    from segnas.screen import RichScreen

    wish = Wish(cast(Kind, kind), opacity, upsample, align_corners, overwrite, frames)
    with RichScreen().step(f"predicting {source}") as progress:
        found = predict(engine, source, out, wish, progress=progress)
    emit(plain(found), as_json, prediction_lines(found))
    if found.failed:
        more = f"; and {len(found.failed) - 10} more" if len(found.failed) > 10 else ""
        raise InputError(f"{len(found.failed)} pictures were not predicted: {'; '.join(found.failed[:10])}{more} (the others are in {found.out})")


def _require_one_of(files: tuple[Path, ...], merging: bool, predictions: Path | None) -> None:
    """UsageError unless exactly one thing is to be scored."""
    if merging and predictions is not None:
        raise UsageError("--merge and --predictions were both given; give one of them")
    if merging and not files:
        raise UsageError("--merge was given without a file; give the evaluation.json of each part")
    if not merging and len(files) != (predictions is None):
        raise UsageError(
            f"{len(files)} files were given{' beside --predictions' if predictions else ''}; give one engine, or --predictions FOLDER, "
            "or --merge and the evaluation.json of each part"
        )


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--scales {text} was given; numbers with commas are needed, such as 0.75,1,1.25") from None

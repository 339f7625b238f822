"""Submissions: a folder of predicted label images, scored as the benchmark server of Cityscapes would, with its checks and a hint at each error."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from segnas.data import Dataset, Sample, read_instances, read_label
from segnas.errors import InputError
from segnas.evaluating import Part, default_workers, evaluation_of, require_truth
from segnas.labels import LabelSet
from segnas.measuring import Progress
from segnas.report import Evaluation
from segnas.runtime.counting import Tally, counted
from segnas.runtime.evaluate import require_readable
from segnas.runtime.pipeline import overlapped

Bytes = NDArray[np.uint8]
HOW = "label images scored as they are; raw label ids, official Cityscapes semantics: void truth ignored, mean over classes that occur"
_COLOUR_TYPE, _PALETTE = 25, b"\x03"
"""The byte of a PNG's header that says what its values are, and the one that says: colours of a palette, as which OpenCV decodes them."""


def submission_evaluation(
    folder: Path, dataset: Dataset, *, part: Part | None = None, workers: int | None = None, progress: Progress | None = None
) -> Evaluation:
    """Score the predictions of a folder: exactly one `NAME*.png` for each image, of raw ids, one channel, at the size of the truth.

    As the official script, it looks through all folders below. InputError for what the script refuses too: a missing prediction, two for one image,
    another size, several channels, an unknown id; train ids and colour pictures are recognised.
    """
    require_truth(dataset)
    indices = (part or Part()).indices(len(dataset))
    files = find_predictions(folder, [dataset.samples[index] for index in indices])
    tally, instances, lock = Tally(dataset.labels, instances=dataset.has_instances), dataset.has_instances, Lock()

    def read(index: int) -> tuple[Bytes, Bytes, NDArray[np.uint16] | None]:
        sample = dataset.samples[index]
        truth, predicted = read_label(sample, dataset.labels), read_prediction(files[sample.name], dataset.labels)
        if truth.shape != predicted.shape:
            sizes = ("x".join(map(str, pixels.shape)) for pixels in (predicted, truth))
            raise InputError(f"{files[sample.name]}: {' where the ground truth is '.join(sizes)}; predict at the size of the images")
        return truth, predicted, read_instances(sample, truth.shape) if instances else None

    def count(index: int, found: tuple[Bytes, Bytes, NDArray[np.uint16] | None], answer: Bytes) -> None:
        one = counted(index, found[0], answer, dataset.labels, found[2])
        with lock:
            tally.add(one)
            if progress is not None:
                progress(len(tally.indices), len(indices), "")

    threads = workers or default_workers(0)
    unreadable = overlapped(indices, read=read, infer=lambda group: [predicted for _, predicted, _ in group], count=count, workers=threads)
    require_readable(unreadable, len(tally.indices), "")
    _require_no_train_ids(folder, tally)
    return evaluation_of(tally, dataset, engine_sha256="", protocol=None, how=HOW)


def find_predictions(folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """The prediction of each sample by its name (Cityscapes: CITY_SEQUENCE_FRAME): the one PNG below `folder` whose name begins with it.

    InputError where there is no folder, or an image has none or more than one.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds a prediction NAME*.png for each image")
    found: dict[str, list[Path]] = {sample.name: [] for sample in samples}
    lengths = sorted({len(name) for name in found}, reverse=True)
    files = sorted(folder.rglob("*.png"))
    for path in files:
        name = next((path.name[:length] for length in lengths if path.name[:length] in found), None)
        if name is not None:
            found[name].append(path)
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        hint = "; `segnas predict ENGINE IMAGES --as labels` writes them" if files else f"; {folder} holds no PNG at all"
        raise InputError(f"{len(missing)} of {len(samples)} images have no prediction {missing[0]}*.png under {folder}{hint}")
    twice = next((paths for paths in found.values() if len(paths) > 1), None)
    if twice is not None:
        raise InputError(f"{len(twice)} predictions were found for one image: {twice[0]} and {twice[1]}; leave exactly one PNG for each")
    return {name: paths[0] for name, paths in found.items()}


def read_prediction(path: Path, labels: LabelSet) -> Bytes:
    """The raw ids (H, W) of a prediction; InputError, with a hint, when it is damaged, not one 8-bit channel, or holds an id that is none."""
    try:
        return read_label(Sample(path.stem, path, path), labels)
    except InputError as error:
        palette = path.is_file() and path.read_bytes()[_COLOUR_TYPE : _COLOUR_TYPE + 1] == _PALETTE
        hint = " Its values are of a palette; write the ids themselves, in grey." if palette else " `segnas predict --as labels` writes such images."
        raise InputError(f"{error}{hint}") from None


def _require_no_train_ids(folder: Path, tally: Tally) -> None:
    """InputError where no prediction is an id beyond the train ids, and most of them are ids of ignored labels: the scores would be of a mix-up."""
    labels, predicted = tally.matrix.labels, tally.matrix.counts.sum(axis=0)
    ignored, classes = [label.id for label in labels.labels if label.ignore], len(labels.classes)
    alike = labels.classes[-1].id < classes  # train ids are raw ids
    if not alike and not predicted[classes:].any() and 2 * predicted[ignored].sum() > predicted.sum():
        raise InputError(
            f"the predictions in {folder} hold nothing but 0..{classes - 1}, and most of that are ids of ignored labels: these are train ids; write "
            f"{labels.name} ids (LabelSet.ids, or `segnas predict --as labels`)"
        )

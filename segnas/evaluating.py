"""Evaluating: how right an engine on disk is: killed and resumed, in parts and merged, always the same matrix."""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from segnas.counts_journal import CountsJournal
from segnas.data import Dataset, layout_of
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.export.manifest import read_engine
from segnas.files import plain, write_noun
from segnas.journals import differing
from segnas.measuring import Progress
from segnas.metrics import ConfusionMatrix
from segnas.official import official_json, score_tables
from segnas.report import Accuracy, Engine, Evaluation, InstanceCount, ScoringProtocol
from segnas.runtime.counting import Counted, Tally, spans_of
from segnas.runtime.evaluate import DATA_CHECK, accuracy_of, count_images, require_readable
from segnas.runtime.processor import available_cores
from segnas.runtime.protocol import described, settled
from segnas.runtime.session import Session, open_session

RESULT_NAME = "evaluation.json"
JOURNAL_NAME = "evaluation.jsonl"
MOST_WORKERS = 8


@dataclass(frozen=True)
class Part:
    """Which images of a split: the first `limit` (all by default), and of those the `number`-th of `of` parts that lie one behind the other."""

    limit: int | None = None
    number: int = 1
    of: int = 1

    def indices(self, available: int) -> range:
        """The images; InputError where there are none."""
        count = available if self.limit is None else min(self.limit, available)
        if not 1 <= self.number <= self.of <= count:
            raise InputError(f"part {self.number}/{self.of} of {count} images was asked for; parts are written 1/3, 2/3, 3/3, and none is empty")
        return range(count * (self.number - 1) // self.of, count * self.number // self.of)


def default_workers(threads: int) -> int:
    """Threads that decode and count: the cores that an engine of so many threads leaves free, at least 1 and at most 8 (our choice)."""
    return max(1, min(MOST_WORKERS, available_cores() - threads))


def evaluate_engine(path: Path, dataset: Dataset, *, progress: Progress | None = None) -> Accuracy:
    """Mean IoU of the engine as shipped on every image of the dataset."""
    return engine_evaluation(path, dataset, progress=progress).accuracy


def engine_evaluation(
    path: Path,
    dataset: Dataset,
    *,
    protocol: ScoringProtocol | None = None,
    part: Part | None = None,
    workers: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the engine as shipped; with `out`, each image is kept in a journal there as it is done, and the result is written beside it.

    A journal of the same engine, data set and protocol is continued, whatever part it was made for. IncompatibleError for another one, and for an
    engine of other classes; InputError for a data set without truth, for images that cannot be read, after all others were counted, and as `settled`.
    """
    require_truth(dataset)
    indices = (part or Part()).indices(len(dataset))
    engine, artefact = read_engine(path)
    expected = tuple(label.name for label in dataset.labels.classes)
    if engine.classes != expected:
        raise IncompatibleError(f"{path} has classes {', '.join(engine.classes)}; {dataset.name} has {', '.join(expected)}")
    with closing(open_session(artefact, engine.target, sha256=engine.sha256)) as session:
        chosen = settled(session, protocol or ScoringProtocol(), engine.sizes)
        tally = Tally(dataset.labels, instances=dataset.has_instances)
        threads = workers or default_workers(engine.target.threads)
        _count(session, engine, dataset, indices, chosen, tally=tally, workers=threads, out=out, progress=progress)
        how = described(session, chosen)
    found = evaluation_of(tally, dataset, engine_sha256=engine.sha256, protocol=chosen, how=how)
    if out is not None:
        write_noun(out / RESULT_NAME, found)
    return found


def evaluation_of(tally: Tally, dataset: Dataset, *, engine_sha256: str, protocol: ScoringProtocol | None, how: str) -> Evaluation:
    """What was counted of a data set as an evaluation; `how` is the protocol in words."""
    accuracy = accuracy_of(dataset.name, dataset.split, tally.matrix, spans=tally.spans, available=len(dataset), how=how)
    held = _Held(engine_sha256, images_sha256(dataset), len(dataset), protocol)
    return _evaluation(accuracy, tally.matrix, tally.instances, tally.spans, held)


def merged(parts: Sequence[tuple[str, Evaluation]]) -> Evaluation:
    """The exact sum of evaluations of one engine, data set and protocol, each with the name that it has in errors.

    InputError where two have an image in common; IncompatibleError, with what differs, where they belong to different things.
    """
    if not parts:
        raise InputError("no evaluation was given to be merged; give the evaluation.json of each part")
    (first_name, first), *others = parts
    accuracy = first.accuracy
    matrix, owners, instances = _matrix(first), dict.fromkeys(_indices(first), first_name), list(first.instances or ())
    for name, other in others:
        told = [f"{field} is {here} in {first_name}, {there} in {name}" for field, here, there in differing(_belongs(first), _belongs(other))]
        if told:
            raise IncompatibleError(f"{name} cannot be merged with {first_name}: {'; '.join(told)}")
        twice = next((index for index in _indices(other) if index in owners), None)
        if twice is not None:
            raise InputError(f"image {twice} is in {owners[twice]} and in {name}; an image is counted once: give parts that do not overlap")
        matrix += _matrix(other)
        owners |= dict.fromkeys(_indices(other), name)
        instances += other.instances or ()
    spans, how = spans_of(owners), accuracy.protocol.partition(", ")[2]
    objects = None if first.instances is None else tuple(sorted(instances, key=lambda count: count.image))
    summed = accuracy_of(accuracy.dataset, accuracy.split, matrix, spans=spans, available=first.available, how=how)
    return _evaluation(summed, matrix, objects, spans, _Held(first.engine_sha256, first.images_sha256, first.available, first.protocol))


def read_part(text: str | None, limit: int | None) -> Part:
    """The part that `K/N` names; UsageError for another text."""
    number, slash, of = (text or "1/1").partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise UsageError(f"--part {text} was given; it is written K/N, such as 1/3 for the first of three")
    return Part(limit, int(number), int(of))


def official_text(found: Evaluation) -> str:
    """The JSON of the official script for an evaluation; see `segnas.official`."""
    return official_json(_matrix(found), found.instances)


def images_sha256(dataset: Dataset) -> str:
    """What tells a split from another: its images by name, with the sizes in bytes of image and label file."""
    lines = (f"{sample.name} {_bytes(sample.image)} {_bytes(sample.label)}\n" for sample in dataset.samples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_truth(dataset: Dataset) -> None:
    """InputError for a split without ground truth, which nothing can be scored on."""
    if any(sample.label is None for sample in dataset.samples):
        raise InputError(
            f"{dataset.name} {dataset.split} under {dataset.root} has no ground truth, which is not public for the test split of Cityscapes: only "
            "`segnas predict` is possible there, and `--as labels` writes what the benchmark server takes; evaluate on val"
        )


@dataclass(frozen=True)
class _Held:
    """What an evaluation belongs to."""

    engine_sha256: str
    images_sha256: str
    available: int
    protocol: ScoringProtocol | None


def _count(
    session: Session,
    engine: Engine,
    dataset: Dataset,
    indices: range,
    protocol: ScoringProtocol,
    *,
    tally: Tally,
    workers: int,
    out: Path | None,
    progress: Progress | None,
) -> None:
    """Count those images into the tally: from the journal what is there, the rest by the engine."""

    def into(found: Counted) -> None:
        if found.index in indices:
            tally.add(found)

    belongs = {
        "engine_sha256": engine.sha256,
        "dataset": dataset.name,
        "split": dataset.split,
        "images_sha256": images_sha256(dataset),
        "instances": tally.instances is not None,
        "protocol": plain(protocol),
    }
    journal = None if out is None else CountsJournal(out / JOURNAL_NAME, belongs, dataset.labels, into)

    def keep(found: Counted) -> None:
        tally.add(found)
        if journal is not None:
            journal.add(found)
        if progress is not None:
            progress(len(tally.indices), len(indices), "")

    try:
        missing = [index for index in indices if index not in tally.indices]
        unreadable = count_images(session, dataset, missing, protocol=protocol, keep=keep, workers=workers, instances=tally.instances is not None)
    finally:
        if journal is not None:
            journal.close()
    kept = "" if out is None else f" and are kept in {out}, which the same command continues"
    require_readable(unreadable, len(tally.indices), f"{kept}; {DATA_CHECK}")


def _evaluation(
    accuracy: Accuracy, matrix: ConfusionMatrix, instances: tuple[InstanceCount, ...] | None, spans: tuple[tuple[int, int], ...], held: _Held
) -> Evaluation:
    categories, instance_classes, instance_categories = score_tables(matrix, instances)
    return Evaluation(
        accuracy=accuracy,
        categories=categories,
        instance_classes=instance_classes,
        instance_categories=instance_categories,
        engine_sha256=held.engine_sha256,
        images_sha256=held.images_sha256,
        available=held.available,
        spans=spans,
        protocol=held.protocol,
        instances=instances,
    )


def _belongs(found: Evaluation) -> dict[str, Any]:
    """What must be equal in evaluations that are added."""
    accuracy = found.accuracy
    parts = {"dataset": accuracy.dataset, "split": accuracy.split, "engine_sha256": found.engine_sha256, "images_sha256": found.images_sha256}
    return {**parts, "available": found.available, "protocol": cast(Any, plain(found.protocol)), "instances": found.instances is not None}


def _matrix(found: Evaluation) -> ConfusionMatrix:
    """The matrix of an evaluation; InputError where it is none of its data set's labels, or does not add up."""
    return ConfusionMatrix(layout_of(found.accuracy.dataset).labels, np.array(found.accuracy.matrix, np.int64))


def _indices(found: Evaluation) -> list[int]:
    return [index for start, stop in found.spans for index in range(start, stop)]


def _bytes(path: Path | None) -> int:
    return -1 if path is None else path.stat().st_size

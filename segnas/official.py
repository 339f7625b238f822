"""The results of the official Cityscapes evaluation: every number of its JSON, to the last bit, from a confusion matrix and counted instances.

The rules are those of `evalPixelLevelSemanticLabeling.py` in cityscapesScripts 2.3.0; each function names the one that it follows. Its
`evalPixelAccuracy` is left out: its mask is inverted, so that it counts the ignored pixels. Its iIoU depends in the last bit on the order of the
images, which is that of the file system there and that of the names here.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError
from segnas.labels import Label, LabelSet
from segnas.metrics import ConfusionMatrix, Ids, mean
from segnas.report import ClassScore, InstanceCount, ScoreTable

AVERAGE_PIXELS = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "caravan": 36771.8241758242,
    "trailer": 16926.9763313609,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
"""Pixels of an average instance of each class of Cityscapes that has instances: `avgClassSize` of the official script."""

GROUP = 1000
"""An instance id is GROUP * label + number; ids up to GROUP are labels of regions without instances."""

Scores = Mapping[str, float | None]


def category_iou(matrix: ConfusionMatrix) -> dict[str, float | None]:
    """Intersection over union of each category, in the order of the ids; None where it has no meaning (`getIouScoreForCategory`).

    Its scored labels are one class: a mistake among them is none. Predictions on ignored ground truth are free.
    """
    return {category: _category_iou(matrix, category) for category in _categories(matrix.labels)}


def instance_counts(index: int, instances: NDArray[np.integer[Any]], predicted_ids: Ids, labels: LabelSet) -> tuple[InstanceCount, ...]:
    """Every scored object of image `index`, in the order of instance ids: two maps (H, W), of instance ids and of predicted raw ids (`evaluatePair`).

    InputError where the maps have different sizes, or an id is of a label that is unknown or has no instances.
    """
    if instances.shape != predicted_ids.shape:
        raise InputError(f"the instances are {_size(instances)}, the prediction is {_size(predicted_ids)}; they must be equal")
    places = instances > GROUP
    ids, which, pixels = np.unique(instances[places], return_inverse=True, return_counts=True)
    owners = ids.astype(np.int64) // GROUP
    _require_instances(owners, labels)
    groups = {category: number for number, category in enumerate(_categories(labels))}
    group_of = np.array([groups[label.category] for label in labels.labels])
    predicted, owner = predicted_ids[places], owners[which]
    hits = np.bincount(which[predicted == owner], minlength=len(ids))
    category_hits = np.bincount(which[group_of[predicted] == group_of[owner]], minlength=len(ids))
    counts = zip(owners.tolist(), pixels.tolist(), hits.tolist(), category_hits.tolist(), strict=True)
    return tuple(InstanceCount(index, *row) for row in counts if not labels.labels[row[0]].ignore)


def instance_iou(matrix: ConfusionMatrix, instances: Iterable[InstanceCount]) -> dict[str, float | None]:
    """iIoU of each scored class: pixels of an object weigh by the average size of its class over its own (`getInstanceIouScoreForLabel`).

    None for a class without instances. Instances are added in the order given.
    """
    labels = matrix.labels
    found: dict[str, float | None] = {label.name: None for label in labels.classes}
    sums = _weighted(instances, labels, lambda count: (labels.labels[count.label].name, count.hits))
    for label in labels.classes:
        if label.name in AVERAGE_PIXELS:
            others = [other.id for other in labels.classes if other is not label]
            found[label.name] = _weighted_iou(sums.get(label.name, (0.0, 0.0)), int(matrix.counts[others, label.id].sum()))
    return found


def category_instance_iou(matrix: ConfusionMatrix, instances: Iterable[InstanceCount]) -> dict[str, float | None]:
    """iIoU of each category of which every label has instances; None for the others (`getInstanceIouScoreForCategory`).

    Predictions of its ignored labels count here: a caravan on a road is a false vehicle.
    """
    labels = matrix.labels
    sums = _weighted(instances, labels, lambda count: (labels.labels[count.label].category, count.category_hits))
    found: dict[str, float | None] = {}
    for category, members in _categories(labels).items():
        found[category] = None
        if all(label.name in AVERAGE_PIXELS for label in members):
            others = [label.id for label in labels.classes if label.category != category]
            wrong = int(matrix.counts[np.ix_(others, [label.id for label in members])].sum())
            found[category] = _weighted_iou(sums.get(category, (0.0, 0.0)), wrong)
    return found


def score_tables(matrix: ConfusionMatrix, instances: Iterable[InstanceCount] | None) -> tuple[ScoreTable, ScoreTable, ScoreTable]:
    """Scores of categories, of instances by class and of instances by category; the last two hold nothing but None without `instances`."""
    kept = None if instances is None else tuple(instances)
    by_class = dict.fromkeys((label.name for label in matrix.labels.classes), None) if kept is None else instance_iou(matrix, kept)
    by_category = dict.fromkeys(_categories(matrix.labels), None) if kept is None else category_instance_iou(matrix, kept)
    return _table(category_iou(matrix)), _table(by_class), _table(by_category)


def official_json(matrix: ConfusionMatrix, instances: Sequence[InstanceCount] | None = None) -> str:
    """The text that the official script writes for these counts: its keys, its order, its bare NaN (which strict JSON has not).

    Every label has a class score, NaN for the ignored. The instance scores are NaN where `instances` is None.
    """
    tables = score_tables(matrix, instances)
    classes, by_class = matrix.iou(), _scores(tables[1])
    every = {label.name: label for label in matrix.labels.labels}
    found: dict[str, Any] = {
        "confMatrix": matrix.counts.tolist(),
        "priors": {name: _prior(matrix, label) for name, label in every.items()},
        "labels": {name: label.id for name, label in every.items()},
        "classScores": {name: _nan(classes.get(name)) for name in every},
        "classInstScores": {name: _nan(by_class.get(name)) for name in every},
        "categoryScores": {name: _nan(score) for name, score in _scores(tables[0]).items()},
        "categoryInstScores": {name: _nan(score) for name, score in _scores(tables[2]).items()},
        "averageScoreClasses": _nan(matrix.miou),
        "averageScoreInstClasses": _nan(tables[1].mean),
        "averageScoreCategories": _nan(tables[0].mean),
        "averageScoreInstCategories": _nan(tables[2].mean),
    }
    return json.dumps(found, sort_keys=True, indent=4)


def _categories(labels: LabelSet) -> dict[str, list[Label]]:
    """The labels of each category, in the order of the ids."""
    found: dict[str, list[Label]] = {}
    for label in labels.labels:
        found.setdefault(label.category, []).append(label)
    return found


def _category_iou(matrix: ConfusionMatrix, category: str) -> float | None:
    inside = [label.id for label in matrix.labels.classes if label.category == category]
    outside = [label.id for label in matrix.labels.classes if label.category != category]
    hits = int(matrix.counts[np.ix_(inside, inside)].sum())
    missed = int(matrix.counts[inside].sum()) - hits
    wrong = int(matrix.counts[np.ix_(outside, inside)].sum())
    union = hits + missed + wrong
    return hits / union if union else None


def _weighted(instances: Iterable[InstanceCount], labels: LabelSet, of: Callable[[InstanceCount], tuple[str, int]]) -> dict[str, tuple[float, float]]:
    """Weighted pixels that were hit and missed, by the name that `of` gives an instance beside its hits."""
    sums: dict[str, tuple[float, float]] = {}
    for count in instances:
        name, hits = of(count)
        weight = AVERAGE_PIXELS[labels.labels[count.label].name] / float(count.pixels)
        hit, missed = sums.get(name, (0.0, 0.0))
        sums[name] = hit + float(hits) * weight, missed + float(count.pixels - hits) * weight
    return sums


def _weighted_iou(hit_and_missed: tuple[float, float], wrong: int) -> float | None:
    hit, missed = hit_and_missed
    union = hit + wrong + missed
    return hit / union if union else None


def _require_instances(owners: NDArray[np.int64], labels: LabelSet) -> None:
    known = {label.id for label in labels.labels if label.name in AVERAGE_PIXELS}
    strange = sorted(set(owners.tolist()) - known)
    if strange:
        raise InputError(f"instances of labels {strange} were given; {labels.name} has instances of labels {sorted(known)}")


def _prior(matrix: ConfusionMatrix, label: Label) -> float:
    return int(matrix.counts[label.id].sum()) / matrix.pixels if matrix.pixels else math.nan


def _table(scores: Scores) -> ScoreTable:
    return ScoreTable(mean(scores.values()), tuple(ClassScore(name, score) for name, score in scores.items()))


def _scores(table: ScoreTable) -> dict[str, float | None]:
    return {score.name: score.iou for score in table.scores}


def _nan(score: float | None) -> float:
    return math.nan if score is None else score


def _size(array: NDArray[Any]) -> str:
    return "x".join(str(side) for side in array.shape)

"""An evaluation in lines for people: scores in per cent by class and category, the means, and how they were made."""

from collections.abc import Mapping, Sequence

from segnas.report import ClassScore, Evaluation, ScoreTable


def evaluation_lines(found: Evaluation) -> list[str]:
    """Two tables, the means, and the protocol; iIoU only where the truth has instances."""
    accuracy, instances = found.accuracy, found.instances is not None
    categories = [score for score in found.categories.scores if score.iou is not None]
    means = [f"mIoU {100 * accuracy.miou:.2f} %", f"categories {_percent(found.categories.mean)} %"]
    means += [f"iIoU {_percent(found.instance_classes.mean)} %"] if instances else []
    engine = f"engine sha256 {found.engine_sha256[:12]}; " if found.engine_sha256 else ""
    return [
        *_table("class", accuracy.classes, found.instance_classes if instances else None),
        "",
        *_table("category", categories, found.instance_categories if instances else None),
        "",
        f"{', '.join(means)}; pixel accuracy {100 * accuracy.pixel_accuracy:.2f} %; {accuracy.images} images of {accuracy.dataset} {accuracy.split}",
        f"{engine}{accuracy.protocol}",
    ]


def _table(title: str, scores: Sequence[ClassScore], instances: ScoreTable | None) -> list[str]:
    second: Mapping[str, float | None] | None = None if instances is None else {score.name: score.iou for score in instances.scores}
    head = f"{title:<15}{'IoU':>7}{'' if second is None else '    iIoU'}"
    rows = (f"{s.name:<15}{_percent(s.iou):>7}{'' if second is None else f'{_percent(second.get(s.name)):>8}'}" for s in scores)
    return [head, *rows]


def _percent(score: float | None) -> str:
    return "--" if score is None else f"{100 * score:.2f}"

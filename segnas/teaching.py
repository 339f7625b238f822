"""The teacher of a run: a network that is trained first, under the student's schedule, where the recipe distils."""

from dataclasses import replace
from pathlib import Path

from segnas.arch import Architecture
from segnas.data import Dataset
from segnas.errors import UsageError
from segnas.files import read_noun, write_noun
from segnas.measuring import Progress
from segnas.network import Network
from segnas.recipe import Recipe
from segnas.search.references import reference
from segnas.steps import TEACHER_NAME, load_network, train_network

WEIGHTS = "teacher.safetensors"
TEACHING = (TEACHER_NAME, WEIGHTS, "teacher.json", "teacher.checkpoint.safetensors")
"""What belongs to a teacher, in a run's folder."""


def require_teacher(recipe: Recipe, classes: int) -> None:
    """Refuse a recipe that distils from nobody: UsageError says what is missing."""
    if recipe.train.distil == "none":
        return
    if recipe.train.teacher != "search":
        reference(recipe.train.teacher, classes)
    elif not recipe.search.teacher:
        raise UsageError(f"recipe {recipe.name} trains with the teacher of its search (train.teacher 'search'): give search.teacher = true too")


def teach(recipe: Recipe, folder: Path, dataset: Dataset, *, device: str, progress: Progress) -> None:
    """Train the teacher of a run, the one that was searched or a reference, in the run's folder."""
    path = folder / TEACHER_NAME
    if recipe.train.teacher != "search":
        write_noun(path, reference(recipe.train.teacher, len(dataset.labels.classes)))
    architecture, settings = read_noun(path, Architecture), replace(recipe.train, distil="none")
    out = folder / WEIGHTS
    train_network(architecture, dataset, settings, out=out, pretrained=None, device=device, seed=recipe.seed + 1, progress=progress)


def teacher_of(recipe: Recipe, folder: Path) -> Network | None:
    """The trained teacher of a run; None where the recipe does not distil."""
    if recipe.train.distil == "none":
        return None
    return load_network(read_noun(folder / TEACHER_NAME, Architecture), folder / WEIGHTS)[0]

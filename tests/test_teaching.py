"""The teacher of a run: who it may be, that it is trained once under the student's schedule, and what a recipe without one says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segnas import teaching
from segnas.data import Dataset, open_dataset
from segnas.errors import UsageError
from segnas.files import read_noun, write_noun
from segnas.network import Network
from segnas.recipe import Recipe, read_recipe
from segnas.search.spaces import space
from segnas.streets import write_streets
from segnas.teaching import require_teacher, teach, teacher_of


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 2}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


@pytest.fixture
def recipe() -> Recipe:
    found = read_recipe("fasterseg-quick")
    return replace(found, train=replace(found.train, steps=1, batch=2, crop=(64, 64)))


def test_a_recipe_that_distils_needs_somebody_to_learn_from(recipe: Recipe) -> None:
    require_teacher(recipe, 19)
    require_teacher(replace(recipe, train=replace(recipe.train, teacher="mobilenet-v2")), 19)
    with pytest.raises(UsageError, match=r"give search\.teacher = true too"):
        require_teacher(replace(recipe, search=replace(recipe.search, teacher=False)), 19)
    with pytest.raises(UsageError, match="no reference network is called 'professor'"):
        require_teacher(replace(recipe, train=replace(recipe.train, teacher="professor")), 19)
    require_teacher(replace(recipe, train=replace(recipe.train, distil="none", teacher="professor")), 19)


def test_the_searched_teacher_is_trained_and_read_back(recipe: Recipe, streets: Dataset, tmp_path: Path) -> None:
    made = space("cas-tiny", 19)
    architecture = made.decode(next(made.genotypes())).architecture
    write_noun(tmp_path / "teacher.arch.json", architecture)
    teach(recipe, tmp_path, streets, device="cpu", progress=lambda done, total, text: None)
    assert {path.name for path in tmp_path.iterdir()} == set(teaching.TEACHING)
    found = teacher_of(recipe, tmp_path)
    assert isinstance(found, Network)
    assert found.architecture == architecture
    assert not found.training
    assert teacher_of(replace(recipe, train=replace(recipe.train, distil="none")), tmp_path) is None


def test_a_reference_teaches_by_its_name(recipe: Recipe, streets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(teaching, "train_network", lambda architecture, dataset, settings, **rest: given.update(settings=settings, **rest))
    teach(replace(recipe, train=replace(recipe.train, teacher="fast-scnn")), tmp_path, streets, device="cpu", progress=lambda done, total, text: None)
    assert read_noun(tmp_path / "teacher.arch.json", type(teaching.reference("fast-scnn", 19))) == teaching.reference("fast-scnn", 19)
    assert given["settings"] == replace(recipe.train, teacher="fast-scnn", distil="none")
    assert given["seed"] == recipe.seed + 1

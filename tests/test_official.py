"""Every number of the official evaluation: against what its script wrote, a slow reading of its rules, and (slow) the script itself, live."""

import fcntl
import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from segnas.errors import InputError
from segnas.labels import CAMVID, CITYSCAPES
from segnas.metrics import ConfusionMatrix
from segnas.official import AVERAGE_PIXELS, instance_counts, official_json, score_tables
from segnas.report import InstanceCount

GOLDEN = Path(__file__).parent / "runtime" / "golden"
_spec = importlib.util.spec_from_file_location("official_cases", GOLDEN / "official_cases.py")
assert _spec is not None
assert _spec.loader is not None
official_cases: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(official_cases)

Maps = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]


def counted(images: list[Maps]) -> tuple[ConfusionMatrix, tuple[InstanceCount, ...]]:
    """What segnas counts of truths, predictions and instances."""
    matrix, objects = ConfusionMatrix(CITYSCAPES), list[InstanceCount]()
    for index, (truth, prediction, instances) in enumerate(images):
        matrix.add(truth, prediction)
        objects += instance_counts(index, instances, prediction, CITYSCAPES)
    return matrix, tuple(objects)


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit, NaN to NaN."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, float) and isinstance(theirs, float):
        return ours.hex() == theirs.hex()
    return bool(ours == theirs)


def agrees(images: list[Maps], recorded: dict[str, Any]) -> None:
    """The text of the official script, byte by byte; where it differs, say in which score."""
    text = official_json(*counted(images))
    ours = {name: value for name, value in json.loads(text).items() if name not in ("confMatrix", "labels")}
    for name, value in recorded["results"].items():
        assert same(ours[name], value), name
    assert hashlib.sha256(text.encode()).hexdigest() == recorded["sha256"]


@pytest.mark.parametrize("name", official_cases.cases())
def test_the_text_is_what_the_official_script_wrote(name: str) -> None:
    agrees(official_cases.cases()[name], json.loads((GOLDEN / "official.json").read_text())[name])


def test_dropping_the_predictions_of_void_inflates_the_score() -> None:
    ((truth, prediction, _),) = official_cases.cases()["gap"]
    matrix = ConfusionMatrix(CITYSCAPES)
    matrix.add(truth, prediction)
    kept, guess = CITYSCAPES.train_ids(truth).astype(int), CITYSCAPES.train_ids(prediction).astype(int)
    both = (kept != 255) & (guess != 255)
    small = np.bincount(kept[both] * 19 + guess[both], minlength=361).reshape(19, 19)
    union = small.sum(0) + small.sum(1) - small.diagonal()
    inflated = float(np.mean(small.diagonal()[union > 0] / union[union > 0]))
    assert matrix.miou is not None
    assert (round(matrix.miou, 4), round(inflated, 4)) == official_cases.GAP == (0.3128, 0.3306)


HAS_INSTANCES = {24, 25, 26, 27, 28, 29, 30, 31, 32, 33}


def slow_results(images: list[Maps]) -> dict[str, Any]:
    """The official formulas as the notes of the project put them, pixel by pixel and label by label; NaN where there is nothing to divide by."""
    size = 34
    names, category_of = [label.name for label in CITYSCAPES.labels], [label.category for label in CITYSCAPES.labels]
    ignored = {label.id for label in CITYSCAPES.labels if label.ignore}
    pairs = [[0] * size for _ in range(size)]
    hit: dict[tuple[str, str], float] = {}
    missed: dict[tuple[str, str], float] = {}
    for truth, prediction, instances in images:
        for row in range(truth.shape[0]):
            for column in range(truth.shape[1]):
                pairs[int(truth[row, column])][int(prediction[row, column])] += 1
        for number in sorted({int(value) for value in instances.ravel() if value > 1000}):
            label = number // 1000
            if label in ignored:
                continue
            guesses = [int(guess) for guess, value in zip(prediction.ravel(), instances.ravel(), strict=True) if value == number]
            weight = AVERAGE_PIXELS[names[label]] / float(len(guesses))
            same_class = sum(guess == label for guess in guesses)
            same_category = sum(category_of[guess] == category_of[label] for guess in guesses)
            for key, right in ((("class", names[label]), same_class), (("category", category_of[label]), same_category)):
                hit[key] = hit.get(key, 0.0) + float(right) * weight
                missed[key] = missed.get(key, 0.0) + float(len(guesses) - right) * weight
    total = sum(map(sum, pairs))

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    def of_class(label: int) -> tuple[float, float]:
        if label in ignored:
            return math.nan, math.nan
        right = pairs[label][label]
        false = sum(pairs[other][label] for other in range(size) if other not in ignored and other != label)
        key = ("class", names[label])
        weighted = ratio(hit.get(key, 0.0), hit.get(key, 0.0) + false + missed.get(key, 0.0)) if label in HAS_INSTANCES else math.nan
        return ratio(right, right + false + (sum(pairs[label]) - right)), weighted

    def of_category(category: str) -> tuple[float, float]:
        members = [label for label in range(size) if category_of[label] == category]
        scored, outside = [m for m in members if m not in ignored], [o for o in range(size) if o not in ignored and category_of[o] != category]
        if not scored:
            return math.nan, math.nan
        right = sum(pairs[a][b] for a in scored for b in scored)
        false = sum(pairs[other][label] for other in outside for label in scored)
        key = ("category", category)
        weighted = math.nan
        if all(member in HAS_INSTANCES for member in members):
            wrong = sum(pairs[other][label] for other in outside for label in members)
            weighted = ratio(hit.get(key, 0.0), hit.get(key, 0.0) + wrong + missed.get(key, 0.0))
        return ratio(right, right + false + sum(sum(pairs[label]) for label in scored) - right), weighted

    def average(scores: dict[str, float]) -> float:
        total, number = 0.0, 0
        for score in scores.values():
            if not math.isnan(score):
                total, number = total + score, number + 1
        return total / number if number else math.nan

    classes = {names[label]: of_class(label) for label in range(size)}
    categories = {category: of_category(category) for category in dict.fromkeys(category_of)}
    found: dict[str, Any] = {
        "confMatrix": pairs,
        "priors": {names[label]: ratio(sum(pairs[label]), total) for label in range(size)},
        "labels": {names[label]: label for label in range(size)},
    }
    for name, kind, scores in (("class", "Classes", classes), ("category", "Categories", categories)):
        for position, infix in enumerate(("", "Inst")):
            column = {key: score[position] for key, score in scores.items()}
            found[f"{name}{infix}Scores"] = column
            found[f"averageScore{infix}{kind}"] = average(column)
    return found


# Few labels, so that classes and categories are absent now and then: void, ignored ones of three categories, scored ones with and without instances.
IDS = arrays.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 9, 7, 8, 23, 24, 25, 26, 27, 29, 30, 33]))
NUMBERS = arrays.arrays(np.uint16, (4, 5), elements=st.sampled_from([0, 7, 24, 26, 24000, 24001, 25000, 26000, 26001, 27003, 29000, 30001, 33000]))


@given(st.lists(st.tuples(IDS, IDS, NUMBERS), min_size=1, max_size=3))
def test_every_number_agrees_with_a_slow_reading_of_the_rules(images: list[Maps]) -> None:
    ours, theirs = json.loads(official_json(*counted(images))), slow_results(images)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert same(ours[name], theirs[name]), name


@given(st.lists(st.tuples(IDS, IDS, NUMBERS), min_size=1, max_size=3))
def test_without_instances_nothing_else_changes(images: list[Maps]) -> None:
    matrix, objects = counted(images)
    without, with_them = json.loads(official_json(matrix)), json.loads(official_json(matrix, objects))
    for name in ("classInstScores", "categoryInstScores"):
        assert all(math.isnan(score) for score in without.pop(name).values())
        with_them.pop(name)
    for name in ("averageScoreInstClasses", "averageScoreInstCategories"):
        assert math.isnan(without.pop(name))
        with_them.pop(name)
    assert same(without, with_them)
    assert all(score.iou is None for table in score_tables(matrix, None)[1:] for score in table.scores)


def test_camvid_has_the_same_keys_and_no_instances() -> None:
    matrix = ConfusionMatrix(CAMVID)
    matrix.add(np.array([[0, 3, 11, 8]], np.uint8), np.array([[0, 4, 3, 8]], np.uint8))
    found = json.loads(official_json(matrix))
    assert found.keys() == slow_results([]).keys()
    assert found["categoryScores"]["flat"] == 1.0  # pavement on road is a mistake among flat ones
    assert found["averageScoreClasses"] == (1 + 0 + 0 + 1) / 4
    assert math.isnan(found["classScores"]["void"])
    assert math.isnan(found["classInstScores"]["car"])


def test_instances_that_cannot_be() -> None:
    ids = np.zeros((2, 2), np.uint8)
    with pytest.raises(InputError, match=r"labels \[7, 60\] were given; cityscapes has instances of labels \[24,"):
        instance_counts(0, np.array([[7001, 60001], [0, 0]], np.uint16), ids, CITYSCAPES)
    with pytest.raises(InputError, match="2x3, the prediction is 2x2"):
        instance_counts(0, np.zeros((2, 3), np.uint16), ids, CITYSCAPES)


@pytest.fixture(scope="session")
def official_python() -> Path:
    """A Python with cityscapesScripts 2.3.0 and a numpy that it works with, made once in the user's cache; skipped where it cannot be installed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segnas" / "cityscapesscripts-2.3.0"
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with folder.with_name(f"{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several of pytest's workers come here at once
        if not (folder / "complete").is_file():
            venv.create(folder, with_pip=True, clear=True)
            words = [str(python), "-m", "pip", "install", "-q", "cityscapesscripts==2.3.0", "numpy<2.4"]
            made = subprocess.run(words, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                pytest.skip(f"cityscapesscripts cannot be installed: {(made.stderr.strip().splitlines() or ['pip failed'])[-1]}")
            (folder / "complete").touch()
    return python


def recorded(python: Path, out: Path, *words: object) -> dict[str, Any]:
    """What the official script says, live."""
    command = [str(python), "-B", str(GOLDEN / "record.py"), *map(str, words), str(out)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_recorded_results_are_those_of_the_official_script(official_python: Path, tmp_path: Path) -> None:
    recorded(official_python, tmp_path / "out.json", "cases")
    assert (tmp_path / "out.json").read_text() == (GOLDEN / "official.json").read_text()


@pytest.mark.slow
def test_random_maps_score_as_in_the_official_script(official_python: Path, tmp_path: Path) -> None:
    found = recorded(official_python, tmp_path / "out.json", "seeds", 300)
    assert len(found) == 300
    for seed, official in found.items():
        agrees(official_cases.random_case(int(seed)), official)


@pytest.mark.slow
@pytest.mark.parametrize("instances", [True, False])
def test_a_real_network_scores_as_in_the_official_script(official_python: Path, tmp_path: Path, instances: bool) -> None:
    """Streets, a network through ONNX Runtime, `predict --as labels`, then both scores of the same PNGs and the one of the engine itself."""
    from segnas.data import open_dataset
    from segnas.exporting import export_engine
    from segnas.network import initialised
    from segnas.runtime.onnxruntime_session import cpu_target
    from segnas.search.spaces import space
    from segnas.streets import write_streets

    streets = write_streets(tmp_path / "streets", counts={"train": 1, "val": 5}, height=128, width=256, seed=3)
    dataset = open_dataset("cityscapes", streets, "val")
    tiny = space("cas-tiny", 19)
    network = initialised(tiny.decode(next(tiny.genotypes())).architecture, 5).eval()
    export_engine(network, cpu_target(128, 256), tmp_path, dataset=dataset)
    if instances:
        for sample in dataset.samples:
            assert sample.label is not None
            ids = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED).astype(np.uint16)
            columns = np.arange(ids.shape[1]) // 40
            written = np.where(ids >= 24, ids * 1000 + columns, ids).astype(np.uint16)
            assert cv2.imwrite(str(sample.label).replace("_labelIds", "_instanceIds"), written)

    def run(*words: object) -> None:
        done = subprocess.run([sys.executable, "-m", "segnas", *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("predict", tmp_path / "model.onnx", streets / "leftImg8bit" / "val", "--as", "labels", "--out", tmp_path / "seen")
    official = recorded(official_python, tmp_path / "out.json", "folder", streets, tmp_path / "seen")["folder"]
    data = ("--data-root", streets)
    run("eval", "--predictions", tmp_path / "seen", *data, "--official-json", tmp_path / "of-images.json")
    run("eval", tmp_path / "model.onnx", *data, "--official-json", tmp_path / "of-engine.json", "--workers", 2)
    text = (tmp_path / "of-images.json").read_text()
    assert (tmp_path / "of-engine.json").read_text() == text
    ours = json.loads(text)
    assert len([score for score in ours["classScores"].values() if score > 0]) >= 2
    for name, value in official["results"].items():
        if instances or "Inst" not in name:
            assert same(ours[name], value), name
    if instances:
        assert hashlib.sha256(text.encode()).hexdigest() == official["sha256"]

"""`segnas eval` and `segnas predict` as a user meets them: what is printed where, and the exit code of each mistake."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from segnas.__main__ import main
from segnas.export.manifest import manifest_path, read_engine, write_engine
from segnas.files import write_noun
from segnas.target import CUDA_PROVIDER

OK, USAGE, REQUIREMENT, INPUT, INCOMPATIBLE = 0, 2, 3, 4, 6
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the program in this process as `segnas WORDS...`: exit code, stdout, stderr; never a traceback."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["segnas", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def streets(street_engines) -> tuple[str, Path]:
    return "--data-root", street_engines.streets


def test_an_evaluation_for_people_and_for_programs(street_engines, streets, call: Call, tmp_path: Path) -> None:
    code, out, err = call("eval", street_engines.labels, *streets, "--out", tmp_path / "e", "--official-json", tmp_path / "o.json", "--workers", 2)
    assert code == OK
    assert "road" in out
    assert "vehicle" in out
    assert "mIoU" in out
    assert "evaluating on synthetic-streets val" in err
    official = json.loads((tmp_path / "o.json").read_text())
    assert math.isnan(official["classScores"]["unlabeled"])
    code, out, err = call("eval", street_engines.labels, *streets, "--out", tmp_path / "e", "--json")
    found = json.loads(out, parse_constant=lambda text: pytest.fail(f"{text} in strict JSON"))
    assert found["accuracy"]["miou"] == official["averageScoreClasses"]
    assert found["categories"]["mean"] == official["averageScoreCategories"]
    assert found["instance_classes"]["mean"] is None
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == {"schema": "segnas.evaluation/1", **found}
    assert call("show", tmp_path / "e" / "evaluation.json")[1].splitlines()[-2].startswith("mIoU")


def test_parts_merged_on_the_command_line(street_engines, streets, call: Call, tmp_path: Path) -> None:
    whole = json.loads(call("eval", street_engines.labels, *streets, "--json")[1])
    for k in (1, 2, 3):
        assert call("eval", street_engines.labels, *streets, "--part", f"{k}/3", "--out", tmp_path / str(k))[0] == OK
    files = [tmp_path / str(k) / "evaluation.json" for k in (3, 1, 2)]
    code, out, _ = call("eval", "--merge", *files, "--out", tmp_path / "all", "--official-json", tmp_path / "o.json", "--json")
    assert (code, json.loads(out)) == (OK, whole)
    assert json.loads((tmp_path / "o.json").read_text())["averageScoreClasses"] == whole["accuracy"]["miou"]
    assert (tmp_path / "all" / "evaluation.json").is_file()
    code, _, err = call("eval", "--merge", files[0], files[0])
    assert (code, "is counted once" in err) == (INPUT, True)
    assert call("eval", street_engines.logits, *streets, "--part", "1/3", "--out", tmp_path / "other")[0] == OK
    code, _, err = call("eval", "--merge", files[0], tmp_path / "other" / "evaluation.json")
    assert code == INCOMPATIBLE
    assert "engine_sha256 is" in err
    code, _, err = call("eval", "--merge", files[0], manifest_path(street_engines.labels))
    assert code == INPUT
    assert "segnas.evaluation/1 is needed" in err


def test_predict_then_score_what_was_written(street_engines, streets, call: Call, tmp_path: Path) -> None:
    images = street_engines.streets / "leftImg8bit" / "val"
    code, out, _ = call("predict", street_engines.labels, images, "--as", "labels", "--out", tmp_path / "ids", "--json")
    found = json.loads(out)
    assert (code, found["done"], found["failed"]) == (OK, 6, [])
    code, out, _ = call("eval", "--predictions", tmp_path / "ids", *streets, "--json")
    assert code == OK
    engine = json.loads(call("eval", street_engines.labels, *streets, "--json")[1])
    assert json.loads(out)["accuracy"]["matrix"] == engine["accuracy"]["matrix"]
    (tmp_path / "ids" / "synval" / "synval_000001_000019_labelIds.png").write_bytes(b"torn")
    code, _, err = call("eval", "--predictions", tmp_path / "ids", *streets)
    assert (code, "synval_000001_000019_labelIds.png: damaged" in err) == (INPUT, True)


def test_predicting_with_one_bad_file_ends_with_4_and_keeps_the_rest(street_engines, call: Call, tmp_path: Path) -> None:
    images = street_engines.streets / "leftImg8bit" / "val" / "synval"
    (tmp_path / "in").mkdir()
    for path in sorted(images.iterdir())[:3]:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    code, out, err = call("predict", street_engines.labels, tmp_path / "in", "--out", tmp_path / "out")
    assert code == INPUT
    assert "3 pictures (overlay), 1 failed" in out
    assert "Error: 1 pictures were not predicted" in err
    assert "bad.png" in err
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert call("predict", street_engines.labels, tmp_path / "in", "--out", tmp_path / "out")[0] == INPUT


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("eval",), USAGE, "0 files were given; give one engine, or --predictions FOLDER"),
        (("eval", "a.onnx", "b.onnx"), USAGE, "2 files were given"),
        (("eval", "a.onnx", "--predictions", "x"), USAGE, "1 files were given beside --predictions"),
        (("eval", "--merge"), USAGE, "--merge was given without a file"),
        (("eval", "a.json", "--merge", "--predictions", "x"), USAGE, "both given"),
        (("eval", "a.onnx"), USAGE, "--data-root is missing"),
        (("eval", "--merge", "nowhere.json"), INPUT, "nowhere.json does not exist"),
        (("eval", "LABELS", "STREETS", "--part", "4/3"), INPUT, "part 4/3 of 6 images"),
        (("eval", "LABELS", "STREETS", "--part", "one"), USAGE, "it is written K/N"),
        (("eval", "LABELS", "STREETS", "--scales", "a"), USAGE, "--scales a was given"),
        (("eval", "LABELS", "STREETS", "--scales", "0.5,1"), INPUT, "engine that gives labels"),
        (("eval", "LOGITS", "STREETS", "--scales", "0.5,1"), INPUT, "need a dynamic engine"),
        (("eval", "LOGITS", "STREETS", "--size", "32x64"), INPUT, "need a dynamic engine"),
        (("eval", "LABELS", "STREETS", "--flip"), INPUT, "flipping cannot be had"),
        (("eval", "LABELS", "--data-root", "LARGE"), INPUT, "labels at 64x128, and 128x256 is needed"),
        (("eval", "LABELS", "STREETS", "--split", "trial"), USAGE, "no split 'trial'"),
        (("eval", "nowhere.onnx", "STREETS"), INPUT, "nowhere.onnx does not exist"),
        (("eval", "LABELS", "STREETS", "--official-json", "/proc/x.json"), REQUIREMENT, "could not be written"),
        (("predict", "LABELS", "nowhere", "--out", "x"), INPUT, "nowhere does not exist"),
        (("predict", "LABELS", "camera:99", "--out", "x.mp4"), REQUIREMENT, "camera:99 cannot be opened"),
        (("predict", "nowhere.onnx", "IMAGES", "--out", "x"), INPUT, "nowhere.onnx does not exist"),
    ],
)
def test_each_mistake_has_its_exit_code(street_engines, call: Call, words: tuple[str, ...], code: int, message: str) -> None:
    places: dict[str, tuple[object, ...]] = {
        "LABELS": (street_engines.labels,),
        "LOGITS": (street_engines.logits,),
        "STREETS": ("--data-root", street_engines.streets),
        "LARGE": (street_engines.large,),
        "IMAGES": (street_engines.streets / "leftImg8bit",),
    }
    ended, out, err = call(*(word for given in words for word in places.get(given, (given,))))
    assert ended == code, err
    assert message in err
    assert out == ""


def test_engines_that_are_not_for_here(street_engines, streets, call: Call, tmp_path: Path) -> None:
    """Built for a CUDA device, of another runtime, cut short, or of other classes."""
    engine, artefact = read_engine(street_engines.labels)
    content = artefact.read_bytes()
    cuda = replace(engine.target, options=(("provider", CUDA_PROVIDER),))
    write_engine(tmp_path / "cuda", content, replace(engine, target=cuda))
    write_engine(tmp_path / "rtx", content, replace(engine, target=replace(engine.target, runtime="tensorrt", options=())))
    write_engine(tmp_path / "other", content, replace(engine, classes=("road", "sky")))
    write_engine(tmp_path / "noise", b"no ONNX", engine)
    write_engine(tmp_path / "cut", content, engine)
    (tmp_path / "cut" / "model.onnx").write_bytes(content[:-100])
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "model.onnx").write_bytes(content)
    for name, expected, message in (
        ("cuda", REQUIREMENT, "CUDA"),
        ("rtx", REQUIREMENT, "tensorrt"),
        ("other", INCOMPATIBLE, "has classes road, sky; synthetic-streets has road, sidewalk"),
        ("noise", INPUT, "cannot open this engine"),
        ("cut", INCOMPATIBLE, "is not the file that its manifest describes"),
        ("lone", INPUT, "has no manifest"),
    ):
        code, _, err = call("eval", tmp_path / name / "model.onnx", *streets, "--out", tmp_path / "out")
        assert (code, message in err) == (expected, True), err
    assert not (tmp_path / "out").exists()


def test_truth_that_is_not_there_or_of_another_size(street_engines, call: Call, tmp_path: Path) -> None:
    images = street_engines.streets / "leftImg8bit" / "val" / "synval"
    for path in sorted(images.iterdir())[:2]:
        place = tmp_path / "data" / "leftImg8bit" / "test" / "berlin" / path.name.replace("synval", "berlin")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    data = ("--data-root", tmp_path / "data", "--split", "test")
    for words in ((street_engines.labels,), ("--predictions", tmp_path)):
        code, _, err = call("eval", *words, *data)
        assert code == INPUT
        assert "has no ground truth" in err
        assert "only `segnas predict` is possible there" in err
    test = tmp_path / "data" / "leftImg8bit" / "test"
    assert call("predict", street_engines.labels, test, "--as", "labels", "--out", tmp_path / "ids")[0] == OK
    assert sorted(path.name for path in (tmp_path / "ids" / "berlin").iterdir()) == [f"berlin_00000{i}_000019_labelIds.png" for i in (0, 1)]
    from segnas.streets import write_streets

    root = write_streets(tmp_path / "streets", counts={"val": 2}, height=64, width=128, seed=0)
    bad = root / "gtFine" / "val" / "synval" / "synval_000001_000019_gtFine_labelIds.png"
    bad.write_bytes((street_engines.large / "gtFine" / "val" / "synval" / bad.name).read_bytes())
    code, _, err = call("eval", street_engines.labels, "--data-root", root, "--out", tmp_path / "out")
    assert code == INPUT
    assert "synval_000001_000019_gtFine_labelIds.png: 128x256, but its image" in err
    assert "1 other images were scored and are kept in" in err


def test_a_journal_of_another_engine_is_refused(street_engines, streets, call: Call, tmp_path: Path) -> None:
    assert call("eval", street_engines.labels, *streets, "--limit", 2, "--out", tmp_path)[0] == OK
    code, _, err = call("eval", street_engines.logits, *streets, "--limit", 2, "--out", tmp_path)
    assert code == INCOMPATIBLE
    assert "engine_sha256: the folder has" in err
    found = json.loads(call("eval", street_engines.labels, *streets, "--out", tmp_path, "--json")[1])
    assert found["accuracy"]["images"] == 6


def test_a_damaged_evaluation_is_not_merged(street_engines, streets, call: Call, tmp_path: Path) -> None:
    from segnas.evaluating import RESULT_NAME
    from segnas.files import read_noun
    from segnas.report import Evaluation

    call("eval", street_engines.labels, *streets, "--out", tmp_path)
    found = read_noun(tmp_path / RESULT_NAME, Evaluation)
    write_noun(tmp_path / "bad.json", replace(found, accuracy=replace(found.accuracy, matrix=((1, 2), (3, 4)))))
    code, _, err = call("eval", "--merge", tmp_path / "bad.json")
    assert code == INPUT
    assert "34x34" in err

"""Pictures, folders, videos and cameras through a real engine: what is written, what is kept, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from segnas import pictures
from segnas.data import normalise, open_dataset, read_image
from segnas.errors import IncompatibleError, InputError, RequirementError, UsageError
from segnas.evaluating import engine_evaluation
from segnas.export.manifest import manifest_path, read_engine, write_engine
from segnas.labels import CITYSCAPES
from segnas.predicting import Predicted, Wish, predict, prediction_lines
from segnas.runtime.predict import KINDS, palette
from segnas.runtime.video import FrameSource, VideoFile, open_video
from segnas.submissions import submission_evaluation

NAMES = tuple(f"synval_{index:06}_000019" for index in range(6))


@pytest.fixture
def images(street_engines) -> Path:
    return street_engines.streets / "leftImg8bit" / "val"


def labels_of(engine: Path, image: np.ndarray) -> np.ndarray:
    """Train ids by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(engine.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": normalise(image[None])})[0][0]


def picture(path: Path) -> np.ndarray:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found if found.ndim == 2 else cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def made_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_images(street_engines, images: Path, tmp_path: Path, kind: Any) -> None:
    told: list[tuple[int, int, str]] = []
    found = predict(street_engines.labels, str(images), tmp_path / "out", Wish(kind), progress=lambda *words: told.append(words))
    ending = "labelIds" if kind == "labels" else kind
    assert made_in(tmp_path / "out") == ["predictions.json", *(f"synval/{name}_{ending}.png" for name in NAMES)]
    assert (found.done, found.kept, found.failed, found.notes) == (6, 0, (), ())
    assert found.fps is not None
    assert found.median_ms is not None
    assert 0 < found.median_ms < 1000 / found.fps * 1.5
    assert "decode, resize, normalise, infer, argmax" in "".join(prediction_lines(found))
    assert [word[:2] for word in told] == [(index, 6) for index in range(1, 7)]
    assert "FPS" in told[-1][2]
    for name in NAMES:
        image = read_image(images / "synval" / f"{name}_leftImg8bit.png")
        train_ids = labels_of(street_engines.labels, image)
        colours = CITYSCAPES.colours(train_ids)
        seen = picture(tmp_path / "out" / "synval" / f"{name}_{ending}.png")
        expected = {
            "labels": CITYSCAPES.ids(train_ids),
            "colours": colours,
            "side-by-side": np.concatenate([image, colours], 1),
            "overlay": image / 2 + colours / 2,
        }[kind]
        assert np.abs(seen.astype(float) - expected).max() <= (0.5 if kind == "overlay" else 0)


def test_label_images_score_as_the_engine_does(street_engines, images: Path, tmp_path: Path) -> None:
    """Written to disk and read as the benchmark server would: the matrix of the engine itself; bilinear at twice the size too."""
    dataset = open_dataset("cityscapes", street_engines.streets, "val")
    predict(street_engines.labels, str(images), tmp_path / "small", Wish("labels"))
    whole = engine_evaluation(street_engines.labels, dataset)
    assert submission_evaluation(tmp_path / "small", dataset).accuracy.matrix == whole.accuracy.matrix
    large = open_dataset("cityscapes", street_engines.large, "val")
    source = str(street_engines.large / "leftImg8bit" / "val")
    predict(street_engines.logits, source, tmp_path / "large", Wish("labels"))
    assert submission_evaluation(tmp_path / "large", large).accuracy.matrix == engine_evaluation(street_engines.logits, large).accuracy.matrix
    with pytest.raises(InputError, match=r"labels at 64x128, and 128x256 is needed.*--upsample nearest"):
        predict(street_engines.labels, source, tmp_path / "refused", Wish("labels"))
    found = predict(street_engines.labels, source, tmp_path / "refused", Wish("labels", upsample="nearest"))
    assert found.notes == ("labels were brought to the pictures' size by nearest neighbour",)
    assert predict(street_engines.labels, source, tmp_path / "overlays", Wish()).notes == found.notes


def test_what_is_there_is_not_made_again(street_engines, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(street_engines.labels, str(images), out, Wish())
    paths = [out / "synval" / f"{name}_overlay.png" for name in NAMES]
    before = [path.stat().st_mtime_ns for path in paths]
    content = paths[2].read_bytes()
    paths[2].unlink()
    found = predict(street_engines.labels, str(images), out, Wish())
    assert (found.done, found.kept) == (1, 5)
    assert paths[2].read_bytes() == content
    assert [path.stat().st_mtime_ns for path in paths if path != paths[2]] == before[:2] + before[3:]
    assert predict(street_engines.labels, str(images), out, Wish()).median_ms is None
    for engine, wish, message in (
        (street_engines.logits, Wish(), "engine_sha256: the folder has"),
        (street_engines.labels, Wish(opacity=0.7), "opacity: the folder has 0.5, asked for is 0.7"),
        (street_engines.labels, Wish("colours"), "as: the folder has overlay, asked for is colours"),
    ):
        with pytest.raises(IncompatibleError, match=f"pictures of another prediction .*{message}"):
            predict(engine, str(images), out, wish)
    assert predict(street_engines.labels, str(images), out, Wish(overwrite=True)).done == 6


def test_overwriting_that_was_interrupted_never_mixes_two_engines(
    street_engines, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    predict(street_engines.labels, str(images), out, Wish("labels"))
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "write_bytes", lambda path, content: (_ for _ in ()).throw(RequirementError("the disk is full")))
        with pytest.raises(RequirementError, match="disk is full"):
            predict(street_engines.logits, str(images), out, Wish("labels", overwrite=True))
    found = predict(street_engines.logits, str(images), out, Wish("labels"))
    assert (found.done, found.kept) == (6, 0)
    assert json.loads((out / "predictions.json").read_text())["engine_sha256"] == read_engine(street_engines.logits)[0].sha256
    (out / "synval" / "another_overlay.png").write_bytes(b"")
    (out / "predictions.json").write_text((out / "predictions.json").read_text().replace('"labels"', '"overlay"'))
    with pytest.raises(IncompatibleError, match="as: the folder has overlay"):  # this one would not be overwritten
        predict(street_engines.logits, str(images), out, Wish("labels", overwrite=True))


def test_pictures_that_nobody_vouches_for_are_not_taken_over(street_engines, images: Path, tmp_path: Path) -> None:
    strange = tmp_path / "synval" / f"{NAMES[0]}_overlay.png"
    strange.parent.mkdir()
    strange.write_bytes(b"mine")
    with pytest.raises(UsageError, match="nothing says which engine made it"):
        predict(street_engines.labels, str(images), tmp_path, Wish())
    assert strange.read_bytes() == b"mine"
    assert predict(street_engines.labels, str(images), tmp_path, Wish(overwrite=True)).done == 6


def test_one_unreadable_file_does_not_stop_the_rest(street_engines, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES[:3]:
        (folder / f"{name}_leftImg8bit.png").write_bytes((images / "synval" / f"{name}_leftImg8bit.png").read_bytes())
    (folder / f"{NAMES[1]}_leftImg8bit.png").write_bytes(b"torn")
    (folder / "notes.txt").write_text("not an image")
    found = predict(street_engines.labels, str(folder), tmp_path / "out", Wish())
    assert (found.done, len(found.failed)) == (2, 1)
    assert NAMES[1] in found.failed[0]
    assert found.notes == ("1 files that are no .png, .jpg, .jpeg were left out",)
    assert "1 failed" in prediction_lines(found)[0]
    assert len(made_in(tmp_path / "out")) == 3
    again = predict(street_engines.labels, str(folder), tmp_path / "out", Wish())
    assert (again.done, again.kept, len(again.failed)) == (0, 2, 1)


def test_one_image_to_a_file_or_a_folder(street_engines, images: Path, tmp_path: Path) -> None:
    source = str(images / "synval" / f"{NAMES[0]}_leftImg8bit.png")
    predict(street_engines.labels, source, tmp_path / "one.png", Wish("colours"))
    predict(street_engines.labels, source, tmp_path / "folder", Wish("colours"))
    predict(street_engines.labels, source, tmp_path / "one.jpg", Wish("colours"))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "folder" / f"{NAMES[0]}_colours.png").read_bytes()
    assert (tmp_path / "one.jpg").read_bytes()[:2] == b"\xff\xd8"
    with pytest.raises(UsageError, match=r"one\.png exists already; add --overwrite"):
        predict(street_engines.labels, source, tmp_path / "one.png", Wish("colours"))
    assert predict(street_engines.labels, source, tmp_path / "one.png", Wish("colours", overwrite=True)).done == 1


def video(path: Path, images: Path, frames: int) -> Path:
    """A film of streets, each shown for two frames."""
    film = VideoFile(path, 10.0)
    for index in range(frames):
        film.add(read_image(images / "synval" / f"{NAMES[index // 2 % 6]}_leftImg8bit.png"))
    film.close()
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    source, found = open_video(path), list[np.ndarray]()
    while (frame := source.read()) is not None:
        found.append(frame)
    source.close()
    return found


@pytest.mark.parametrize(("kind", "width"), [("overlay", 128), ("colours", 128), ("side-by-side", 256)])
def test_a_video_becomes_a_video(street_engines, images: Path, tmp_path: Path, kind: Any, width: int) -> None:
    film = video(tmp_path / "film.avi", images, 7)
    found = predict(street_engines.labels, str(film), tmp_path / "seen.mp4", Wish(kind))
    assert (found.done, found.notes) == (7, ("sound, if there was any, is not kept",))
    seen = frames_of(tmp_path / "seen.mp4")
    assert [frame.shape for frame in seen] == [(64, width, 3)] * 7
    assert open_video(tmp_path / "seen.mp4").fps == 10.0
    colours = CITYSCAPES.colours(labels_of(street_engines.labels, frames_of(film)[6]))
    if kind == "colours":
        assert np.abs(seen[6].astype(int) - colours).mean() < 25  # MPEG-4 smears the edges
    with pytest.raises(UsageError, match="exists already"):
        predict(street_engines.labels, str(film), tmp_path / "seen.mp4", Wish(kind))
    short = predict(street_engines.labels, str(film), tmp_path / "short.mp4", Wish(kind, frames=3))
    assert (short.done, len(frames_of(tmp_path / "short.mp4"))) == (3, 3)


def test_a_video_becomes_label_images_and_goes_on(street_engines, images: Path, tmp_path: Path) -> None:
    film = video(tmp_path / "film.avi", images, 6)
    first = predict(street_engines.labels, str(film), tmp_path / "ids", Wish("labels", frames=4))
    rest = predict(street_engines.labels, str(film), tmp_path / "ids", Wish("labels"))
    assert ((first.done, first.kept), (rest.done, rest.kept)) == ((4, 0), (2, 4))
    assert made_in(tmp_path / "ids") == [*(f"film_{index:06}_labelIds.png" for index in range(6)), "predictions.json"]
    for index, frame in enumerate(frames_of(film)):
        ids = picture(tmp_path / "ids" / f"film_{index:06}_labelIds.png")
        assert np.array_equal(ids, CITYSCAPES.ids(labels_of(street_engines.labels, frame)))


def test_a_video_that_fails_leaves_nothing(street_engines, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = video(tmp_path / "film.avi", images, 4)
    with monkeypatch.context() as patched:
        read = FrameSource.read
        count = iter(range(10))
        patched.setattr(FrameSource, "read", lambda self: read(self) if next(count) < 2 else (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            predict(street_engines.labels, str(film), tmp_path / "seen.mp4", Wish())
    assert made_in(tmp_path) == ["film.avi"]
    monkeypatch.setattr(FrameSource, "read", lambda self: None)
    with pytest.raises(InputError, match=r"film\.avi holds no frame"):
        predict(street_engines.labels, str(film), tmp_path / "seen.mp4", Wish())
    assert made_in(tmp_path) == ["film.avi"]


def test_a_video_that_ends_early_says_so(street_engines, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = video(tmp_path / "film.avi", images, 4)
    monkeypatch.setattr(pictures, "open_video", lambda path: announcing(open_video(path), 9))
    found = predict(street_engines.labels, str(film), tmp_path / "seen.mp4", Wish())
    assert any("announces 9 frames and gave 4: it may be cut short" in note for note in found.notes)


def announcing(source: FrameSource, total: int) -> FrameSource:
    source.total = total
    return source


class Camera:
    """A camera that shows one street until somebody presses Ctrl-C."""

    def __init__(self, image: np.ndarray, frames: int) -> None:
        self._image, self._left = image, frames

    def isOpened(self) -> bool:
        return True

    def get(self, what: int) -> float:
        return 20.0 if what == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return True, self._image[..., ::-1]

    def release(self) -> None: ...


def test_a_camera_until_it_is_stopped(street_engines, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera(read_image(images / "synval" / f"{NAMES[0]}_leftImg8bit.png"), 5)
    monkeypatch.setattr(pictures, "open_camera", lambda number: FrameSource(camera, f"camera{number}", live=True))
    found = predict(street_engines.labels, "camera:0", tmp_path / "seen.mp4", Wish())
    assert (found.done, found.notes) == (5, ("stopped by hand",))
    assert len(frames_of(tmp_path / "seen.mp4")) == 5
    with pytest.raises(UsageError, match="a camera is written camera:0"):
        predict(street_engines.labels, "camera:front", tmp_path / "x.mp4", Wish())


Place = Callable[[Path], tuple[str, Path, Wish]]


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        (lambda at: (f"{at}/in", at / "in", Wish()), UsageError, "lies in the input"),
        (lambda at: (f"{at}/in", at / "in" / "deep", Wish()), UsageError, "lies in the input"),
        (lambda at: (f"{at}/in", at / "seen.png", Wish()), UsageError, "folder of images; give a folder"),
        (lambda at: (f"{at}/in", at / "seen.mp4", Wish()), UsageError, "folder of images; give a folder"),
        (lambda at: (f"{at}/in/a.png", at / "in" / "a.png", Wish()), UsageError, "both input and output"),
        (lambda at: (f"{at}/in/a.png", at / "in" / ".." / "in" / "a.png", Wish(overwrite=True)), UsageError, "both input and output"),
        (lambda at: (f"{at}/in/a.png", at / "a.mp4", Wish()), UsageError, "was given for one image"),
        (lambda at: (f"{at}/in/a.png", at / "a.jpg", Wish("labels")), UsageError, "label ids, which JPEG changes"),
        (lambda at: (f"{at}/in/a.tif", at / "out", Wish()), InputError, r"\.tif; allowed are images .png.* and videos .mp4"),
        (lambda at: (f"{at}/in/a", at / "out", Wish()), InputError, "no suffix; allowed are"),
        (lambda at: (f"{at}/nowhere", at / "out", Wish()), InputError, "nowhere does not exist; give an image"),
        (lambda at: (f"{at}/empty", at / "out", Wish()), InputError, "empty holds no image"),
        (lambda at: (f"{at}/twice", at / "out", Wish()), InputError, r"a\.jpg and .*a\.png would be written under one name"),
        (lambda at: (f"{at}/film.avi", at / "seen.png", Wish()), UsageError, "a video is written as"),
        (lambda at: (f"{at}/film.avi", at / "seen.mp4", Wish("labels")), UsageError, "label ids, which a video would change; give a folder"),
        (lambda at: (f"{at}/film.avi", at / "film.avi", Wish(overwrite=True)), UsageError, "both input and output"),
        (lambda at: (f"{at}/bad.mp4", at / "seen.mp4", Wish()), InputError, "no frame can be decoded"),
    ],
)
def test_input_and_output_that_do_not_go_together(
    street_engines, images: Path, tmp_path: Path, place: Place, error: type[Exception], message: str
) -> None:
    content = (images / "synval" / f"{NAMES[0]}_leftImg8bit.png").read_bytes()
    for name in ("in/a.png", "in/a.tif", "in/a", "twice/a.png", "twice/a.jpg", "bad.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if name != "bad.mp4" else b"no video")
    (tmp_path / "empty").mkdir()
    video(tmp_path / "film.avi", images, 2)
    before = made_in(tmp_path)
    with pytest.raises(error, match=message):
        predict(street_engines.labels, *place(tmp_path))
    assert made_in(tmp_path) == before


def test_an_engine_of_other_classes_gets_made_up_colours(street_engines, images: Path, tmp_path: Path) -> None:
    engine, artefact = read_engine(street_engines.labels)
    write_engine(tmp_path / "other", artefact.read_bytes(), replace(engine, classes=tuple(f"kind {index}" for index in range(19))))
    path = tmp_path / "other" / "model.onnx"
    found = predict(path, str(images), tmp_path / "seen", Wish("colours"))
    assert found.notes == ("colours are made up: the engine's classes are those of no known label set",)
    image = read_image(images / "synval" / f"{NAMES[0]}_leftImg8bit.png")
    assert np.array_equal(picture(tmp_path / "seen" / "synval" / f"{NAMES[0]}_colours.png"), palette(256)[labels_of(path, image)])
    with pytest.raises(IncompatibleError, match=r"classes kind 0, .* no label set \(cityscapes, camvid\).*--as overlay"):
        predict(path, str(images), tmp_path / "ids", Wish("labels"))


def test_a_damaged_engine_is_refused_before_anything_is_written(street_engines, images: Path, tmp_path: Path) -> None:
    content = bytearray(street_engines.labels.read_bytes())
    content[1000] ^= 1
    (tmp_path / "model.onnx").write_bytes(bytes(content))
    manifest_path(tmp_path / "model.onnx").write_bytes(manifest_path(street_engines.labels).read_bytes())
    with pytest.raises(IncompatibleError, match="is not the file that its manifest describes"):
        predict(tmp_path / "model.onnx", str(images), tmp_path / "out", Wish())
    assert not (tmp_path / "out").exists()


def test_lines_for_people() -> None:
    found = Predicted("out", "overlay", "ab", 3, 2, ("x", "y"), "pipeline: all", 12.3456, 20.0, 55.55, ("a note",))
    assert prediction_lines(found) == [
        "out: 3 pictures (overlay), 2 were there already, 2 failed",
        "median 12.35 ms, p99 20.00 ms a frame (pipeline: all)",
        "55.5 FPS of the whole, with drawing and writing",
        "note: a note",
    ]

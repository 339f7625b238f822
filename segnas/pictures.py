"""Pictures: where those to be predicted come from, and where what is made of them goes: files, folders and videos."""

import glob
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.arch import canonical_json
from segnas.data import read_image
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.files import read_json, require_writable, write_bytes, write_text
from segnas.journals import differences
from segnas.runtime.predict import Kind
from segnas.runtime.video import READ_SUFFIXES, FrameSource, VideoFile, open_camera, open_video, require_codec

Bytes = NDArray[np.uint8]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
RECORD_NAME = "predictions.json"
ENDINGS: dict[Kind, str] = {"overlay": "_overlay.png", "labels": "_labelIds.png", "colours": "_colours.png", "side-by-side": "_side-by-side.png"}
"""What is appended to a picture's name: a label image of Cityscapes is then CITY_SEQUENCE_FRAME_labelIds.png, as the benchmark server finds it."""


@dataclass(frozen=True)
class Item:
    """One picture to come: `read` gives it (H, W, 3) RGB, or None where there is no more; `skip` passes over it, and says whether it was there."""

    name: str
    read: Callable[[], Bytes | None]
    skip: Callable[[], bool]


class Sink(Protocol):
    """Where pictures go, by name, in order."""

    def has(self, name: str) -> bool:
        """Whether that one is there already."""
        ...

    def put(self, name: str, picture: Bytes) -> None:
        """Keep a picture, (H, W, 3) RGB or (H, W) ids."""
        ...


@dataclass(frozen=True)
class Plan:
    """Source and destination that go together; a video or camera is open, nothing is written yet. `total` is 0 where it is not known."""

    source: str
    out: Path
    kind: Kind
    stills: tuple[tuple[str, Path], ...]
    frames: FrameSource | None
    left_out: int
    most: int | None

    @property
    def live(self) -> bool:
        """Whether it only ends when it is stopped."""
        return self.frames is not None and self.frames.live

    @property
    def total(self) -> int:
        """How many pictures are expected."""
        if self.frames is None:
            return len(self.stills)
        return min(self.most or self.frames.total, self.frames.total) if self.frames.total else self.most or 0

    @property
    def to_video(self) -> bool:
        """Whether one video comes of it."""
        return self.frames is not None and self.kind != "labels"

    @property
    def to_file(self) -> bool:
        """Whether one image comes of it."""
        return not self.to_video and self.out.suffix.lower() in IMAGE_SUFFIXES

    def notes(self, done: int) -> tuple[str, ...]:
        """What a reader must know, once so many pictures are done."""
        found = [f"{self.left_out} files that are no {', '.join(IMAGE_SUFFIXES)} were left out"] if self.left_out else []
        if self.to_video and not self.live:
            found.append("sound, if there was any, is not kept")
        if self.frames is not None and self.frames.total > done and self.most is None:
            found.append(f"{self.source} announces {self.frames.total} frames and gave {done}: it may be cut short")
        return tuple(found)

    @contextmanager
    def opened(self, made_by: Mapping[str, Any], *, overwrite: bool) -> Generator[tuple[Iterator[Item], Sink]]:
        """The items and their sink; a video is finished at the end, and vanishes where the block fails."""
        items = _stills(self.stills) if self.frames is None else _frames(self.frames, self.most)
        if not self.to_video or self.frames is None:
            yield items, _file_sink(self, overwrite) if self.to_file else _folder_sink(self, made_by, overwrite)
            return
        _require_new(self.out, overwrite)
        video = VideoFile(self.out, self.frames.fps)
        try:
            yield items, _VideoSink(video)
            video.close()
        finally:
            video.discard()

    def close(self) -> None:
        """Let go of the video or the camera."""
        if self.frames is not None:
            self.frames.close()


def planned(source: str, out: Path, kind: Kind, *, most: int | None = None) -> Plan:
    """What goes where: an image to a file or a folder, a folder to a folder, a video or camera to a video, or frame by frame to a folder of labels.

    InputError for a source that is missing, empty or of an unknown kind; RequirementError without that camera; UsageError where the output does not
    fit the input, or is the input.
    """
    path = Path(source)
    if source.startswith("camera:") and not path.exists():
        number = source.removeprefix("camera:")
        if not number.isdecimal():
            raise UsageError(f"{source} was given; a camera is written camera:0, camera:1, ...")
        return _of_frames(source, open_camera(int(number)), out, kind, most)
    if path.is_dir():
        return _of_folder(path, out, kind)
    if not path.is_file():
        raise InputError(f"{source} does not exist; give an image, a folder of images, a video, or camera:0")
    if out.resolve() == path.resolve():
        raise UsageError(f"{out} is both input and output; give another --out")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        if out.suffix.lower() in READ_SUFFIXES or (kind == "labels" and out.suffix.lower() in (".jpg", ".jpeg")):
            what = "label ids, which JPEG changes" if kind == "labels" else "one image"
            raise UsageError(f"--out {out} was given for {what}; give a .png or a folder")
        return Plan(source, out, kind, ((_name(Path(path.name)), path),), None, 0, None)
    if path.suffix.lower() in READ_SUFFIXES:
        return _of_frames(source, open_video(path), out, kind, most)
    raise InputError(f"{source}: {path.suffix or 'no suffix'}; allowed are images {', '.join(IMAGE_SUFFIXES)} and videos {', '.join(READ_SUFFIXES)}")


def _of_folder(path: Path, out: Path, kind: Kind) -> Plan:
    here, there = path.resolve(), out.resolve()
    if out.suffix.lower() in (*IMAGE_SUFFIXES, *READ_SUFFIXES) or out.is_file():
        raise UsageError(f"--out {out} was given for a folder of images; give a folder")
    if there == here or here in there.parents:
        raise UsageError(f"--out {out} lies in the input {path}: what is written would be read the next time; give a folder beside it")
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    stills = [(_name(file.relative_to(path)), file) for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not stills:
        raise InputError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    first: dict[str, Path] = {}
    for name, file in stills:
        if first.setdefault(name, file) != file:
            raise InputError(f"{first[name]} and {file} would be written under one name; rename one of them")
    return Plan(str(path), out, kind, tuple(stills), None, len(files) - len(stills), None)


def _of_frames(source: str, frames: FrameSource, out: Path, kind: Kind, most: int | None) -> Plan:
    try:
        if kind != "labels":
            require_codec(out)
        elif out.suffix or out.is_file():
            raise UsageError(f"--out {out} was given for label ids, which a video would change; give a folder, and each frame becomes a PNG there")
    except BaseException:
        frames.close()
        raise
    return Plan(source, out, kind, (), frames, 0, most)


def _name(path: Path) -> str:
    """A picture's name below its folder: without suffix, and without what Cityscapes appends to images."""
    return path.with_suffix("").as_posix().removesuffix("_leftImg8bit")


def _stills(stills: tuple[tuple[str, Path], ...]) -> Iterator[Item]:
    return (Item(name, partial(read_image, path), lambda: True) for name, path in stills)


def _frames(source: FrameSource, most: int | None) -> Iterator[Item]:
    """Frames until there are no more, or so many."""
    return (Item(f"{source.name}_{index:06}", source.read, source.skip) for index in (count() if most is None else range(most)))


class _Files:
    """Pictures as files, in the format that their suffix says."""

    def __init__(self, path_of: Callable[[str], Path], *, resume: bool) -> None:
        self.path_of, self._resume = path_of, resume

    def has(self, name: str) -> bool:
        return self._resume and self.path_of(name).is_file()

    def put(self, name: str, picture: Bytes) -> None:
        path = self.path_of(name)
        pixels = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        write_bytes(path, cv2.imencode(path.suffix, pixels)[1].tobytes())


class _VideoSink:
    def __init__(self, video: VideoFile) -> None:
        self._video = video

    def has(self, name: str) -> bool:
        return False

    def put(self, name: str, picture: Bytes) -> None:
        self._video.add(picture)


def _file_sink(plan: Plan, overwrite: bool) -> Sink:
    _require_new(plan.out, overwrite)
    return _Files(lambda name: plan.out, resume=False)


def _folder_sink(plan: Plan, made_by: Mapping[str, Any], overwrite: bool) -> Sink:
    """A folder that says who made its pictures; IncompatibleError where another engine did, or in another way.

    What is to be overwritten is removed first: a folder never holds pictures of two engines, whenever it is killed.
    """
    record, wanted, ending = plan.out / RECORD_NAME, canonical_json(made_by), ENDINGS[plan.kind]
    sink = _Files(lambda name: plan.out / f"{name}{ending}", resume=True)
    mine = [sink.path_of(name) for name, _ in plan.stills if sink.has(name)]
    mine += [] if plan.frames is None else sorted(plan.out.glob(f"{glob.escape(plan.frames.name)}_[0-9]*{ending}"))
    if overwrite:
        for path in mine:
            path.unlink()
    elif mine and not record.is_file():
        raise UsageError(f"{plan.out} holds {mine[0].name}, and nothing says which engine made it; choose another --out, or add --overwrite")
    held = read_json(record) if record.is_file() else {}
    told = differences(held, json.loads(wanted)) if held else []
    if told and any(plan.out.rglob(f"*{ENDINGS.get(held.get('as', plan.kind), ending)}")):
        hint = "remove them" if overwrite else "add --overwrite"
        raise IncompatibleError(f"{plan.out} holds pictures of another prediction ({'; '.join(told)}); choose another --out, or {hint}")
    write_text(record, wanted + "\n")
    return sink


def _require_new(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already; add --overwrite, or give another --out")
    require_writable(path)

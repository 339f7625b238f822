"""Video: frames of files and cameras, and files of frames, by the FFmpeg that OpenCV brings along. Sound is never kept."""

import math
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError, RequirementError, UsageError

Bytes = NDArray[np.uint8]
READ_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""What is written into each container: MPEG-4 part 2 or motion JPEG. The wheels of OpenCV have no encoder of H.264."""

FALLBACK_FPS = 25.0
"""Frames per second of a source that does not tell (our choice)."""


class FrameSource:
    """Frames of an open video or camera; `total` is 0 where it is not known, as of a camera."""

    def __init__(self, capture: Any, name: str, *, live: bool) -> None:
        self._capture, self.name, self.live = capture, name, live
        fps, count = float(capture.get(cv2.CAP_PROP_FPS)), float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else FALLBACK_FPS
        self.total = 0 if live or not math.isfinite(count) or count < 0 else int(count)

    def read(self) -> Bytes | None:
        """The next frame (H, W, 3) RGB; None at the end."""
        there, frame = self._capture.read()
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8) if there else None

    def skip(self) -> bool:
        """Pass over the next frame without decoding it whole; False at the end."""
        return bool(self._capture.grab())

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._capture.release()


def open_video(path: Path) -> FrameSource:
    """The frames of a file; InputError where it is missing, damaged or holds none."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a video, an image, a folder of images, or camera:0")
    with quiet():
        capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        size = path.stat().st_size
        raise InputError(f"{path}: no frame can be decoded ({size} bytes): empty, cut short, damaged, or in a codec that OpenCV lacks; make it again")
    return FrameSource(capture, path.stem, live=False)


def open_camera(number: int, capture_of: Callable[[int], Any] = cv2.VideoCapture) -> FrameSource:
    """The frames of a camera; RequirementError where this machine has none of that number, or may not use it."""
    with quiet():
        capture = capture_of(number)
    if not capture.isOpened():
        raise RequirementError(
            f"camera:{number} cannot be opened: there is none here, or another program has it; give another number, or a video file"
        )
    return FrameSource(capture, f"camera{number}", live=True)


class VideoFile:
    """A video that is written frame by frame, and takes its name when it is closed; until then, and where anything fails, `path` stays as it was."""

    def __init__(self, path: Path, fps: float) -> None:
        require_codec(path)
        self.path, self.fps, self.frames = path, fps, 0
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._writer: Any = None

    def add(self, picture: Bytes) -> None:
        """One more picture (H, W, 3) RGB; all must be of one size. Codecs want even sides: an odd one gets its last row or column twice."""
        height, width = picture.shape[:2]
        even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE) if height % 2 or width % 2 else picture
        if self._writer is None:
            self._writer = self._opened(even.shape[1], even.shape[0])
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def close(self) -> None:
        """Finish the file; RequirementError where not all of it is on the disk."""
        if self._writer is None:
            return
        self._writer.release()
        with quiet():
            written = cv2.VideoCapture(str(self._partial))
        count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if count < self.frames:
            self.discard()
            raise RequirementError(f"{self.path}: {count} of {self.frames} frames could be written; is the disk full? Free the space and run again")
        os.replace(self._partial, self.path)
        self._writer = None

    def discard(self) -> None:
        """Leave nothing behind of a file that was not finished."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        self._partial.unlink(missing_ok=True)

    def _opened(self, width: int, height: int) -> Any:
        codec = CODECS[self.path.suffix.lower()]
        with quiet():
            writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*codec), self.fps, (width, height))
        if not writer.isOpened():
            writer.release()
            self._partial.unlink(missing_ok=True)
            raise RequirementError(
                f"{self.path}: this build of OpenCV ({cv2.__version__}) cannot write {codec} at {height}x{width} and {self.fps:g} FPS, or "
                "the folder cannot be written; give another --out, such as one ending in .avi"
            )
        return writer


def require_codec(path: Path) -> None:
    """UsageError for a name that does not say one of the containers that can be written."""
    if path.suffix.lower() not in CODECS:
        raise UsageError(f"{path}: a video is written as {', '.join(CODECS)}; give such a name, as {path.with_suffix('.mp4')}")


@contextmanager
def quiet() -> Generator[None]:
    """OpenCV and FFmpeg write nothing on stderr: what went wrong is said by an error of ours."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)

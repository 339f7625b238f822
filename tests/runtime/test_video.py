"""Videos there and back through FFmpeg, what is refused, and a camera that we script."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segnas.errors import InputError, RequirementError, UsageError
from segnas.runtime.video import CODECS, FALLBACK_FPS, VideoFile, open_camera, open_video


def frame(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A red, a green and a blue field, brighter from frame to frame; RGB."""
    picture = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        picture[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 100 + 10 * index
    return picture


def write(path: Path, count: int, height: int = 48, width: int = 64, fps: float = 12.5) -> None:
    video = VideoFile(path, fps)
    for index in range(count):
        video.add(frame(index, height, width))
    video.close()


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_frames_come_back(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    """In order, in RGB, at the rate given; an odd side grows by one and loses nothing."""
    write(tmp_path / f"v{suffix}", 6, *size)
    source = open_video(tmp_path / f"v{suffix}")
    assert (source.total, source.fps, source.name, source.live) == (6, 12.5, "v", False)
    for index in range(6):
        found = source.read()
        assert found is not None
        assert found.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        assert np.abs(found[: size[0], : size[1]].astype(int) - frame(index, *size)).mean() < 6
    assert source.read() is None
    source.close()
    assert [path.name for path in tmp_path.iterdir()] == [f"v{suffix}"]


def test_skipped_frames_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", 4)
    source = open_video(tmp_path / "v.mp4")
    assert source.skip()
    assert source.skip()
    found = source.read()
    assert found is not None
    assert np.abs(found.astype(int) - frame(2)).mean() < 4
    assert source.skip()
    assert not source.skip()
    source.close()


def test_files_that_are_no_videos(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "whole.mp4", 10)
    whole = (tmp_path / "whole.mp4").read_bytes()
    for name, content in (("empty.mp4", b""), ("noise.mp4", bytes(range(256)) * 8), ("cut.mp4", whole[: len(whole) // 2]), ("text.avi", b"no video")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: no frame can be decoded \({len(content)} bytes\)"):
            open_video(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        open_video(tmp_path / "nowhere.mp4")
    assert capfd.readouterr().err == ""


def test_what_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"written as .mp4.*as .*v\.mp4"):
        VideoFile(tmp_path / "v.webm", 25)
    video = VideoFile(tmp_path / "nowhere" / "v.mp4", 25)
    with pytest.raises(RequirementError, match=r"cannot write mp4v at 48x64 and 25 FPS, or the folder"):
        video.add(frame(0))
    video.discard()
    monkeypatch.setitem(CODECS, ".mp4", "zzzz")
    video = VideoFile(tmp_path / "v.mp4", 25)
    with pytest.raises(RequirementError, match=r"OpenCV .* cannot write zzzz"):
        video.add(frame(0))
    assert not list(tmp_path.iterdir())
    capfd.readouterr()


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", 3)
    before = (tmp_path / "v.mp4").read_bytes()
    video = VideoFile(tmp_path / "v.mp4", 25)
    video.add(frame(0))
    video.discard()
    assert (tmp_path / "v.mp4").read_bytes() == before
    video = VideoFile(tmp_path / "v.mp4", 25)
    video.add(frame(0))
    video.frames = 5  # as if four had been lost on a full disk
    with pytest.raises(RequirementError, match="1 of 5 frames could be written; is the disk full"):
        video.close()
    assert (tmp_path / "v.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    VideoFile(tmp_path / "none.mp4", 25).close()
    assert not (tmp_path / "none.mp4").exists()


class Camera:
    """What OpenCV gives for a camera, with so many frames."""

    def __init__(self, frames: int, *, opens: bool = True) -> None:
        self._left, self._opens, self.released = frames, opens, False

    def isOpened(self) -> bool:
        return self._opens

    def get(self, what: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[what]

    def read(self) -> tuple[bool, Any]:
        self._left -= 1
        return (True, frame(1)[..., ::-1]) if self._left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_a_camera() -> None:
    camera = Camera(2)
    source = open_camera(3, lambda number: camera)
    assert (source.name, source.live, source.total, source.fps) == ("camera3", True, 0, FALLBACK_FPS)
    assert np.array_equal(source.read(), frame(1))
    source.close()
    assert camera.released
    with pytest.raises(RequirementError, match="camera:1 cannot be opened"):
        open_camera(1, lambda number: Camera(0, opens=False))

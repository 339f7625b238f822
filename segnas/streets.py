"""A synthetic street data set with the ids and the folder layout of Cityscapes: for trying, testing and demonstrating without a licence.

A scene is a function of its seed and size alone (on one version of OpenCV and numpy). It is no substitute for real images: a score
on it says that the tools work, nothing about a network on a road.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from segnas.data import STREETS_RECORD
from segnas.errors import InputError
from segnas.files import write_bytes, write_text
from segnas.street_parts import ID, Canvas, smooth_noise
from segnas.street_scene import Variety, compose

Bytes = NDArray[np.uint8]
VERSION = 1
"""Of the generator: it changes when the same seed gives other images."""

CITIES = {"train": "syntrain", "val": "synval", "test": "syntest"}
"""The made-up city of each split."""

_SOFT: dict[str, float] = {"vegetation": 1.0, "terrain": 0.8, "road": 0.35, "sidewalk": 0.45, "building": 0.3, "wall": 0.5, "sky": 0.0}


def street(seed: int, height: int, width: int, variety: Variety = "full") -> tuple[Bytes, Bytes]:
    """One scene: image (H, W, 3) RGB and Cityscapes ids (H, W); InputError for a size below 32x64 or above 2048x4096."""
    require_street_size(height, width)
    finer = 2 if height * width <= 1 << 19 else 1  # small scenes are drawn at twice the size, for smooth edges
    canvas = Canvas(height * finer, width * finer, Random(seed))
    compose(canvas, variety)
    ids = np.ascontiguousarray(canvas.pixels[::finer, ::finer, 3])
    paint = cv2.resize(canvas.pixels, (width, height), interpolation=cv2.INTER_AREA) if finer > 1 else canvas.pixels
    return _developed(cv2.cvtColor(paint, cv2.COLOR_RGBA2RGB).astype(np.uint8, copy=False), ids, canvas), ids


def require_street_size(height: int, width: int) -> None:
    """InputError for a size that no street is drawn at."""
    if not (32 <= height <= 2048 and 64 <= width <= 4096):
        raise InputError(f"a street of {height}x{width} cannot be drawn; allowed are 32x64 to 2048x4096.")


def _developed(image: Bytes, ids: Bytes, canvas: Canvas) -> Bytes:
    """From paint to photograph: texture by class, light and its colour, vignette, blur and the noise of a sensor."""
    rnd, (height, width) = canvas.rnd, ids.shape
    rng = np.random.default_rng(rnd.getrandbits(64))
    softness = np.full(256, 0.15, np.float32)
    for name, value in _SOFT.items():
        softness[ID[name]] = value
    rough = smooth_noise(rng, (height, width), (height // 3, width // 3)) * 0.09 + smooth_noise(rng, (height, width), (24, 16)) * 0.07
    gain = rough * softness[ids] + 1
    rows, columns = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    gain *= 1 - np.float32(rnd.uniform(0, 0.12)) * (rows[:, None] ** 2 + columns**2)
    warmth, light = rnd.uniform(-0.1, 0.1), rnd.choice((rnd.uniform(0.6, 0.9), rnd.uniform(0.85, 1.25), rnd.uniform(0.95, 1.2)))
    tint = np.array([light * (1 + warmth), light, light * (1 - warmth)], np.float32)
    tile = (min(height, 64), min(width, 96))
    grain = rng.standard_normal((*tile, 3), np.float32) * np.float32(rnd.uniform(1, 5))
    if rnd.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), rnd.uniform(0.35, 0.75) * max(1.0, width / 1024)).astype(np.uint8, copy=False)
    photo = cv2.multiply(image, gain[..., None] * tint, dtype=cv2.CV_32F)
    repeats = (-(-height // tile[0]), -(-width // tile[1]), 1)
    grains = np.ascontiguousarray(np.tile(grain, repeats)[:height, :width])
    return cv2.add(photo, grains, dtype=cv2.CV_8U).astype(np.uint8, copy=False)


def write_streets(
    root: Path,
    *,
    counts: Mapping[str, int],
    height: int,
    width: int,
    seed: int,
    variety: Variety = "full",
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw a data set in the layout of Cityscapes and return `root`; `counts` are the images of each of the splits train, val, test.

    Files appear whole or not at all. A second call goes on where the first stopped; one with other parameters (they stand in
    `streets.json`), or into a folder that holds other images, is an InputError. `progress(done, total)` is called after each image.
    No two scenes are alike, whatever their split.
    """
    unknown = [split for split in counts if split not in CITIES]
    if unknown or not counts or min(counts.values()) < 1:
        raise InputError(f"counts {dict(counts)}: give at least 1 image for some of the splits {', '.join(CITIES)}.")
    if seed < 0:
        raise InputError(f"seed {seed}: give 0 or more.")
    if variety not in ("full", "core"):
        raise InputError(f"variety {variety!r} of streets: give full or core.")
    require_street_size(height, width)
    _claim(root, {"version": VERSION, "seed": seed, "variety": variety, "height": height, "width": width, "counts": dict(sorted(counts.items()))})
    jobs = [(split, index) for split in CITIES for index in range(counts.get(split, 0))]

    def write(job: tuple[str, int]) -> None:
        _write_pair(root, job[0], job[1], seed, height, width, variety)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for done, _ in enumerate(pool.map(write, jobs), 1):
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return root


def _claim(root: Path, parameters: Mapping[str, object]) -> None:
    """Make `root` the place of one set of parameters, or raise."""
    record = root / STREETS_RECORD
    if record.is_file():
        try:
            found = json.loads(record.read_text())
        except ValueError:
            found = None
        if found != parameters:
            raise InputError(f"{record} records {found}, asked for is {dict(parameters)}; choose another folder, or delete this one.")
    elif (root / "leftImg8bit").exists() or (root / "gtFine").exists():
        raise InputError(f"{root} holds images that were not drawn here (no {STREETS_RECORD}); choose another folder.")
    else:
        write_text(record, json.dumps(parameters, indent=2) + "\n")


def _write_pair(root: Path, split: str, index: int, seed: int, height: int, width: int, variety: Variety) -> None:
    """Draw and write one image and its label, unless both are there."""
    name = f"{CITIES[split]}_{index:06}_000019"
    image_path = root / "leftImg8bit" / split / CITIES[split] / f"{name}_leftImg8bit.png"
    label_path = root / "gtFine" / split / CITIES[split] / f"{name}_gtFine_labelIds.png"
    if image_path.exists() and label_path.exists():
        return
    words = np.random.SeedSequence((seed, list(CITIES).index(split), index)).generate_state(4)
    image, ids = street(int.from_bytes(words.tobytes(), "little"), height, width, variety)
    write_bytes(label_path, _png(ids))
    write_bytes(image_path, _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))


def _png(pixels: MatLike) -> bytes:
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1].tobytes()

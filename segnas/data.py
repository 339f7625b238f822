"""Data sets on disk: where the pairs of image and label lie, reading them strictly, and checking a whole folder.

Layouts: the genuine one of Cityscapes and the one of CamVid's SegNet split (`LAYOUTS`). Streets that were drawn here lie in the former and are called
by their own name wherever a figure is told of them. Images are uint8 (H, W, 3) RGB, labels uint8 (H, W) raw ids.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from cv2.typing import MatLike
from numpy.typing import NDArray

from segnas.errors import InputError, UsageError
from segnas.labels import CAMVID, CITYSCAPES, LabelSet

Bytes = NDArray[np.uint8]

NORMALISE_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet in R, G, B for pixels in 0..1."""

NORMALISE_STD = (0.229, 0.224, 0.225)
"""Standard deviation of ImageNet in R, G, B for pixels in 0..1."""


@dataclass(frozen=True)
class Layout:
    """Where the files of a split lie under the root: globs whose `*` is the part of a file's name that is not its suffix."""

    labels: LabelSet
    splits: tuple[str, ...]
    images: tuple[str, str]
    """(folder with SPLIT in it, glob), e.g. ("leftImg8bit/SPLIT", "*/*_leftImg8bit.png")."""
    truths: tuple[str, str]
    image_suffix: str
    truth_suffix: str
    hint: str

    def __str__(self) -> str:
        return f"{'/'.join(self.images)} and {'/'.join(self.truths)}"


LAYOUTS: dict[str, Layout] = {
    "cityscapes": Layout(
        labels=CITYSCAPES,
        splits=("train", "val", "test"),
        images=("leftImg8bit/SPLIT", "*/*_leftImg8bit.png"),
        truths=("gtFine/SPLIT", "*/*_gtFine_labelIds.png"),
        image_suffix="_leftImg8bit.png",
        truth_suffix="_gtFine_labelIds.png",
        hint="Cityscapes itself needs a login at cityscapes-dataset.com; `segnas data make` draws a synthetic set in the same layout.",
    ),
    "camvid": Layout(
        labels=CAMVID,
        splits=("train", "val", "test"),
        images=("SPLIT/images", "*.jpg"),
        truths=("SPLIT/labels", "*.png"),
        image_suffix=".jpg",
        truth_suffix=".png",
        hint="To try without CamVid, `segnas data make` draws a synthetic set in the layout of Cityscapes.",
    ),
}
"""The data sets that can be opened, by name."""

SYNTHETIC = "synthetic-streets"
LAYOUTS[SYNTHETIC] = replace(LAYOUTS["cityscapes"], hint="`segnas data make` draws it.")

STREETS_RECORD = "streets.json"
"""What `segnas data make` leaves in a folder of streets that it draws: a folder that holds it is never called cityscapes."""


@dataclass(frozen=True)
class Sample:
    """One image and its label file; `label` is None in a split without ground truth."""

    name: str
    image: Path
    label: Path | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """One sample's pixels: image (H, W, 3) RGB, truth (H, W) raw ids, and instance ids (H, W) where they were asked for."""

    image: Bytes
    truth: Bytes
    instances: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Dataset:
    """One split of a data set: its samples in order of their names."""

    name: str
    root: Path
    split: str
    labels: LabelSet
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[Bytes, Bytes]:
        """Image (H, W, 3) RGB and label (H, W) raw ids of one sample, of the same size; InputError names the file at fault."""
        sample = self.samples[index]
        image, ids = read_image(sample.image), read_label(sample, self.labels)
        if image.shape[:2] != ids.shape:
            raise InputError(f"{sample.label}: {_size(ids)}, but its image {sample.image} is {_size(image)}; they must be equal.")
        return image, ids

    @property
    def has_instances(self) -> bool:
        """Whether each label file of Cityscapes has its instances beside it (`*_gtFine_instanceIds.png`)."""
        paths = [instance_path(sample) for sample in self.samples]
        return bool(paths) and all(path is not None and path.is_file() for path in paths)

    def decode(self, index: int, *, instances: bool = False) -> Decoded:
        """`read`, and with `instances` those of the sample too."""
        image, truth = self.read(index)
        return Decoded(image, truth, read_instances(self.samples[index], truth.shape) if instances else None)


def open_dataset(name: str, root: Path, split: str) -> Dataset:
    """The samples of one split; looks at names only, reads no image. Streets that were drawn here are called so, in whichever name they are opened.

    UsageError for an unknown data set or split; InputError for a missing or empty folder, or an image without label. Only a `test` split may have
    no label folder at all.
    """
    layout = layout_of(name)
    if split not in layout.splits:
        raise UsageError(f"{name} has no split {split!r}; allowed are {', '.join(layout.splits)}.")
    _check_root(name, layout, root)
    folder, glob = _folder(layout.images, root, split)
    images = _found(folder, glob, layout.image_suffix)
    if not images:
        why = "holds no image" if folder.is_dir() else "does not exist"
        raise InputError(f"{folder} {why}: a {name} split is expected as {layout}. {layout.hint}")
    truths, known = _truths(layout, root, split)
    missing = [images[key] for key in images if key not in truths]
    if missing and known:
        raise InputError(
            f"{len(missing)} of {len(images)} images under {folder} have no label, the first {missing[0]}; labels are expected as "
            f"{'/'.join(layout.truths)}. `segnas data check` lists them all."
        )
    samples = tuple(Sample(Path(key).name, images[key], truths.get(key)) for key in sorted(images))
    return Dataset(_true_name(name, root), root, split, layout.labels, samples)


def read_image(path: Path) -> Bytes:
    """The pixels of an 8-bit colour image, (H, W, 3) RGB; InputError when the file is missing, damaged or of another kind."""
    pixels = _decoded(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: {_kind(pixels)}; expected an 8-bit RGB image. Convert it with an image program.")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def read_label(sample: Sample, labels: LabelSet) -> Bytes:
    """The raw ids (H, W) of a sample's label file; InputError when it is missing, damaged, not one channel or holds unknown values."""
    if sample.label is None:
        raise InputError(f"{sample.image}: this sample has no label (a test split without ground truth); use train or val.")
    pixels = _decoded(sample.label)
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise InputError(
            f"{sample.label}: {_kind(pixels)}; expected an 8-bit greyscale image of {labels.name} ids {labels.allowed}, not a colour picture."
        )
    try:
        return labels.raw_ids(pixels.astype(np.uint8, copy=False))
    except InputError as error:
        raise InputError(f"{sample.label}: {error}") from error


def instance_path(sample: Sample) -> Path | None:
    """Where the instance ids of a Cityscapes sample lie: beside its `*_labelIds.png`; None for a label file of another name."""
    name = "" if sample.label is None else sample.label.name
    return sample.label.with_name(name.replace("_labelIds", "_instanceIds")) if sample.label is not None and "_labelIds" in name else None


def read_instances(sample: Sample, size: tuple[int, ...]) -> NDArray[np.uint16]:
    """The instance ids (H, W) beside a label file: 1000 * label + number, or a label; InputError when missing, not grey or of another size."""
    path = instance_path(sample)
    if path is None:
        raise InputError(f"{sample.image}: its label file {sample.label} is not named *_labelIds.png, so there are no instances beside it.")
    pixels = _decoded(path)
    if pixels.ndim != 2 or pixels.dtype.itemsize > 2 or pixels.dtype.kind != "u":
        raise InputError(f"{path}: {_kind(pixels)}; expected a greyscale image of instance ids, 16-bit (1000 * label + number).")
    if pixels.shape != size:
        raise InputError(f"{path}: {pixels.shape[0]}x{pixels.shape[1]}, but its labels are {size[0]}x{size[1]}; they must be equal.")
    return pixels.astype(np.uint16, copy=False)


def normalise(images: Bytes) -> NDArray[np.float32]:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32: `(pixel / 255 - NORMALISE_MEAN) / NORMALISE_STD`."""
    count, height, width, _ = images.shape
    result = np.empty((count, 3, height, width), np.float32)
    for image, planes in zip(images, result, strict=True):
        for channel, plane, mean, std in zip(cv2.split(image), planes, NORMALISE_MEAN, NORMALISE_STD, strict=True):
            np.multiply(channel, np.float32(1 / (255 * std)), out=plane)  # a plane of its own: half the time of every third byte
            plane -= np.float32(mean / std)
    return result


def network_input(image: Bytes, height: int, width: int) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB -> (1, 3, height, width) float32, normalised; resized bilinearly where the size differs."""
    return normalise(_resized(image, height, width)[None])


def engine_input(image: Bytes, contract: str, height: int, width: int) -> NDArray[np.float32] | Bytes:
    """What an engine of that input contract reads of an image (H, W, 3): `normalised` (1, 3, h, w) float32, `image` (1, h, w, 3) uint8.

    Resized bilinearly where the image has another size; `image` engines normalise by themselves.
    """
    if contract == "normalised":
        return network_input(image, height, width)
    return _resized(image, height, width)[None]


def class_shares(dataset: Dataset, most: int = 500) -> tuple[float, ...]:
    """Share of the labelled pixels that each class has, over at most `most` evenly spaced samples of the dataset."""
    counts = np.zeros(len(dataset.labels.classes), np.int64)
    for index in range(0, len(dataset), -(-len(dataset) // most)):
        ids = dataset.labels.train_ids(read_label(dataset.samples[index], dataset.labels))
        counts += np.bincount(ids.ravel(), minlength=256)[: len(counts)]
    return tuple((counts / max(1, counts.sum())).tolist())


def halves(count: int, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two disjoint halves of 0..count-1, each ascending, for weights and for architecture; the first has the odd one. InputError below 2."""
    if count < 2:
        raise InputError(f"{count} samples cannot be split into two halves; a search needs at least 2.")
    order = np.random.default_rng(seed).permutation(count).tolist()
    middle = (count + 1) // 2
    return tuple(sorted(order[:middle])), tuple(sorted(order[middle:]))


@dataclass(frozen=True)
class SplitCheck:
    """What was found in one split: complete pairs, how many images of each (HEIGHT, WIDTH), and every problem with its file."""

    split: str
    pairs: int
    sizes: tuple[tuple[tuple[int, int], int], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class DatasetCheck:
    """What `check_dataset` found; the set is good when `problems` is empty."""

    name: str
    root: Path
    splits: tuple[SplitCheck, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems of all splits."""
        return tuple(problem for split in self.splits for problem in split.problems)


def check_dataset(name: str, root: Path, *, workers: int = 2, progress: Callable[[int, int], None] | None = None) -> DatasetCheck:
    """Read every file of every split and list all problems; `progress(done, total)` is called after each pair of a split.

    A split without any file is left out, except that `train` and `val` must be there. InputError only for an unknown name or a missing root.
    """
    layout = layout_of(name)
    _check_root(name, layout, root)
    checks = (_check_split(layout, root, split, workers, progress) for split in layout.splits)
    return DatasetCheck(_true_name(name, root), root, tuple(check for check in checks if check is not None))


def _check_split(layout: Layout, root: Path, split: str, workers: int, progress: Callable[[int, int], None] | None) -> SplitCheck | None:
    folder, glob = _folder(layout.images, root, split)
    images = _found(folder, glob, layout.image_suffix)
    truths, _ = _truths(layout, root, split)
    if not images and not truths:
        return None if split == "test" else SplitCheck(split, 0, (), (f"{folder}: no image here; expected {layout}.",))
    orphans = [f"{truths[key]}: a label without image." for key in sorted(truths) if key not in images]
    samples = [Sample(Path(key).name, images[key], truths.get(key)) for key in sorted(images)]
    needed = bool(truths) or split != "test"
    sizes: Counter[tuple[int, int]] = Counter()
    problems: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda sample: _check_sample(sample, layout.labels, needed), samples)
        for done, (size, found) in enumerate(results, 1):
            problems += found
            if size is not None:
                sizes[size] += 1
            if progress is not None:
                progress(done, len(samples))
    pairs = sum(sample.label is not None for sample in samples)
    return SplitCheck(split, pairs, tuple(sorted(sizes.items())), (*problems, *orphans))


def _check_sample(sample: Sample, labels: LabelSet, needed: bool) -> tuple[tuple[int, int] | None, list[str]]:
    """Size of the image, None if unreadable, and everything wrong with the pair."""
    problems: list[str] = []
    size: tuple[int, int] | None = None
    try:
        image = read_image(sample.image)
        size = (image.shape[0], image.shape[1])
    except InputError as error:
        problems.append(str(error))
    if sample.label is None:
        return size, [*problems, f"{sample.image}: an image without label."] if needed else problems
    try:
        ids = read_label(sample, labels)
        if size is not None and ids.shape != size:
            problems.append(f"{sample.label}: {_size(ids)}, but its image {sample.image} is {size[0]}x{size[1]}.")
    except InputError as error:
        problems.append(str(error))
    return size, problems


def layout_of(name: str) -> Layout:
    """The layout of a data set; UsageError lists the names."""
    if name not in LAYOUTS:
        raise UsageError(f"unknown data set {name!r}; allowed are {', '.join(LAYOUTS)}.")
    return LAYOUTS[name]


def _check_root(name: str, layout: Layout, root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; a {name} set is expected there as {layout}. {layout.hint}")
    if name == SYNTHETIC and not (root / STREETS_RECORD).is_file():
        raise InputError(f"{root} holds no {STREETS_RECORD}, so its images were not drawn here: open them as cityscapes or camvid. {layout.hint}")


def _true_name(name: str, root: Path) -> str:
    return SYNTHETIC if name == "cityscapes" and (root / STREETS_RECORD).is_file() else name


def _folder(place: tuple[str, str], root: Path, split: str) -> tuple[Path, str]:
    return root / place[0].replace("SPLIT", split), place[1]


def _found(folder: Path, glob: str, suffix: str) -> dict[str, Path]:
    """Path of each file by its path under `folder` without suffix; Cityscapes: by CITY/NAME."""
    return {path.relative_to(folder).as_posix().removesuffix(suffix): path for path in sorted(folder.glob(glob))}


def _truths(layout: Layout, root: Path, split: str) -> tuple[dict[str, Path], bool]:
    """The label files of a split, and whether each image must have one: not in a test split that has none."""
    folder, glob = _folder(layout.truths, root, split)
    truths = _found(folder, glob, layout.truth_suffix)
    return truths, bool(truths) or split != "test"


def _decoded(path: Path) -> MatLike:
    """The pixels as the file has them, (H, W) or (H, W, C) BGR."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    pixels = None if not _is_whole(content) else cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise InputError(f"{path}: damaged, cut short or not a PNG or JPEG ({len(content)} bytes); fetch or make it again.")
    return pixels


def _is_whole(content: bytes) -> bool:
    """Whether a PNG or JPEG reaches its end mark; OpenCV 4 decodes the first part of a cut JPEG without a word."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return b"IEND" in content[-64:]
    return content.startswith(b"\xff\xd8") and b"\xff\xd9" in content[-64:]


def _kind(pixels: MatLike) -> str:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return f"{channels} channel{'s' if channels > 1 else ''} of {pixels.dtype}"


def _resized(image: Bytes, height: int, width: int) -> Bytes:
    small = image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(small, np.uint8)


def _size(pixels: Bytes) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"

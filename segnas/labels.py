"""Label sets: what the values of a label image mean, and the lookup tables between raw ids, train ids and colours.

Three kinds of numbers, all uint8: **raw ids** (what the official metric counts), **train ids** (0..K-1 for the K scored classes, 255 for everything
ignored) and **file values** (what a label file holds; the same as raw ids but for the aliases of a set).
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError

IGNORE = 255
"""The train id of every pixel that is neither learned nor scored."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Label:
    """One raw id: its name, train id (255 when ignored), colour (R, G, B), category, and whether evaluation ignores it."""

    id: int
    train_id: int
    name: str
    colour: tuple[int, int, int]
    category: str
    ignore: bool


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set, ids 0, 1, 2, ... without a hole.

    `aliases` are (file value, raw id) pairs: values that stand in files for another raw id.
    """

    name: str
    labels: tuple[Label, ...]
    aliases: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if [label.id for label in self.labels] != list(range(len(self.labels))):
            raise ValueError(f"label set {self.name!r}: ids must be 0, 1, 2, ... in order")
        if [label.train_id for label in self.classes] != list(range(len(self.classes))):
            raise ValueError(f"label set {self.name!r}: train ids of scored labels must be 0, 1, 2, ...")
        if len(self.classes) == len(self.labels) or any(x.ignore != (x.train_id == IGNORE) for x in self.labels):
            raise ValueError(f"label set {self.name!r}: at least one label is ignored, and those have train id 255")

    @cached_property
    def classes(self) -> tuple[Label, ...]:
        """The scored labels in train-id order."""
        return tuple(sorted((label for label in self.labels if not label.ignore), key=lambda label: label.train_id))

    @property
    def size(self) -> int:
        """The number of raw ids: the side of a confusion matrix."""
        return len(self.labels)

    @cached_property
    def void(self) -> Label:
        """The label that an ignored pixel gets on the way from train ids back to raw ids: the first ignored one."""
        return next(label for label in self.labels if label.ignore)

    def raw_ids(self, values: Bytes) -> Bytes:
        """Raw ids of file values, any shape; InputError names the values that are not allowed."""
        table = np.full(256, 255, np.uint8)
        table[: self.size] = np.arange(self.size, dtype=np.uint8)
        for value, raw in self.aliases:
            table[value] = raw
        ids = _looked_up(table, values)
        if ids.size and ids.max() >= self.size:
            illegal = sorted({int(value) for value in np.unique(values)} - self._allowed_values)
            raise InputError(f"label values {illegal} are not {self.name} ids; allowed are {self.allowed}.{self._hint(illegal)}")
        return ids

    def train_ids(self, ids: Bytes) -> Bytes:
        """Train ids (255 = ignore) of raw ids, any shape; InputError when an id is not one of the set."""
        self._check(ids, self.size, "raw ids", f"0..{self.size - 1}")
        return _looked_up(self._train_table, ids)

    def ids(self, train_ids: Bytes) -> Bytes:
        """Raw ids of train ids, any shape; 255 becomes `void`; InputError for any other value beyond the classes."""
        raw = _looked_up(self._id_table, train_ids)
        if raw.size and raw.max() >= self.size:
            self._check(train_ids[train_ids != IGNORE], len(self.classes), "train ids", f"0..{len(self.classes) - 1} and {IGNORE}")
        return raw

    def colours(self, train_ids: Bytes) -> Bytes:
        """The picture of a map of train ids: (H, W) -> (H, W, 3) RGB, ignored pixels in the colour of `void`."""
        self.ids(train_ids)
        return self._colour_table[train_ids]

    @property
    def allowed(self) -> str:
        """The values a label file may hold, in words."""
        return f"0..{self.size - 1}" + "".join(f" and {value} for {self.labels[raw].name}" for value, raw in self.aliases)

    @property
    def _allowed_values(self) -> set[int]:
        return set(range(self.size)) | {value for value, _ in self.aliases}

    def _hint(self, illegal: list[int]) -> str:
        if IGNORE in illegal:
            return " 255 is a train id: this looks like a *_labelTrainIds.png file, give the *_labelIds.png one."
        return ""

    def _check(self, values: Bytes, limit: int, what: str, allowed: str) -> None:
        if values.size and values.max() >= limit:
            illegal = sorted({int(value) for value in np.unique(values) if value >= limit})
            raise InputError(f"values {illegal} are not {self.name} {what}; allowed are {allowed}.")

    @cached_property
    def _train_table(self) -> Bytes:
        table = np.full(256, IGNORE, np.uint8)
        for label in self.classes:
            table[label.id] = label.train_id
        return table

    @cached_property
    def _id_table(self) -> Bytes:
        table = np.full(256, 255, np.uint8)
        for label in self.classes:
            table[label.train_id] = label.id
        table[IGNORE] = self.void.id
        return table

    @cached_property
    def _colour_table(self) -> Bytes:
        table = np.full((256, 3), self.void.colour, np.uint8)
        for label in self.classes:
            table[label.train_id] = label.colour
        return table


def _looked_up(table: Bytes, values: Bytes) -> Bytes:
    """`table[values]` of bytes, any shape, ten times as fast and without the interpreter's lock."""
    if values.dtype != np.uint8 or not values.size:
        return table[values]
    return np.asarray(cv2.LUT(np.ascontiguousarray(values).reshape(1, -1), table), np.uint8).reshape(values.shape)


def _cityscapes() -> tuple[Label, ...]:
    # (name, train id, category, colour) in the order of ids, from cityscapesScripts helpers/labels.py; "license plate", id -1, never stands in a PNG.
    rows: tuple[tuple[str, int, str, tuple[int, int, int]], ...] = (
        ("unlabeled", 255, "void", (0, 0, 0)),
        ("ego vehicle", 255, "void", (0, 0, 0)),
        ("rectification border", 255, "void", (0, 0, 0)),
        ("out of roi", 255, "void", (0, 0, 0)),
        ("static", 255, "void", (0, 0, 0)),
        ("dynamic", 255, "void", (111, 74, 0)),
        ("ground", 255, "void", (81, 0, 81)),
        ("road", 0, "flat", (128, 64, 128)),
        ("sidewalk", 1, "flat", (244, 35, 232)),
        ("parking", 255, "flat", (250, 170, 160)),
        ("rail track", 255, "flat", (230, 150, 140)),
        ("building", 2, "construction", (70, 70, 70)),
        ("wall", 3, "construction", (102, 102, 156)),
        ("fence", 4, "construction", (190, 153, 153)),
        ("guard rail", 255, "construction", (180, 165, 180)),
        ("bridge", 255, "construction", (150, 100, 100)),
        ("tunnel", 255, "construction", (150, 120, 90)),
        ("pole", 5, "object", (153, 153, 153)),
        ("polegroup", 255, "object", (153, 153, 153)),
        ("traffic light", 6, "object", (250, 170, 30)),
        ("traffic sign", 7, "object", (220, 220, 0)),
        ("vegetation", 8, "nature", (107, 142, 35)),
        ("terrain", 9, "nature", (152, 251, 152)),
        ("sky", 10, "sky", (70, 130, 180)),
        ("person", 11, "human", (220, 20, 60)),
        ("rider", 12, "human", (255, 0, 0)),
        ("car", 13, "vehicle", (0, 0, 142)),
        ("truck", 14, "vehicle", (0, 0, 70)),
        ("bus", 15, "vehicle", (0, 60, 100)),
        ("caravan", 255, "vehicle", (0, 0, 90)),
        ("trailer", 255, "vehicle", (0, 0, 110)),
        ("train", 16, "vehicle", (0, 80, 100)),
        ("motorcycle", 17, "vehicle", (0, 0, 230)),
        ("bicycle", 18, "vehicle", (119, 11, 32)),
    )
    return tuple(Label(i, train, name, colour, category, train == IGNORE) for i, (name, train, category, colour) in enumerate(rows))


def _camvid() -> tuple[Label, ...]:
    # (name, category, colour): order and colours of the SegNet split (11 classes and void); the categories are ours, by analogy with Cityscapes.
    rows: tuple[tuple[str, str, tuple[int, int, int]], ...] = (
        ("sky", "sky", (128, 128, 128)),
        ("building", "construction", (128, 0, 0)),
        ("pole", "object", (192, 192, 128)),
        ("road", "flat", (128, 64, 128)),
        ("pavement", "flat", (60, 40, 222)),
        ("tree", "nature", (128, 128, 0)),
        ("sign symbol", "object", (192, 128, 128)),
        ("fence", "construction", (64, 64, 128)),
        ("car", "vehicle", (64, 0, 128)),
        ("pedestrian", "human", (64, 64, 0)),
        ("bicyclist", "human", (0, 128, 192)),
    )
    scored = tuple(Label(i, i, name, colour, category, False) for i, (name, category, colour) in enumerate(rows))
    return (*scored, Label(11, IGNORE, "void", (0, 0, 0), "void", True))


CITYSCAPES = LabelSet("cityscapes", _cityscapes())
"""The official 34 Cityscapes ids, 19 of them scored."""

CAMVID = LabelSet("camvid", _camvid(), aliases=((255, 11),))
"""CamVid's 11 classes and void (id 11, which files hold as 255 or, in the SegNet repository, as 11)."""

LABEL_SETS: dict[str, LabelSet] = {labels.name: labels for labels in (CITYSCAPES, CAMVID)}
"""Every label set by name."""

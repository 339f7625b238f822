"""Changes: at how many pixels engines of one network differ, such as those of other batch sizes, whose kernels may round otherwise."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segnas.data import Dataset, read_image
from segnas.errors import IncompatibleError
from segnas.export.manifest import read_engine
from segnas.report import ScoringProtocol
from segnas.runtime.asking import answers, labels_at, tensor_of
from segnas.runtime.protocol import batch_of, scaled, settled
from segnas.runtime.session import Session, open_session

Bytes = NDArray[np.uint8]
MOST_CHANGED = 1e-5
"""The share of pixels that may change from one batch size to another: what was asked of this project."""


@dataclass(frozen=True)
class Changes:
    """Pixels of `engine` (batch `batch`) that it labels otherwise than the first engine, of all `pixels`."""

    engine: str
    batch: int
    changed: int
    pixels: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.changed / self.pixels


def changed_pixels(engines: Sequence[Path], dataset: Dataset, *, limit: int | None = None) -> tuple[Changes, ...]:
    """Each engine after the first against it, on the first `limit` images at their own size; an engine sees as many at once as its batch.

    IncompatibleError for engines of other weights than the first's.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    with ExitStack() as stack:
        opened: list[tuple[Path, Session, ScoringProtocol]] = []
        digests: list[str] = []
        for path in engines:
            engine, artefact = read_engine(path)
            digests.append(engine.weights_sha256)
            if digests[-1] != digests[0]:
                raise IncompatibleError(f"{path} has weights {digests[-1][:12]}, {engines[0]} has {digests[0][:12]}; give engines of one network")
            session = stack.enter_context(closing(open_session(artefact, engine.target, sha256=engine.sha256)))
            opened.append((path, session, settled(session, ScoringProtocol(), engine.sizes)))
        chunk = int(np.lcm.reduce([batch_of(session) for _, session, _ in opened]))
        changed, pixels = [0] * len(opened), 0
        for start in range(0, count, chunk):
            images = [read_image(dataset.samples[index].image) for index in range(start, min(start + chunk, count))]
            first = _labels(*opened[0][1:], images)
            pixels += sum(labels.size for labels in first)
            for number, (_, session, protocol) in enumerate(opened):
                others = _labels(session, protocol, images) if number else first
                changed[number] += sum(int((one != other).sum()) for one, other in zip(first, others, strict=True))
        found = zip(opened, changed, strict=True)
        return tuple(Changes(str(path), batch_of(session), number, pixels) for (path, session, _), number in found)[1:]


def _labels(session: Session, protocol: ScoringProtocol, images: Sequence[Bytes]) -> list[Bytes]:
    """What the engine says of each image, in batches of its size, at the image's size."""
    found: list[Bytes] = []
    for start in range(0, len(images), batch_of(session)):
        group = images[start : start + batch_of(session)]
        given = answers(session, [tensor_of(session, image, scaled(protocol, 1.0)) for image in group])
        found += [labels_at(answer, (image.shape[0], image.shape[1]), protocol) for answer, image in zip(given, group, strict=True)]
    return found

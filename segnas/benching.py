"""Benching: how fast an engine on disk is, and what it makes of some images."""

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segnas.data import Dataset, network_input
from segnas.export.manifest import read_engine
from segnas.measuring import Progress
from segnas.report import Engine, Timing
from segnas.runtime.bench import bench
from segnas.runtime.session import Session, open_session

Bytes = NDArray[np.uint8]


def bench_engine(path: Path, *, seconds: float, progress: Progress | None = None) -> tuple[Engine, Timing]:
    """Time the engine as shipped, on the target of its manifest."""
    engine, artefact = read_engine(path)

    def told(share: float) -> None:
        if progress:
            progress(round(100 * share), 100, "")

    with closing(open_session(artefact, engine.target, sha256=engine.sha256)) as session:
        return engine, bench(session, scope=engine.target.scope, min_seconds=seconds, progress=told)


def examples(session: Session, dataset: Dataset, count: int) -> list[tuple[str, Bytes, Bytes, Bytes]]:
    """Some images with their names, and ground truth and prediction in colours: (name, image, truth, prediction), spread over the dataset."""
    import cv2

    chosen = [round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(min(count, len(dataset)))]
    results: list[tuple[str, Bytes, Bytes, Bytes]] = []
    for index in chosen:
        image, ids = dataset.read(index)
        labels = session.run(network_input(image, *session.specification.input.shape[2:]))[0].astype(np.uint8)
        enlarged = np.asarray(cv2.resize(labels, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST), np.uint8)
        truth = dataset.labels.colours(dataset.labels.train_ids(ids))
        results.append((dataset.samples[index].name, image, truth, dataset.labels.colours(enlarged)))
    return results

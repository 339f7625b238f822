"""Predicting: pictures, folders, videos and cameras through an engine on disk, to overlays, colours or label images; resumable file by file."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segnas.errors import IncompatibleError, InputError
from segnas.export.manifest import read_engine
from segnas.files import plain
from segnas.labels import LABEL_SETS, LabelSet
from segnas.measuring import Progress
from segnas.pictures import Item, Plan, Sink, planned
from segnas.report import Engine, ScoringProtocol
from segnas.runtime.predict import SCOPE, Kind, Look, look, predicted
from segnas.runtime.protocol import answer_size, batch_of, settled
from segnas.runtime.session import Session, open_session
from segnas.timing import percentile

Bytes = NDArray[np.uint8]
MOST_WAITING = 4
"""Pictures that wait to be drawn and written at most: memory is bounded, and a slow disk slows the engine down."""

LATEST = 10_000
"""Frames whose latencies are kept for the median: the last ones, so that a camera may run for days."""


@dataclass(frozen=True)
class Wish:
    """What is to be made of each picture: `opacity` is of overlays, `frames` the most of a video or camera, and the rest as in `ScoringProtocol`."""

    kind: Kind = "overlay"
    opacity: float = 0.5
    upsample: str | None = None
    align_corners: bool = False
    overwrite: bool = False
    frames: int | None = None


@dataclass(frozen=True)
class Predicted:
    """What came of it: pictures done now, kept from before, and why others failed; latency of the scope named; frames per second with all writing."""

    out: str
    kind: str
    engine_sha256: str
    done: int
    kept: int
    failed: tuple[str, ...]
    scope: str
    median_ms: float | None
    p99_ms: float | None
    fps: float | None
    notes: tuple[str, ...]


def predict(path: Path, source: str, out: Path, wish: Wish, *, progress: Progress | None = None) -> Predicted:
    """Run the engine over an image, a folder of images, a video or `camera:N`; see `segnas.pictures.planned` for what goes where.

    Pictures are written whole or not at all, and those that the same engine has made there before are not made again. What cannot be read is listed
    in `failed`, and the rest is done. UsageError where input and output do not go together; InputError where there is nothing to be read;
    IncompatibleError for label ids of an engine whose classes belong to no known label set, and where the output is another engine's.
    """
    with closing(planned(source, out, wish.kind, most=wish.frames)) as plan:
        engine, artefact = read_engine(path)
        labels = label_set(engine)
        if labels is None and wish.kind == "labels":
            raise IncompatibleError(
                f"{path} has classes {', '.join(engine.classes)}, which are those of no label set ({', '.join(LABEL_SETS)}): its ids mean nothing to "
                "a benchmark; write --as overlay or --as colours"
            )
        with closing(open_session(artefact, engine.target, sha256=engine.sha256)) as session:
            protocol = _protocol(session, engine, wish)
            made_by = {"engine_sha256": engine.sha256, "as": wish.kind, "protocol": plain(protocol)}
            made_by |= {"opacity": wish.opacity} if wish.kind == "overlay" else {}
            with plan.opened(made_by, overwrite=wish.overwrite) as (items, sink):
                work = _Work(session, protocol, look(wish.kind, labels, wish.opacity), sink)
                work.through(items, plan, progress)
        if not work.seen:
            raise InputError(f"{source} holds no frame; is it empty or cut short?")
        return _result(work, plan, engine, [] if labels else ["colours are made up: the engine's classes are those of no known label set"])


def label_set(engine: Engine) -> LabelSet | None:
    """The label set whose scored classes are the engine's, in order; None where there is none."""
    return next((labels for labels in LABEL_SETS.values() if tuple(label.name for label in labels.classes) == engine.classes), None)


def prediction_lines(found: Predicted) -> list[str]:
    """What came of a prediction, for people."""
    kept = f", {found.kept} were there already" if found.kept else ""
    lines = [f"{found.out}: {found.done} pictures ({found.kind}){kept}{f', {len(found.failed)} failed' if found.failed else ''}"]
    if found.median_ms is not None and found.p99_ms is not None and found.fps is not None:
        lines.append(f"median {found.median_ms:.2f} ms, p99 {found.p99_ms:.2f} ms a frame ({found.scope})")
        lines.append(f"{found.fps:.1f} FPS of the whole, with drawing and writing")
    return [*lines, *(f"note: {note}" for note in found.notes)]


class _Work:
    """Items through an engine into a sink; drawing and writing go on beside the engine."""

    def __init__(self, session: Session, protocol: ScoringProtocol, drawn: Look, sink: Sink) -> None:
        self._session, self._protocol, self._look, self._sink = session, protocol, drawn, sink
        self.done = self.kept = 0
        self.failed: list[str] = []
        self.notes: list[str] = []
        self.enlarged = False
        self.took_ms: deque[float] = deque(maxlen=LATEST)
        self._latest_ms: deque[float] = deque(maxlen=30)
        self._begun = time.perf_counter()
        self._seconds = 0.0

    @property
    def seen(self) -> int:
        """All items so far."""
        return self.done + self.kept + len(self.failed)

    @property
    def fps(self) -> float | None:
        """Pictures made per second."""
        return self.done / self._seconds if self.done and self._seconds else None

    def through(self, items: Iterator[Item], plan: Plan, progress: Progress | None) -> None:
        """All items, or until a live source is stopped by Ctrl-C."""
        waiting: deque[Future[None]] = deque()
        pool = ThreadPoolExecutor(1, "segnas-writing")
        try:
            for item in items:
                if not self._one(item, pool, waiting):
                    break
                while len(waiting) > MOST_WAITING:
                    waiting.popleft().result()
                self._seconds = time.perf_counter() - self._begun
                if progress is not None:
                    progress(self.seen, plan.total, self._live())
        except KeyboardInterrupt:
            if not plan.live:
                raise
            self.notes.append("stopped by hand")
        finally:
            pool.shutdown(wait=True)
        for future in waiting:
            future.result()
        self._seconds = time.perf_counter() - self._begun

    def _one(self, item: Item, pool: ThreadPoolExecutor, waiting: "deque[Future[None]]") -> bool:
        """Read, infer and hand over one item; False where there are no more."""
        if self._sink.has(item.name):
            there = item.skip()
            self.kept += there
            return there
        begun = time.perf_counter()
        try:
            image = item.read()
        except InputError as error:
            self.failed.append(str(error))
            return True
        if image is None:
            return False
        train_ids = predicted(self._session, image, self._protocol)
        self._took(1000 * (time.perf_counter() - begun))
        gives_labels, size = self._session.specification.gives_labels, answer_size(self._session, self._protocol)
        self.enlarged |= gives_labels and size != image.shape[:2]
        waiting.append(pool.submit(self._written, item.name, image, train_ids))
        self.done += 1
        return True

    def _written(self, name: str, image: Bytes, train_ids: Bytes) -> None:
        self._sink.put(name, self._look(image, train_ids))

    def _took(self, milliseconds: float) -> None:
        self.took_ms.append(milliseconds)
        self._latest_ms.append(milliseconds)

    def _live(self) -> str:
        """What stands beside the bar."""
        return f"{self.fps:.1f} FPS, {percentile(self._latest_ms, 50):.1f} ms a frame" if self.fps and self._latest_ms else ""


def _protocol(session: Session, engine: Engine, wish: Wish) -> ScoringProtocol:
    """What was wished, settled: labels that need not be exact are enlarged without being asked."""
    batch = batch_of(session)
    if batch > 1:
        raise InputError(f"the engine takes {batch} images at once; a prediction needs one that takes 1: run `segnas export` with batch 1")
    free = wish.upsample is None and session.specification.gives_labels and wish.kind != "labels"
    return settled(session, ScoringProtocol(upsample="nearest" if free else wish.upsample, align_corners=wish.align_corners), engine.sizes)


def _result(work: _Work, plan: Plan, engine: Engine, notes: list[str]) -> Predicted:
    times = list(work.took_ms)
    enlarged = ["labels were brought to the pictures' size by nearest neighbour"] if work.enlarged else []
    return Predicted(
        out=str(plan.out),
        kind=plan.kind,
        engine_sha256=engine.sha256,
        done=work.done,
        kept=work.kept,
        failed=tuple(work.failed),
        scope=SCOPE,
        median_ms=percentile(times, 50) if times else None,
        p99_ms=percentile(times, 99) if times else None,
        fps=work.fps,
        notes=(*plan.notes(work.seen), *work.notes, *notes, *enlarged),
    )

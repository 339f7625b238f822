"""Evaluation beside bare inference: how much of the engine's rate is left with decoding and counting, what counting costs, whether memory grows.

python -m benchmarks.evaluate ENGINE --data camvid --data-root "$SEGNAS_CAMVID" --split test [--workers 1] [--rounds 5] [--batches B2 B4]

The two rates are taken in turns in one process, bare inference on tensors that lie ready. `--batches` are engines of the same weights and other
batch sizes: the share of pixels that they label otherwise. Nothing is printed but JSON.
"""

import argparse
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from segnas.changes import changed_pixels
from segnas.data import Dataset, open_dataset
from segnas.export.manifest import read_engine
from segnas.labels import CITYSCAPES
from segnas.metrics import ConfusionMatrix
from segnas.report import ScoringProtocol
from segnas.runtime.asking import answers, tensor_of
from segnas.runtime.evaluate import evaluate
from segnas.runtime.protocol import batch_of, scaled, settled
from segnas.runtime.session import Session, open_session
from segnas.runtime.upsample import argmax_at
from segnas.timing import cpu_times, disturbance

READY = 40
"""Images whose tensors lie ready for bare inference."""


def rates(session: Session, dataset: Dataset, *, workers: int, rounds: int) -> dict[str, Any]:
    """Images per second of bare inference and of the evaluation, in turns, and their ratio round by round."""
    size = scaled(settled(session, ScoringProtocol()), 1.0)
    tensors = [tensor_of(session, dataset.read(index)[0], size) for index in range(min(READY, len(dataset)))]
    batch, count = batch_of(session), len(dataset)

    def bare() -> None:
        for start in range(0, count, batch):
            answers(session, [tensors[(start + index) % len(tensors)] for index in range(min(batch, count - start))])

    def pipeline() -> None:
        evaluate(session, dataset, workers=workers)

    def taken(work: Callable[[], None]) -> tuple[float, float]:
        """Images per second, and the milliseconds of all cores that one took."""
        begun, used = time.perf_counter(), time.process_time()
        work()
        return count / (time.perf_counter() - begun), 1000 * (time.process_time() - used) / count

    bare(), pipeline()
    before, pairs = cpu_times(), list[tuple[tuple[float, float], tuple[float, float]]]()
    for number in range(rounds):
        first = taken(pipeline if number % 2 else bare)
        second = taken(bare if number % 2 else pipeline)
        pairs.append((second, first) if number % 2 else (first, second))
    around = disturbance(before, cpu_times())
    return {
        "bare_per_s": median(one[0] for one, _ in pairs),
        "pipeline_per_s": median(other[0] for _, other in pairs),
        "ratio": median(other[0] / one[0] for one, other in pairs),
        "ratios": [round(other[0] / one[0], 4) for one, other in pairs],
        "bare_cpu_ms": median(one[1] for one, _ in pairs),
        "pipeline_cpu_ms": median(other[1] for _, other in pairs),
        "others_cores": None if around is None else around.others_cores,
        "workers": workers,
    }


def memory(session: Session, dataset: Dataset, *, workers: int) -> dict[str, Any]:
    """Peak of Python's and numpy's memory over 50 and over 500 images, and resident memory after each; MiB."""
    found: dict[str, Any] = {}
    for count in (50, 50, 500):  # the first settles caches
        repeated = replace(dataset, samples=tuple(dataset.samples[index % len(dataset)] for index in range(count)))
        tracemalloc.start()
        evaluate(session, repeated, workers=workers)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        found[f"peak_{count}"], found[f"resident_{count}"] = peak / 2**20, resident() / 2**20
    return found


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def costs() -> dict[str, float]:
    """Milliseconds of counting and of two argmaxes at 1024x2048, median of 15."""
    random = np.random.default_rng(0)
    truth, guess = (random.integers(0, 34, (1024, 2048)).astype(np.uint8) for _ in range(2))
    matrix, logits = ConfusionMatrix(CITYSCAPES), random.standard_normal((19, 1024, 2048)).astype(np.float32)
    small = np.ascontiguousarray(logits[:, ::8, ::8])
    work = {
        "count_ms": lambda: matrix.add(truth, guess),
        "argmax_ms": lambda: argmax_at(logits, (1024, 2048)),
        "resize_and_argmax_ms": lambda: argmax_at(small, (1024, 2048)),
    }
    return {name: 1000 * median(_seconds(call) for _ in range(15)) for name, call in work.items()}


def _seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", type=Path)
    parser.add_argument("--data", default="camvid")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    dataset = open_dataset(given.data, given.data_root, given.split)
    engine, artefact = read_engine(given.engine)
    found: dict[str, Any] = {"target": str(engine.target), "images": len(dataset)}
    with closing(open_session(artefact, engine.target, sha256=engine.sha256)) as session:
        found["rates"] = rates(session, dataset, workers=given.workers, rounds=given.rounds)
        found["memory_mib"] = memory(session, dataset, workers=given.workers)
    found["costs_1024x2048"] = costs()
    changes = changed_pixels([given.engine, *given.batches], dataset) if given.batches else ()
    found["changed"] = [{"batch": change.batch, "changed": change.changed, "pixels": change.pixels, "share": change.share} for change in changes]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

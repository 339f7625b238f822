"""Times of single queries under the names of trtexec's `--exportTimes` (sampleReporting.cpp of TensorRT 11.1), so that its readers can read ours."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Query(NamedTuple):
    """When the parts of one query began and ended, in ms since the first: the host's enqueueing, then on the device copy in, compute, copy out."""

    start_enqueue_ms: float
    end_enqueue_ms: float
    start_in_ms: float
    start_compute_ms: float
    end_compute_ms: float
    end_out_ms: float


def records(queries: Iterable[Query]) -> list[dict[str, float]]:
    """One record a query; a copy begins where what is before it ends, and the latency is the sum of the three parts, as in trtexec."""
    return [
        {
            "startEnqMs": q.start_enqueue_ms,
            "endEnqMs": q.end_enqueue_ms,
            "startH2dMs": q.start_in_ms,
            "endH2dMs": q.start_compute_ms,
            "startComputeMs": q.start_compute_ms,
            "endComputeMs": q.end_compute_ms,
            "startD2hMs": q.end_compute_ms,
            "endD2hMs": q.end_out_ms,
            "h2dMs": q.start_compute_ms - q.start_in_ms,
            "computeMs": q.end_compute_ms - q.start_compute_ms,
            "d2hMs": q.end_out_ms - q.end_compute_ms,
            "latencyMs": q.end_out_ms - q.start_in_ms,
        }
        for q in queries
    ]


def computed(samples: Sequence[tuple[float, float]]) -> list[Query]:
    """Queries of a runtime that does not tell its copies apart, from (start, ms) of each: all of the time counts as compute."""
    return [Query(start, start + ms, start, start, start + ms, start + ms) for start, ms in samples]


def records_text(queries: Iterable[Query]) -> str:
    """The file of `--exportTimes`: a JSON array with one record a line; times in ms."""
    lines = (json.dumps({name: round(value, 6) for name, value in record.items()}) for record in records(queries))
    return "[\n" + ",\n".join(lines) + "\n]\n"

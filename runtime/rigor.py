"""Rigor: how long an engine is timed, by name."""

from typing import NamedTuple

from segnas.errors import InputError


class Rigor(NamedTuple):
    """Least duration and number of runs, and the least warm-up in seconds; how many processes the normalised latency is the mean of; and of two
    engines in turns, how many pairs over how many openings, in blocks of how many ms.
    """

    name: str
    min_seconds: float
    min_runs: int
    warmup_seconds: float
    processes: int
    pairs: int
    openings: int
    block_ms: float


RIGOR = {
    rigor.name: rigor
    for rigor in (
        Rigor("quick", 1.0, 30, 0.2, 1, 16, 4, 20.0),  # our choice: for a look
        Rigor("standard", 3.0, 100, 0.5, 4, 40, 8, 40.0),  # trtexec's 3 s, and enough runs for a 99 % percentile; processes: ours
        Rigor("mlperf", 600.0, 1024, 0.5, 1, 400, 40, 100.0),  # MLPerf SingleStream (mlperf.conf): 600 s, 1024 queries, judged by the 90 % percentile
    )
}
"""`mlperf` takes MLPerf's duration, number of queries and percentile, and its rule that the next query starts when the last is over; not its load
generator nor its rules of early stopping, so that its figures are no MLPerf results."""


def rigor_named(name: str, scope: str) -> Rigor:
    """InputError for an unknown name, or for `mlperf` where queries do not end one by one."""
    if name not in RIGOR:
        raise InputError(f"rigor {name!r} was given; allowed: {', '.join(RIGOR)}")
    if name == "mlperf" and scope == "gpu":
        raise InputError("rigor 'mlperf' was asked for with scope 'gpu'; there queries do not end one by one: give scope end_to_end or pipeline")
    return RIGOR[name]

"""Labels: what networks take, from several processes that measured them, a few at a time.

groups of readings, process by process -> the factor that each group shares -> Label
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from segnas.errors import InputError
from segnas.timing import interquartile_mean

Groups = Sequence[Mapping[str, float]]
"""One process: for each group of networks that were open together, their latencies in ms by digest."""
LOSS = 1.1  # an interquartile mean's standard deviation over a mean's, for normal noise
SWEEPS = 50  # far more than it takes: a sweep leaves about a fifth of what is wrong


@dataclass(frozen=True, slots=True)
class Label:
    """One network's measured latency in ms over several processes, its relative standard deviation, and each process's figure as it was read."""

    digest: str
    ms: float
    relative_sd: float
    sessions_ms: tuple[float, ...]


def labels(processes: Sequence[Groups]) -> dict[str, Label]:
    """Every network's label. Each process must hold the same networks, in groups of its own.

    Networks that are open together are read up to 3 % too slow or too fast together, by the moment and by where the sentinel's memory came to lie.
    Where the groups are drawn anew in every process, that factor can be told from what the networks take: log ms is a network's and a group's part,
    fitted by turns with interquartile means, so that one reading that was disturbed has little say, nor one group in the level of all: the middle of
    the groups' parts is 0. It is the analysis of an incomplete block design. With one process nothing is taken out and the standard deviation is
    NaN. InputError where a network is missing in a process, or there is none.
    """
    digests = [set().union(*groups) for groups in processes]
    if not digests or not digests[0] or any(found != digests[0] for found in digests):
        raise InputError(f"{len(processes)} processes were given, of {[len(found) for found in digests]} networks; all must have measured the same")
    readings = [{digest: math.log(ms) for digest, ms in group.items()} for groups in processes for group in groups]
    shared = _shared(readings) if len(processes) > 1 else [0.0] * len(readings)
    found: dict[str, list[float]] = {digest: [] for group in processes[0] for digest in group}
    for group, factor in zip(readings, shared, strict=True):
        for digest, value in group.items():
            found[digest].append(math.exp(value - factor))
    read = [{digest: ms for group in groups for digest, ms in group.items()} for groups in processes]
    widened = _widened(len(found), len(processes), len(readings))
    return {digest: _label(digest, values, widened, tuple(each[digest] for each in read)) for digest, values in found.items()}


def _widened(networks: int, processes: int, groups: int) -> float:
    """What a standard deviation of readings less their groups' parts falls short by: fitting these parts makes the readings agree better than they
    do, and leaves the networks' parts less sure (the efficiency of a design with groups of equal size, (1 - 1 / group) / (1 - 1 / networks): 1 where
    each process has all networks in one group).
    """
    free = networks * (processes - 1)
    left = free - (groups - 1)
    together = networks * processes / groups
    if left <= 0 or together <= 1:
        return math.nan
    return LOSS * math.sqrt(free / left * (1 - 1 / networks) / (1 - 1 / together))


def _shared(readings: Sequence[Mapping[str, float]]) -> list[float]:
    """The part of each group, in logarithms, around their middle: a group that was disturbed has little say in the level of all."""
    shared = [0.0] * len(readings)
    for _ in range(SWEEPS):
        by_network: dict[str, list[float]] = {}
        for group, factor in zip(readings, shared, strict=True):
            for digest, value in group.items():
                by_network.setdefault(digest, []).append(value - factor)
        centre = {digest: _centre(values) for digest, values in by_network.items()}
        shared = [_centre([value - centre[digest] for digest, value in group.items()]) for group in readings]
        middle = _centre(shared)
        shared = [factor - middle for factor in shared]
    return shared


def _centre(values: Sequence[float]) -> float:
    """The interquartile mean where there are four or more, else the mean."""
    return interquartile_mean(values) if len(values) >= 4 else fmean(values)


def _label(digest: str, values: Sequence[float], widened: float, read: tuple[float, ...]) -> Label:
    centre = _centre(values)
    sd = widened * stdev(values) / centre / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Label(digest, centre, sd, read)


def process_sd(fitted_on: Sequence[Label], held_out: Sequence[Label]) -> float:
    """Relative standard deviation of the factor between the means of two sets of networks, each read in so many processes, in turn: all networks of a
    process lie together beside the truth, so more networks do not take it away. What two processes that follow each other share is not in it.
    0 with one process. InputError where the sets were read in different numbers of processes.
    """
    processes = {len(label.sessions_ms) for label in (*fitted_on, *held_out)}
    if len(processes) != 1:
        raise InputError(f"networks were read in {sorted(processes)} processes; both sets must have been read in as many")
    count = processes.pop()
    if count < 2:
        return 0.0
    apart = [_factor(fitted_on, process) - _factor(held_out, process) for process in range(count)]
    return stdev(apart) / math.sqrt(count)


def _factor(found: Sequence[Label], process: int) -> float:
    """How far that process read these networks from their mean, in logarithms."""
    return fmean(math.log(label.sessions_ms[process] / fmean(label.sessions_ms)) for label in found)


def noise(found: Sequence[Label]) -> float:
    """Mean relative standard deviation of the labels, in percent."""
    return 100 * fmean(label.relative_sd for label in found)

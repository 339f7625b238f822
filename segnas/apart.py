"""Measuring apart: each reading of a network's latency in a new process, and how sure their mean is.

Within one process readings agree better than they are right: where its memory came to lie moves all networks of a process, the sentinel among them,
by 1 to 4 % (docs/measuring.md). The new process opens the engines that the old one exported and imports no torch, so it takes a second.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any, cast

from segnas.arch import Architecture
from segnas.errors import RequirementError
from segnas.files import plain, unplain
from segnas.latency import Timed
from segnas.latency_tables.measure import measure_all
from segnas.runtime.session import open_session
from segnas.target import Target
from segnas.timing import Measured, interquartile_mean

LEAST, MOST, SURE = 5, 10, 0.005
"""Readings: at least, at most, and the relative standard deviation of their mean that is enough; our choice."""

MOST_TO_DECIDE = 20
"""Readings at most where they must say whether a limit is met: a noisy moment of the host outlasts five (docs/results.md); our choice."""

SHARED = 0.6
"""What readings of one moment have in common, as a share of what they spread by beyond the noise that each of them states: the machine's state is
one then, and no further reading helps. On an unsteady evening the means of an hour's moments spread by 1.5 to 2 %, the readings within a moment
by 2 to 3 %; on a quiet night there was no such excess, and means differed by no more than the readings' noise (docs/measuring.md)."""

ROUNDS = 48
"""Rounds in each process, three seconds: its start takes one, and the noise of a reading falls with the root of its rounds; our choice."""

Engines = Mapping[str, bytes]
"""Exported networks by the digest of their architecture, the sentinel's among them."""


def sure_of(read: Callable[[int], Measured], *, least: int = LEAST, most: int = MOST, sure: float = SURE, limit_ms: float | None = None) -> Measured:
    """Mean of readings, taken until it is sure enough for this moment or `most` are there; from four on the mean of those between the quartiles.

    With a limit they go on, up to MOST_TO_DECIDE, while the mean is less than two of its standard deviations from it, on whichever side.

    Its relative standard deviation is that beside means of other moments: it counts what the readings share, as far as they spread by more than what
    they state explains.
    """
    taken: list[Measured] = []
    while True:
        taken.append(read(len(taken)))
        if len(taken) < least:
            continue
        readings, raw = [each.median_ms for each in taken], [each.raw_ms for each in taken]
        mean = interquartile_mean if len(readings) >= 4 else fmean
        centre = mean(readings)
        spread = stdev(readings) / centre if len(readings) > 1 else 0.0
        alone = spread / math.sqrt(len(readings))
        if alone > sure and len(readings) < most:
            continue
        by_chance = 1 + math.sqrt(2 / max(1, len(taken) - 1))  # one standard deviation of a sample variance above its mean
        excess = math.sqrt(max(0.0, spread**2 - by_chance * fmean(each.relative_sd**2 for each in taken)))
        found = Measured(centre, math.hypot(alone, SHARED * excess), mean(raw))
        if limit_ms is None or len(taken) >= MOST_TO_DECIDE or abs(centre - limit_ms) >= 2 * found.relative_sd * centre:
            return found


def measured_apart(
    networks: Mapping[str, Architecture], engines: Engines, target: Target, reference_ms: float | None, seed: int
) -> dict[str, Measured]:
    """Sentinel-normalised latency of each network, by digest, in one new process. RequirementError, with what it said, where that fails."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for digest, content in engines.items():
            (folder / f"{digest}.engine").write_bytes(content)
        task = {"target": plain(target), "reference_ms": reference_ms, "seed": seed, "networks": [plain(a) for a in networks.values()]}
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        printed = answer_of("the process that measures", "segnas.apart", str(folder))
    return {digest: Measured(*values) for digest, values in json.loads(printed.splitlines()[-1]).items()}


def answer_of(what: str, module: str, *words: str) -> str:
    """What that module prints when it runs in a new process, called `what`; RequirementError, with what it said, where it fails or prints nothing."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise RequirementError(f"{what} ended with {done.returncode} and said: {said}")
    return done.stdout


def _main(folder: Path) -> None:
    """What the new process does: open, measure, print."""
    task = cast(dict[str, Any], json.loads((folder / "task.json").read_text(encoding="utf-8")))
    target = unplain(Target, task["target"], "task: target")
    networks = [unplain(Architecture, each, "task: network") for each in task["networks"]]

    def prepare(architecture: Architecture, wanted: Target) -> Timed:
        return open_session((folder / f"{architecture.digest}.engine").read_bytes(), wanted)

    found = measure_all(networks, target, prepare=prepare, sentinel_ref_ms=task["reference_ms"], seed=task["seed"], rounds=ROUNDS)
    sys.stdout.write(json.dumps({a.digest: m for a, m in zip(networks, found, strict=True)}) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

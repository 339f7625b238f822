"""The journal of measured networks."""

from collections.abc import Callable
from pathlib import Path

from segnas.arch import Architecture
from segnas.journals import Journal
from segnas.timing import Measured


class MeasurementJournal:
    """Measurements of whole networks, one JSON line each: a finished one is never repeated, whenever the run is killed.

    `table` is the `prices_digest` of the table whose target and sentinel speed they refer to; lines of another table are kept, and not used.
    InputError names the line that holds no measurement.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.table, self._journal = table, Journal(path)
        self.found: dict[str, Measured] = {}
        for number, entry in enumerate(self._journal.entries, 1):
            try:
                basis, digest = entry["table"], entry["digest"]
                measured = Measured(float(entry["measured_ms"]), float(entry.get("relative_sd", 0)))
            except (ValueError, KeyError, TypeError):
                raise self._journal.damaged(number, "each line must hold a table, a digest and measured_ms") from None
            if basis == table:
                self.found[digest] = measured

    @property
    def known(self) -> dict[str, float]:
        """What was measured, in ms, by digest."""
        return {digest: measured.median_ms for digest, measured in self.found.items()}

    def measure(self, architecture: Architecture, by: Callable[[Architecture], Measured]) -> Measured:
        """The network's latency, from the journal where it is there, else `by` that."""
        digest = architecture.digest
        if digest not in self.found:
            measured = by(architecture)
            self.add(digest, measured.median_ms, measured.relative_sd)
        return self.found[digest]

    def add(self, digest: str, ms: float, relative_sd: float = 0.0) -> None:
        """Keep a measurement, with the relative standard deviation of its mean where that is known; on the disk before this returns."""
        self._journal.add({"table": self.table, "digest": digest, "measured_ms": ms, "relative_sd": relative_sd})
        self.found[digest] = Measured(ms, relative_sd)

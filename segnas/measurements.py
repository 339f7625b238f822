"""The journal of measured networks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from segnas.arch import Architecture, canonical_json
from segnas.errors import InputError
from segnas.files import write_error, write_text
from segnas.timing import Measured


class MeasurementJournal:
    """Measurements of whole networks, one JSON line each: a finished one is never repeated, whenever the run is killed.

    `table` is the `prices_digest` of the table whose target and sentinel speed they refer to; lines of another table are kept, and not used.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path, self.table = path, table
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []  # a torn last line has no line feed
        try:
            entries = [(e["table"], e["digest"], Measured(float(e["measured_ms"]), float(e.get("relative_sd", 0)))) for e in map(json.loads, lines)]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} is damaged: each line must hold a table, a digest and measured_ms; remove it, and the networks are measured again"
            ) from None
        self.found: dict[str, Measured] = {digest: measured for basis, digest, measured in entries if basis == table}
        if path.is_file():
            write_text(path, "".join(line + "\n" for line in lines))

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
        self.found[digest] = Measured(ms, relative_sd)
        line = canonical_json({"table": self.table, "digest": digest, "measured_ms": ms, "relative_sd": relative_sd})
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

"""The journal of measured networks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from segnas.arch import Architecture, canonical_json
from segnas.errors import InputError
from segnas.files import write_error, write_text


class MeasurementJournal:
    """Measurements of whole networks, one JSON line each: a finished one is never repeated, whenever the run is killed.

    `table` is the `prices_digest` of the table whose target and sentinel speed they refer to; lines of another table are kept, and not used.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path, self.table = path, table
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []  # a torn last line has no line feed
        try:
            entries = [(entry["table"], entry["digest"], float(entry["measured_ms"])) for entry in map(json.loads, lines)]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} is damaged: each line must hold a table, a digest and measured_ms; remove it, and the networks are measured again"
            ) from None
        self.known: dict[str, float] = {digest: ms for basis, digest, ms in entries if basis == table}
        if path.is_file():
            write_text(path, "".join(line + "\n" for line in lines))

    def measure(self, architecture: Architecture, by: Callable[[Architecture], float]) -> float:
        """The network's latency in ms, from the journal where it is there, else `by` that."""
        digest = architecture.digest
        if digest not in self.known:
            self.add(digest, by(architecture))
        return self.known[digest]

    def add(self, digest: str, ms: float) -> None:
        """Keep a measurement; on the disk before this returns."""
        self.known[digest] = ms
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(canonical_json({"table": self.table, "digest": digest, "measured_ms": ms}) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

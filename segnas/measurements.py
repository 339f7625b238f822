"""The journal of measured networks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from segnas.arch import Architecture, canonical_json
from segnas.errors import InputError
from segnas.files import write_error, write_text


class MeasurementJournal:
    """Measurements of whole networks, one JSON line each: a finished one is never repeated, whenever the run is killed."""

    def __init__(self, path: Path, measure: Callable[[Architecture], float]) -> None:
        self.path, self._measure = path, measure
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []  # a torn last line has no line feed
        try:
            self.known: dict[str, float] = {entry["digest"]: float(entry["measured_ms"]) for entry in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{path} is damaged: each line must hold a digest and measured_ms; remove it, and the networks are measured again"
            ) from None
        if path.is_file():
            write_text(path, "".join(line + "\n" for line in lines))

    def measure(self, architecture: Architecture) -> float:
        """The network's latency in ms, from the journal where it is there."""
        digest = architecture.digest
        if digest not in self.known:
            self.known[digest] = self._measure(architecture)
            try:
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(canonical_json({"digest": digest, "measured_ms": self.known[digest]}) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as error:
                raise write_error(self.path, error) from error
        return self.known[digest]

"""The yardstick that engines on a CPU are timed beside: the latency tables' sentinel, and the time that it took when it was first read here."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from segnas.arch import canonical_json
from segnas.errors import InputError, SegnasError
from segnas.export.graph import onnx_from_network
from segnas.export.templates import cache_folder
from segnas.files import plain, read_json, write_text
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.network import initialised
from segnas.runtime.bench import Yardstick
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.target import Target
from segnas.timing import cpu_times, disturbance

FIRST_READINGS = 12


class Sentinel:
    """The latency tables' sentinel on this CPU, by ONNX Runtime whatever the engine's runtime, with as many threads as the engine.

    Its reference is the time that it took, with as many threads, when it was first read here on an idle machine; it is kept in the cache folder.
    """

    def __init__(self, target: Target) -> None:
        self._target = sentinel_target(cpu_target(target.height, target.width, target.threads))
        network = initialised(sentinel_architecture(), 0).eval()
        self._session = open_session(onnx_from_network(network, self._target), self._target)
        self._session.sample(20)  # its own warm-up

    def yardstick(self) -> Yardstick:
        """For one timing."""
        name = (
            f"{sentinel_architecture().digest} at {self._target.height}x{self._target.width}, {self._target.runtime}, threads: {self._target.threads}"
        )
        reference_ms, since = self._reference()
        return Yardstick(self._session, name, reference_ms, since)

    def close(self) -> None:
        """Give back its session."""
        self._session.close()

    def _reference(self) -> tuple[float, str]:
        """What it took when it was first read here on an idle machine, and when that was; read now, and kept, where it never was.

        On a machine that has never been idle, what it took the first time serves until it is, and says so.
        """
        path = cache_folder().parent / "sentinels" / f"{sentinel_architecture().digest}-{_digest(self._target)}.json"
        kept = _kept(path, self._target)
        if kept is not None and kept.idle:
            return kept.told
        before, measured = cpu_times(), Yardstick(self._session, "")
        for _ in range(FIRST_READINGS):
            measured.read()
        around = disturbance(before, cpu_times())
        idle = around is not None and around.quiet
        if kept is not None and not idle:
            return kept.told
        found = _Reference(measured.median_ms, datetime.now(UTC).isoformat(timespec="seconds"), idle)
        content = {"target": plain(self._target), "sentinel_ms": found.sentinel_ms, "since": found.since, "idle": found.idle}
        try:
            write_text(path, json.dumps(content, indent=1) + "\n")
        except SegnasError:
            return found.sentinel_ms, "this call, as the cache folder cannot be written"
        return found.told


class _Reference(NamedTuple):
    """The sentinel's time in ms, when it was read, and whether the machine was idle then."""

    sentinel_ms: float
    since: str
    idle: bool

    @property
    def told(self) -> tuple[float, str]:
        """The time, and when it was read, in words."""
        return self.sentinel_ms, self.since if self.idle else f"{self.since}, when the machine was not idle"


def _kept(path: Path, target: Target) -> _Reference | None:
    """The reference in that file, if it is there, whole, and of that target."""
    try:
        content = read_json(path)
        found = _Reference(float(content["sentinel_ms"]), str(content["since"]), content["idle"] is True)
    except (InputError, KeyError, TypeError, ValueError):
        return None
    return found if content.get("target") == plain(target) and found.sentinel_ms > 0 else None


def _digest(target: Target) -> str:
    return hashlib.sha256(canonical_json(plain(target)).encode()).hexdigest()[:12]

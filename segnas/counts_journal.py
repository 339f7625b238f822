"""The journal of an evaluation: what each image added, so that a killed one goes on where it was and comes to exactly the same matrix."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from segnas.arch import canonical_json
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.files import write_error
from segnas.journals import differences
from segnas.labels import LabelSet
from segnas.report import InstanceCount
from segnas.runtime.counting import Counted

SYNC_S = 1.0
"""A line is written when its image is done, and flushed to the disk at most so often: a kill loses nothing, a power cut this much (our choice)."""


class CountsJournal:
    """A file of JSON lines, open for one process at a time: the first says whose it is, each other is one image. A torn last line does not count.

    `belongs` is the engine, the data set and the protocol; IncompatibleError names what differs in a journal of something else. Each image that is
    there goes to `into`, and is not kept here. InputError for a damaged line, or where `into` refuses one (ValueError); UsageError where another
    process has the journal open.
    """

    def __init__(self, path: Path, belongs: Mapping[str, Any], labels: LabelSet, into: Callable[[Counted], None]) -> None:
        self.path, self._labels = path, labels
        self._belongs: dict[str, Any] = json.loads(canonical_json(belongs))
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab+")
        except OSError as error:
            raise write_error(path, error) from error
        try:
            self._lock()
            self._replay(into)
        except BaseException:
            self._stream.close()
            raise

    def add(self, counted: Counted) -> None:
        """Keep an image."""
        rows, columns = np.nonzero(counted.counts)
        pairs = np.stack([rows, columns, counted.counts[rows, columns]], axis=1).tolist()
        entry: dict[str, Any] = {"image": counted.index, "counts": pairs, "pixels": int(counted.counts.sum())}
        if counted.instances is not None:
            entry["instances"] = [list(one[1:]) for one in counted.instances]
        self._write(entry)

    def close(self) -> None:
        """Flush to the disk, and let others write."""
        if not self._stream.closed:
            self._sync()
            self._stream.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows: there two processes in one folder are not noticed
            return
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{self.path} is being written by another process: give each part a folder of its own with --out, then merge") from None

    def _replay(self, into: Callable[[Counted], None]) -> None:
        """Check every whole line, cut off a torn one, and write the first where there is none."""
        self._stream.seek(0)
        whole, number = 0, 0
        while (line := self._stream.readline()).endswith(b"\n"):
            number, whole = number + 1, whole + len(line)
            entry = self._entry(number, line)
            if number == 1:
                self._require(entry)
                continue
            try:
                into(self._counted(entry))
            except (KeyError, TypeError, ValueError, IndexError, OverflowError):
                raise self._damaged(number) from None
        self._stream.truncate(whole)
        if number == 0:
            self._write({"belongs": self._belongs})

    def _require(self, entry: Mapping[str, Any]) -> None:
        held = entry.get("belongs")
        if not isinstance(held, dict):
            raise self._damaged(1)
        differing = differences(cast(dict[str, Any], held), self._belongs)
        if differing:
            raise IncompatibleError(f"{self.path} is the journal of another evaluation ({'; '.join(differing)}); choose another --out")

    def _counted(self, entry: Mapping[str, Any]) -> Counted:
        """The image of a line; ValueError and the like where it is damaged, down to a pixel that is missing."""
        counts = np.zeros((self._labels.size, self._labels.size), np.int64)
        for row, column, pixels in entry["counts"]:
            counts[row, column] = pixels
        image, given = entry["image"], np.array(entry["counts"])
        if int(counts.sum()) != entry["pixels"] or (given.size and given.min() < 0) or not isinstance(image, int) or image < 0:
            raise ValueError("counts that do not add up")
        objects = None if "instances" not in entry else tuple(InstanceCount(image, *map(int, one)) for one in entry["instances"])
        return Counted(image, counts, objects)

    def _entry(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found: object = json.loads(line)
        except ValueError:
            raise self._damaged(number) from None
        if not isinstance(found, dict):
            raise self._damaged(number)
        return cast(dict[str, Any], found)

    def _damaged(self, number: int) -> InputError:
        what = "remove the file, and everything is counted again" if number == 1 else "remove that line, and its image is counted again"
        return InputError(f"{self.path} is damaged in line {number}; {what}")

    def _write(self, entry: Mapping[str, Any]) -> None:
        try:
            self._stream.write(canonical_json(entry).encode() + b"\n")
            self._stream.flush()
            if time.monotonic() - self._synced >= SYNC_S:
                self._sync()
        except OSError as error:
            raise write_error(self.path, error) from error

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

"""Journals: what an interrupted run has finished, one JSON object a line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from segnas.arch import canonical_json
from segnas.errors import InputError
from segnas.files import write_error


class Journal:
    """A file of JSON objects; one is on the disk before `add` returns, and a last line that a kill tore is dropped.

    Opening it reads it and writes nothing. InputError for any other line that holds no object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = _lines(path)
        self._torn_from = sum(len(line) + 1 for line in lines[:-1]) if lines[-1] else None
        self.entries = [self._entry(number, line) for number, line in enumerate(lines[:-1], 1)]

    def begin(self, header: dict[str, Any]) -> dict[str, Any]:
        """The first object: this header, where the journal is empty; a torn last line is gone when it returns."""
        self._drop_torn_line()
        if not self.entries:
            self.add(header)
        return self.entries[0]

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an object; RequirementError where the disk refuses."""
        self._drop_torn_line()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(canonical_json(entry).encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error
        self.entries.append(entry)

    def damaged(self, number: int, what: str = "it does not hold what it should") -> InputError:
        """The error for a line, counted from 1, and what is wrong with it."""
        return InputError(f"{self.path} is damaged in line {number}: {what}; remove that line, and what it kept is done again")

    def _drop_torn_line(self) -> None:
        if self._torn_from is not None:
            try:
                os.truncate(self.path, self._torn_from)
            except OSError as error:
                raise write_error(self.path, error) from error
            self._torn_from = None

    def _entry(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self.damaged(number, f"it is no JSON ({error})") from None
        if not isinstance(found, dict):
            raise self.damaged(number, "it is no JSON object")
        return cast(dict[str, Any], found)


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, and what stands behind the last line feed: nothing, unless a line was torn."""
    if not path.is_file():
        return [b""]
    try:
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where what a folder holds and what is asked for differ, in words; see `differing`."""
    return [f"{name}: the folder has {here}, asked for is {there}" for name, here, there in differing(held, wanted)]


def differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested objects differ: (dotted name, here, there)."""
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys((*first, *second)):
        here, there = first.get(name), second.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += differing(cast(dict[str, Any], here), cast(dict[str, Any], there), f"{prefix}{name}.")
        elif here != there:
            found.append((f"{prefix}{name}", here, there))
    return found

"""Journals: what an interrupted run has finished, one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any, cast

from segnas.arch import canonical_json
from segnas.errors import InputError
from segnas.files import write_error, write_text


class Journal:
    """A file of JSON objects; one is on the disk before `add` returns, and a last line that a kill tore is dropped when the file is opened again.

    InputError for any other line that holds no object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        self.entries = [self._entry(number, line) for number, line in enumerate(lines, 1)]
        if path.is_file():
            write_text(path, "".join(line + "\n" for line in lines))

    def add(self, entry: dict[str, Any]) -> None:
        """Keep an object."""
        self.entries.append(entry)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(canonical_json(entry) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def damaged(self, number: int) -> InputError:
        """The error for a line, counted from 1, that does not hold what it should."""
        return InputError(f"{self.path} is damaged in line {number}; remove that line, and what it kept is done again")

    def _entry(self, number: int, line: str) -> dict[str, Any]:
        try:
            found: object = json.loads(line)
        except ValueError:
            raise self.damaged(number) from None
        if not isinstance(found, dict):
            raise self.damaged(number)
        return cast(dict[str, Any], found)

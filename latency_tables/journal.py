"""Journal: what a profile has measured so far, one JSON line per finished entry, so that an interrupted profile goes on where it stopped."""

import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from segnas.arch import Operation, canonical_json
from segnas.errors import IncompatibleError, InputError
from segnas.files import plain, unplain, write_error
from segnas.latency_tables.sentinel import Visit
from segnas.target import Target

SCHEMA = "segnas.profile_journal/2"


@dataclass(frozen=True, slots=True)
class Record:
    """One operation measured once: for each rung of its design (`copies`), its turns, round by round."""

    operation: Operation
    attempt: int
    graph_sha256: str
    copies: tuple[int, ...]
    visits: tuple[tuple[Visit, ...], ...]

    @property
    def samples(self) -> int:
        """How many timed runs it holds."""
        return sum(len(visit.samples_ms) for turns in self.visits for visit in turns)

    @property
    def is_whole(self) -> bool:
        """Whether each rung was visited equally often, and every time is a positive number."""
        rounds = {len(turns) for turns in self.visits}
        times = [ms for turns in self.visits for visit in turns for ms in (visit.sentinel_ms, visit.took_ms, *visit.samples_ms)]
        sampled = all(visit.samples_ms for turns in self.visits for visit in turns)
        return (
            len(self.visits) == len(self.copies) > 1 and len(rounds) == 1 and 0 not in rounds and sampled and all(0 < ms < math.inf for ms in times)
        )


class Journal:
    """The file: read when opened, then only appended to; every line is on the disk before `append` returns.

    A line that was being written when the power went is dropped. InputError where an earlier line is damaged, IncompatibleError, naming the field,
    where the journal belongs to another space, target or protocol, RequirementError where the disk refuses.
    """

    def __init__(self, path: Path, header: dict[str, object]) -> None:
        self.path = path
        self._records: dict[tuple[Operation, int], Record] = {}
        lines = self._whole_lines()
        if lines:
            _check_header(path, lines[0], header)
            for number, line in enumerate(lines[1:], 2):
                self._take(_record(path, number, line))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.truncate(sum(len(line) for line in lines))
            self._stream = path.open("ab")
        except OSError as error:
            raise write_error(path, error) from error
        if not lines:
            try:
                self._write({"schema": SCHEMA, **header})
            except BaseException:
                self._stream.close()
                raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._stream.close()

    def append(self, record: Record) -> None:
        """Write one record, and wait until the disk has it."""
        self._take(record)
        self._write(cast(dict[str, object], plain(record)))

    def records(self, operation: Operation) -> tuple[Record, ...]:
        """The records of that operation, in the order of their attempts."""
        found = [record for (measured, _), record in self._records.items() if measured == operation]
        return tuple(sorted(found, key=lambda record: record.attempt))

    def _take(self, record: Record) -> None:
        self._records.setdefault((record.operation, record.attempt), record)

    def _whole_lines(self) -> list[bytes]:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error}") from None
        return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]

    def _write(self, value: dict[str, object]) -> None:
        try:
            self._stream.write(canonical_json(value).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error


def header_of(space: str, target: Target, protocol: str) -> dict[str, object]:
    """What a journal's first line must hold."""
    return {"space": space, "protocol": protocol, "target": plain(target)}


def _check_header(path: Path, line: bytes, wanted: dict[str, object]) -> None:
    held = _object(path, 1, line)
    schema = held.get("schema")
    if schema != SCHEMA:
        kind = IncompatibleError if isinstance(schema, str) and schema.startswith(SCHEMA.partition("/")[0] + "/") else InputError
        raise kind(f"{path} has schema {schema!r}; a journal of schema {SCHEMA} is needed")
    if not isinstance(held.get("target"), dict):
        raise InputError(f"{path}, line 1: target is {held.get('target')!r}; an object is needed")
    pairs = [(name, held.get(name), value) for name, value in wanted.items() if name != "target"]
    here, there = cast(dict[str, object], held["target"]), cast(dict[str, object], wanted["target"])
    pairs += [(f.name, here.get(f.name), there[f.name]) for f in fields(Target)]
    differing = [f"{name}: the journal has {a!r}, asked for is {b!r}" for name, a, b in pairs if a != b]
    if differing:
        raise IncompatibleError(f"{path} belongs to another profile ({'; '.join(differing)}); remove it or choose another --out")


def _record(path: Path, number: int, line: bytes) -> Record:
    data = _object(path, number, line)
    try:
        record: Record = unplain(Record, data)
        if not record.is_whole:
            raise InputError("its turns are not complete, or hold a sample that is no time")
        return record
    except InputError as error:
        raise InputError(f"{path}, line {number}: {error}; remove the line, and its entry is measured again") from None


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        data: object = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is no JSON ({error}); remove the line, and its entry is measured again") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}, line {number} is no JSON object; remove the line, and its entry is measured again")
    return cast(dict[str, Any], data)

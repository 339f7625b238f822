"""Journal: what a profile has measured so far, one JSON line per finished entry, so that an interrupted profile goes on where it stopped."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from segnas.arch import Operation
from segnas.errors import IncompatibleError, InputError
from segnas.files import plain, unplain
from segnas.journals import Journal
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


class ProfileJournal:
    """A header that says which profile it is, then one record a line; every line is on the disk before `append` returns.

    A line that was being written when the power went is dropped. InputError where an earlier line is damaged, IncompatibleError, naming the field,
    where the journal belongs to another space, target or protocol, RequirementError where the disk refuses.
    """

    def __init__(self, path: Path, header: dict[str, object]) -> None:
        self._journal = Journal(path)
        self._records: dict[Operation, dict[int, Record]] = {}
        if self._journal.entries:
            _check_header(path, self._journal.entries[0], header)
            for number in range(2, len(self._journal.entries) + 1):
                self._take(self._record(number))
        self._journal.begin({"schema": SCHEMA, **header})

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._journal.path

    def append(self, record: Record) -> None:
        """Write one record, and wait until the disk has it."""
        self._take(record)
        self._journal.add(cast(dict[str, object], plain(record)))

    def records(self, operation: Operation) -> tuple[Record, ...]:
        """The records of that operation, in the order of their attempts."""
        return tuple(record for _, record in sorted(self._records.get(operation, {}).items()))

    def _take(self, record: Record) -> None:
        self._records.setdefault(record.operation, {}).setdefault(record.attempt, record)

    def _record(self, number: int) -> Record:
        try:
            record: Record = unplain(Record, self._journal.entries[number - 1])
        except InputError as error:
            raise self._journal.damaged(number, str(error)) from None
        if not record.is_whole:
            raise self._journal.damaged(number, "its turns are not complete, or hold a sample that is no time")
        return record


def header_of(space: str, target: Target, protocol: str) -> dict[str, object]:
    """What a journal's first line must hold."""
    return {"space": space, "protocol": protocol, "target": plain(target)}


def _check_header(path: Path, held: dict[str, Any], wanted: dict[str, object]) -> None:
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

"""The trace of a search: what it was at each step, one JSON line a step, so that it can be looked at while it runs and drawn when it has ended.

The first line says which search it is; each other line holds a step's values and, at every so many steps, the probabilities of every decision. A line
is whole or ignored. A trace is looked at and never computed with: a search that lost it goes on to the same end.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from segnas.errors import IncompatibleError, InputError
from segnas.files import unplain, write_bytes, write_error
from segnas.report import Curve

SCHEMA = "segnas.trace/1"

TRACE_NAME = "search.trace.jsonl"
"""What a trace is called in the folder of a run, beside `search.json`."""

COLUMNS = 200
"""Probabilities are kept at about so many steps of a search: what a picture has room for; our choice."""

TOLERANCE = 1e-3
"""How far the probabilities of a decision may sum up beside 1; our choice."""

Probabilities = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """Which search it is: the space for so many classes and its decisions, each with its number of options, the budget, the steps it is to take.

    `identity` is whatever else tells it from others (seed, data, settings, table), as JSON values under names of their own.
    """

    space: str
    classes: int
    decisions: Mapping[str, int]
    steps: int
    budget_ms: float | None = None
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def is_due(self, step: int) -> bool:
        """Whether the probabilities are to be kept at this step: the first, the last and every k-th between."""
        return step in (0, 1, self.steps) or step % max(1, math.ceil(self.steps / COLUMNS)) == 0

    def require(self, decisions: Mapping[str, int]) -> None:
        """Refuse a space of other decisions than those that were searched: IncompatibleError."""
        if dict(self.decisions) != dict(decisions):
            raise IncompatibleError(f"the trace holds other decisions than those of {self.space!r}; run `segnas search {self.space}` again")

    def values(self) -> dict[str, Any]:
        """The header as the JSON object of the first line."""
        own = {"space": self.space, "classes": self.classes, "decisions": dict(self.decisions), "steps": self.steps, "budget_ms": self.budget_ms}
        return {"schema": SCHEMA, **own, **{name: value for name, value in self.identity.items() if name not in own}}


@dataclass(frozen=True, slots=True)
class TraceStep:
    """What is known when `step` steps are done: values by the name of their curve and, where they were kept, the probabilities."""

    step: int
    values: Mapping[str, float]
    probabilities: Probabilities | None = None


@dataclass(frozen=True)
class History:
    """A trace that was read."""

    header: TraceHeader
    steps: tuple[TraceStep, ...]

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Every value over the steps that have it, in order of first appearance."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for line in self.steps:
            for name, value in line.values.items():
                steps, values = found.setdefault(name, ([], []))
                steps.append(line.step)
                values.append(value)
        return tuple(Curve(name, tuple(steps), tuple(values)) for name, (steps, values) in found.items())

    @cached_property
    def kept(self) -> tuple[tuple[int, Probabilities], ...]:
        """The steps whose probabilities were kept, with them."""
        return tuple((line.step, line.probabilities) for line in self.steps if line.probabilities is not None)


class Trace:
    """The trace of a search under way; each line is with the operating system before `append` returns, so that a killed process loses none."""

    def __init__(self, path: Path, header: TraceHeader, stream: BinaryIO, last: int) -> None:
        self.path, self.header, self._stream, self._last = path, header, stream, last

    @classmethod
    def start(cls, path: Path, header: TraceHeader) -> "Trace":
        """A new trace, in place of one that may be there."""
        write_bytes(path, _line(header.values()))
        return cls(path, header, _appending(path), -1)

    @classmethod
    def resume(cls, path: Path, header: TraceHeader, *, step: int) -> "Trace":
        """Go on from a checkpoint of that step: what was traced beyond it, and a torn last line, are dropped; a new trace where there is none.

        IncompatibleError, naming the field, for the trace of another search; InputError, naming the line, for a damaged one.
        """
        lines = _whole_lines(path) if path.is_file() else []
        if not lines:
            return cls.start(path, header)
        _require_same(path, _header(path, lines[0]), header)
        found = _steps(path, header, lines[1:])
        kept = [line for line, held in zip(lines[1:], found, strict=True) if held.step <= step]
        write_bytes(path, b"".join([lines[0], *kept]))
        return cls(path, header, _appending(path), found[len(kept) - 1].step if kept else -1)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    def append(self, step: int, values: Mapping[str, float], probabilities: Mapping[str, Sequence[float]] | None = None) -> None:
        """Add a step's line, later than every other. ValueError for what could not be read again; RequirementError where the disk refuses."""
        if step <= self._last:
            raise ValueError(f"step {step} was to be traced after step {self._last}")
        content: dict[str, Any] = {"step": step, "values": dict(values)}
        if probabilities is not None:
            content["probabilities"] = {name: list(options) for name, options in probabilities.items()}
        line = _line(content)
        try:
            _step(self.header, json.loads(line))
        except InputError as error:
            raise ValueError(str(error)) from None
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            raise write_error(self.path, error) from error
        self._last = step


def read_trace(path: Path) -> History:
    """The trace in that file, a torn last line left out. InputError names the line that is damaged; IncompatibleError for another version."""
    try:
        lines = _whole_lines(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; a search leaves its trace there: `segnas search SPACE ... --out {path.parent}`") from None
    if not lines:
        raise InputError(f"{path} holds no whole line: its search was killed when it began; run it again")
    header = _header(path, lines[0])
    return History(header, _steps(path, header, lines[1:]))


def _whole_lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return [line + b"\n" for line in content.split(b"\n")[:-1]]


def _appending(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except OSError as error:
        raise write_error(path, error) from error


def _line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON in the given order of names, which is the order of the decisions."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _header(path: Path, line: bytes) -> TraceHeader:
    content = _object(path, 1, line)
    schema = content.pop("schema", None)
    if schema != SCHEMA:
        kind = IncompatibleError if isinstance(schema, str) and schema.startswith(SCHEMA.partition("/")[0] + "/") else InputError
        raise kind(f"{path} has schema {schema!r}; the trace of a search, of schema {SCHEMA}, is needed")
    try:
        space, budget, *whole = (content.pop(name, None) for name in ("space", "budget_ms", "classes", "steps"))
        classes, steps = (_whole(value, name, 1) for name, value in zip(("classes", "steps"), whole, strict=True))
        decisions = {name: _whole(size, f"decisions.{name}", 1) for name, size in _named(content.pop("decisions", None), "decisions")}
        budget_ms = None if budget is None else _number(budget, "budget_ms")
        return TraceHeader(unplain(str, space, "space"), classes, decisions, steps, budget_ms, content)
    except InputError as error:
        raise InputError(f"{path}, line 1: {error}; remove the file: a search goes on without its trace") from None


def _steps(path: Path, header: TraceHeader, lines: Iterable[bytes]) -> tuple[TraceStep, ...]:
    """The steps of the lines from the second on."""
    found: list[TraceStep] = []
    for number, line in enumerate(lines, 2):
        content = _object(path, number, line)
        try:
            found.append(_step(header, content))
            if len(found) > 1 and found[-2].step >= found[-1].step:
                raise InputError(f"step {found[-1].step} comes after step {found[-2].step}")
        except InputError as error:
            raise _damaged(path, number, str(error)) from None
    return tuple(found)


def _step(header: TraceHeader, content: Mapping[str, Any]) -> TraceStep:
    """A line that was parsed; InputError says what in it is wrong."""
    if unknown := set(content) - {"step", "values", "probabilities"}:
        raise InputError(f"it has unknown keys {', '.join(sorted(unknown))}; known: step, values, probabilities")
    values = {name: _number(value, f"values.{name}") for name, value in _named(content.get("values"), "values")}
    probabilities = None
    if "probabilities" in content:
        given = dict(_named(content["probabilities"], "probabilities"))
        if set(given) != set(header.decisions):
            wrong = sorted(set(given) ^ set(header.decisions))
            raise InputError(f"probabilities of {', '.join(wrong[:5])} are missing or unknown")
        probabilities = {name: _options(given[name], f"probabilities.{name}", size) for name, size in header.decisions.items()}
    return TraceStep(_whole(content.get("step"), "step", 0), values, probabilities)


def _options(value: object, where: str, size: int) -> tuple[float, ...]:
    """The probabilities of one decision."""
    options: tuple[float, ...] = unplain(tuple[float, ...], value, where)
    if len(options) != size or not all(option >= 0 for option in options) or abs(math.fsum(options) - 1) > TOLERANCE:
        raise InputError(f"{where} is {list(options)}; {size} numbers from 0 on that sum up to 1 are needed")
    return options


def _number(value: object, where: str) -> float:
    number: float = unplain(float, value, where)
    if not math.isfinite(number):
        raise InputError(f"{where} is {number}; a finite number is needed")
    return number


def _whole(value: object, where: str, least: int) -> int:
    number: int = unplain(int, value, where)
    if number < least:
        raise InputError(f"{where} is {number}; at least {least} is needed")
    return number


def _named(value: object, where: str) -> Iterable[tuple[str, object]]:
    """The pairs of an object."""
    return cast(dict[str, object], unplain(dict, value, where)).items()


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], unplain(dict, json.loads(line), "it"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, f"it is no JSON ({error})") from None
    except InputError as error:
        raise _damaged(path, number, str(error)) from None


def _damaged(path: Path, number: int, what: str) -> InputError:
    return InputError(f"{path}, line {number}: {what}; remove that line, or the file: a search goes on without its trace")


def _require_same(path: Path, held: TraceHeader, wanted: TraceHeader) -> None:
    """Refuse the trace of another search."""
    here, there = held.values(), cast(dict[str, Any], json.loads(_line(wanted.values())))
    for name in {**there, **here}:
        if here.get(name) != there.get(name):
            raise IncompatibleError(
                f"{path} is the trace of another search: its {name} is {here.get(name)!r}, not {there.get(name)!r}; remove it or choose another --out"
            )

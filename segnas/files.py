"""The nouns as JSON with a schema version, both ways, and files that are whole or absent."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from segnas.arch import Architecture, Operation
from segnas.benchmark import Benchmark, SideBySide
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.latency import LatencyTable
from segnas.report import Accuracy, Engine, Evaluation, Report, Timing
from segnas.target import Target

T = TypeVar("T")

SCHEMA_VERSIONS: dict[type, tuple[str, int]] = {
    Architecture: ("segnas.architecture", 1),
    Operation: ("segnas.operation", 1),
    Target: ("segnas.target", 1),
    LatencyTable: ("segnas.latency_table", 2),
    Engine: ("segnas.engine", 2),
    Timing: ("segnas.timing", 2),
    Accuracy: ("segnas.accuracy", 1),
    Evaluation: ("segnas.evaluation", 1),
    Report: ("segnas.report", 3),
    Benchmark: ("segnas.benchmark", 1),
    SideBySide: ("segnas.benchmarks", 1),
}


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not.

    RequirementError where the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
    except OSError as error:
        raise write_error(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG, errno.EIO, errno.EISDIR):
            raise write_error(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """RequirementError where that file cannot be written: asked before time is spent on what it will hold."""
    if path.is_dir():
        raise write_error(path, IsADirectoryError(errno.EISDIR, "it is a folder"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise write_error(path, error) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write the text whole or not at all, in UTF-8."""
    write_bytes(path, content.encode())


def write_noun(path: Path, noun: object) -> None:
    """Write one of the nouns of `SCHEMA_VERSIONS` as JSON."""
    write_text(path, noun_text(noun))


def noun_text(noun: object) -> str:
    """The JSON text of a noun: indented, keys in the order of the fields, ending in a line feed."""
    name, version = SCHEMA_VERSIONS[type(noun)]
    return json.dumps({"schema": f"{name}/{version}", **cast(dict[str, Any], plain(noun))}, indent=1, allow_nan=False) + "\n"


def read_noun(path: Path, type_: type[T]) -> T:
    """The noun in that file. InputError where it is missing, no JSON, or not that noun; IncompatibleError at another schema version."""
    return read_versioned(path, type_, *SCHEMA_VERSIONS[type_])


def read_versioned(path: Path, type_: type[T], name: str, version: int) -> T:
    """As `read_noun`, of a schema that is not in `SCHEMA_VERSIONS`."""
    data = read_json(path)
    schema = data.pop("schema", None)
    if schema != f"{name}/{version}":
        if isinstance(schema, str) and schema.startswith(f"{name}/"):
            raise IncompatibleError(f"{path} has schema {schema!r}; this version of segnas reads {name}/{version}")
        raise InputError(f"{path} has schema {schema!r}; a file of schema {name}/{version} is needed")
    try:
        return unplain(type_, data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in that file; InputError, with the place, where there is none."""
    try:
        data: object = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    except _NotFinite as error:
        raise InputError(f"{path} holds {error}, which is no JSON number") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no complete JSON file: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} holds {type(data).__name__}; a JSON object is needed")
    return cast(dict[str, Any], data)


class _NotFinite(Exception):
    """NaN or an infinity in a file: Python's JSON reader lets them through."""


def _no_number(text: str) -> float:
    raise _NotFinite(text)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain(value: object) -> object:
    """A noun or a part of one as JSON values: dataclasses as objects, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in cast(tuple[object, ...], value)]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite cannot be written as JSON")
    return value


def unplain(type_: Any, data: object, where: str = "") -> Any:
    """The reverse of `plain`, checked against the type's annotations; InputError says where and what."""
    place = where or "the file"
    if dataclasses.is_dataclass(type_) and isinstance(type_, type):
        return _dataclass(type_, data, where)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if origin is typing.Literal and data in arguments:
        return data
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, data, where)
    if origin is tuple or (isinstance(type_, type) and issubclass(type_, tuple)):
        return _tuple(type_, arguments, data, where)
    if origin is dict and arguments[0] is str:
        if not isinstance(data, dict):
            raise InputError(f"{place} is {data!r}; an object is needed")
        return {name: unplain(arguments[1], value, f"{place}.{name}") for name, value in cast(dict[str, object], data).items()}
    if type_ is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError:
            raise InputError(f"{place} is an integer of {len(str(abs(data)))} digits; float is needed") from None
    if isinstance(type_, type) and isinstance(data, type_) and (type_ is bool or not isinstance(data, bool)):
        return data
    raise InputError(f"{place} is {data!r}; {getattr(type_, '__name__', type_)} is needed")


def _dataclass(type_: type, data: object, where: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{where or 'the file'} is {type(data).__name__}; an object is needed")
    given = cast(dict[str, object], data)
    hints = typing.get_type_hints(type_)
    wanted = {f.name: f for f in dataclasses.fields(type_)}
    unknown, absent = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
    if unknown:
        raise InputError(f"{where or 'the file'} has unknown keys {', '.join(unknown)}; known: {', '.join(wanted)}")
    if absent:
        raise InputError(f"{where or 'the file'} lacks {', '.join(absent)}")
    return type_(**{name: unplain(hints[name], given[name], f"{where}.{name}" if where else name) for name in wanted})


def _tuple(type_: Any, arguments: tuple[Any, ...], data: object, where: str) -> Any:
    if not isinstance(data, list):
        raise InputError(f"{where or 'the file'} is {data!r}; a list is needed")
    items = cast(list[object], data)
    if not arguments:  # a named tuple
        hints = list(typing.get_type_hints(type_).values())
        if len(hints) != len(items):
            raise InputError(f"{where} has {len(items)} items; {len(hints)} are needed")
        return type_(*(unplain(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, items, strict=True))))
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(unplain(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if len(arguments) != len(items):
        raise InputError(f"{where} has {len(items)} items; {len(arguments)} are needed")
    return tuple(unplain(argument, item, f"{where}[{i}]") for i, (argument, item) in enumerate(zip(arguments, items, strict=True)))


def _union(arguments: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and types.NoneType in arguments:
        return None
    errors: list[str] = []
    for argument in arguments:
        if argument is types.NoneType:
            continue
        try:
            return unplain(argument, data, where)
        except InputError as error:
            errors.append(str(error))
    raise InputError(errors[-1])


def write_error(path: Path, error: OSError) -> RequirementError:
    """The error for a file that could not be written: which one, why, and that nothing was left behind."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return RequirementError(f"{path} could not be written: {reason}; nothing was left behind, free the space or choose another --out, and run again")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Store: latency tables as files that read well in a diff and tell when they were edited.

Canonical JSON, one entry a line, with the sha256 of its own content inside.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, cast

from segnas.arch import canonical_json
from segnas.errors import IncompatibleError, InputError
from segnas.files import SCHEMA_VERSIONS, plain, read_json, unplain, write_text
from segnas.latency import ENTRY_KINDS, LEVELS, SOURCES, LatencyTable

_NAME, _VERSION = SCHEMA_VERSIONS[LatencyTable]
SCHEMA = f"{_NAME}/{_VERSION}"


def save_table(path: Path, table: LatencyTable) -> None:
    """Write the table, whole or not at all; entries in the order of their operations."""
    write_text(path, table_text(table))


def table_text(table: LatencyTable) -> str:
    """The table's file: equal tables give equal text."""
    content = _content(table)
    head = {"schema": SCHEMA, "content_sha256": _content_sha256(content), **{k: v for k, v in content.items() if k != "entries"}}
    lines = [f"{json.dumps(key)}: {canonical_json(value)}," for key, value in head.items()]
    entries = ",\n".join(f" {canonical_json(entry)}" for entry in content["entries"])
    return "{\n" + "\n".join(lines) + '\n"entries": [\n' + entries + "\n]\n}\n"


def content_sha256(table: LatencyTable) -> str:
    """The sha256 that the table's file states of its own content."""
    return _content_sha256(_content(table))


def load_table(path: Path) -> LatencyTable:
    """The table in that file.

    InputError where it is missing, cut short, edited (the content does not match its sha256) or holds an impossible price; IncompatibleError at
    another schema.
    """
    data = read_json(path)
    schema, stated = data.pop("schema", None), data.pop("content_sha256", None)
    if schema != SCHEMA:
        kind = IncompatibleError if isinstance(schema, str) and schema.startswith(f"{_NAME}/") else InputError
        advice = "; make it anew with `segnas profile`" if kind is IncompatibleError else ""
        raise kind(f"{path} has schema {schema!r}; a latency table of schema {SCHEMA} is needed{advice}")
    if stated is None or stated != _digest_or_none(data):
        raise InputError(f"{path} was changed after it was written: its content does not match its content_sha256 {stated!r}; profile again")
    try:
        table = unplain(LatencyTable, data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return _checked(path, table)


def _checked(path: Path, table: LatencyTable) -> LatencyTable:
    seen: set[object] = set()
    for entry in table.entries:
        if entry.operation in seen:
            raise InputError(f"{path} prices {entry.operation} twice")
        seen.add(entry.operation)
        if not (math.isfinite(entry.median_ms) and entry.median_ms > 0):
            raise InputError(f"{path} prices {entry.operation} at {entry.median_ms} ms; a positive number is needed")
        if not (0 <= entry.spread < math.inf and entry.samples >= 1 and entry.kind in ENTRY_KINDS and entry.source in SOURCES):
            raise InputError(
                f"{path}: {entry.operation} has spread {entry.spread}, {entry.samples} samples, kind {entry.kind!r} and source {entry.source!r}; "
                f"needed are a spread of 0 or more, 1 sample or more, one of {', '.join(ENTRY_KINDS)} and one of {', '.join(SOURCES)}"
            )
        if not 0 < table.price_ms(entry.operation) < math.inf:
            raise InputError(f"{path} prices {entry.operation} at {table.price_ms(entry.operation)} ms when calibrated; a positive number is needed")
    made = table.calibration
    if not (0 <= table.overhead_ms < math.inf and 0 < made.scale < math.inf and 0 <= made.relative_sd < math.inf and made.level in LEVELS):
        raise InputError(
            f"{path} has overhead_ms {table.overhead_ms}, calibration scale {made.scale}, relative_sd {made.relative_sd} and level {made.level!r}; "
            f"0 or more, more than 0, 0 or more, and one of {', '.join(LEVELS)} are needed"
        )
    return table


def _content(table: LatencyTable) -> dict[str, Any]:
    content = cast(dict[str, Any], plain(table))
    content["entries"] = [plain(entry) for entry in sorted(table.entries, key=lambda entry: entry.operation)]
    return content


def _content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _digest_or_none(content: dict[str, Any]) -> str | None:
    try:
        return _content_sha256(content)
    except ValueError:  # NaN or infinity, which Python reads from JSON though there are none in it
        return None

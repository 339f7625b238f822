"""The runtime cache of TensorRT-RTX: the kernels that it compiled for this GPU, kept beside the engine for the next start."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segnas.files import write_bytes, write_error

SUFFIX = ".kernels"


def cache_path(engine: Path) -> Path:
    """Where the compiled kernels of that engine lie: `model.engine.kernels`."""
    return engine.with_name(f"{engine.name}{SUFFIX}")


def load_cache(cache: Any, path: Path) -> str:
    """Fill an `IRuntimeCache` from that file, under its lock: `loaded`, `new` where there is none, or `refused` where TensorRT-RTX says that it was
    made by another release, GPU or driver, or is damaged; then it stays empty.
    """
    with locked(path):
        if not path.is_file():
            return "new"
        content = path.read_bytes()
    return "loaded" if content and cache.deserialize(content) else "refused"


def save_cache(cache: Any, path: Path) -> None:
    """Write the cache, whole or not at all, under its lock; RequirementError where the folder cannot be written."""
    found = cache.serialize()
    content = b"" if found is None else bytes(memoryview(found))
    with locked(path):
        if content and not (path.is_file() and path.read_bytes() == content):
            write_bytes(path, content)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Alone among all processes with that file, by a lock on `<file>.lock`."""
    try:
        lock = path.with_name(f"{path.name}.lock").open("a")
    except OSError as error:
        raise write_error(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

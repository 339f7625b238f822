"""The timing cache of TensorRT: what its kernels took on one GPU, in a file that builds share, read and written under a lock and always whole."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segnas.errors import IncompatibleError, RequirementError
from segnas.export.tensorrt_errors import require_step
from segnas.files import write_bytes, write_error
from segnas.tensorrt_api import Api


def use_cache(api: Api, config: Any, path: Path) -> str:
    """Give the builder what the file holds, or an empty cache where there is none; the sha256 of what was given, or `new`.

    IncompatibleError where the file is of another GPU or release.
    """
    content = _read(path)
    since = api.log.mark()
    cache = require_step(api, f"read the timing cache {path}", config.create_timing_cache(content), since)
    if not config.set_timing_cache(cache, False) or api.log.errors(since):
        raise IncompatibleError(
            f"the timing cache {path} is of another GPU or of another release than {api.title}: give another file with --timing-cache, or remove it"
        )
    return hashlib.sha256(content).hexdigest() if content else "new"


def keep_cache(api: Api, config: Any, path: Path) -> None:
    """Add what this build timed to the file: what another build put there meanwhile stays."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with _lock(path):
        content, since = _read(path), api.log.mark()
        if content:
            other = config.create_timing_cache(content)
            require_step(api, f"join the timing cache {path}", other is not None and cache.combine(other, False), since)
        write_bytes(path, bytes(require_step(api, "write its timing cache", cache.serialize(), since)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RequirementError(f"the timing cache {path} cannot be read: {error.strerror or error}; give another file with --timing-cache") from None


@contextmanager
def _lock(path: Path) -> Generator[None]:
    """Hold the file `PATH.lock` against other processes; it is left there, empty."""
    try:
        import fcntl
    except ImportError:
        raise RequirementError("timing caches are shared under a lock that this system does not have; leave --timing-cache out") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.with_name(f"{path.name}.lock").open("a")
    except OSError as error:
        raise write_error(path, error) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

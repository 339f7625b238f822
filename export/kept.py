"""What takes long to make, kept in files: behind its sha256, compressed. A folder that cannot be written is no error, a damaged file is absent."""

import hashlib
import zlib
from pathlib import Path

from segnas.errors import RequirementError
from segnas.files import write_bytes


def keep(path: Path, content: bytes) -> None:
    """Keep it."""
    try:
        write_bytes(path, hashlib.sha256(content).digest() + zlib.compress(content, 1))
    except RequirementError:
        return


def kept(path: Path) -> bytes | None:
    """What was kept; None where it is not there or is not, byte for byte, what was written: it is native code, and is loaded into this process."""
    try:
        stored = path.read_bytes()
        content = zlib.decompress(stored[32:])
    except (OSError, zlib.error):
        return None
    return content if hashlib.sha256(content).digest() == stored[:32] else None

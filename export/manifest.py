"""An engine on disk: the artefact, and beside it the manifest that says what it is, written last; neither is ever half there."""

import hashlib
import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segnas import __version__
from segnas.errors import IncompatibleError, InputError, VerificationError
from segnas.export.parity import require_parity
from segnas.export.precision import require_precision
from segnas.files import read_noun, sha256_of, write_bytes, write_noun
from segnas.report import Engine

SUFFIXES = {"onnx": ".onnx", "tensorrt": ".engine", "tensorrt-rtx": ".engine", "aotinductor": ".pt2"}


def write_engine(folder: Path, content: bytes, engine: Engine) -> Engine:
    """Write the artefact under `engine.file` into the folder, then its manifest beside it; its sha256 and size are filled in here.

    An engine that failed its parity check, or whose proof does not show its target's precision, is kept as `<file>.rejected`, without a manifest, and
    VerificationError is raised; what lay under the name before stays. InputError for a kind that is not there or a file name that is not its;
    RequirementError where the folder cannot be written.
    """
    if engine.kind not in SUFFIXES:
        raise InputError(f"engine kind {engine.kind!r} was given; allowed: {', '.join(SUFFIXES)}")
    if Path(engine.file).name != engine.file or Path(engine.file).suffix != SUFFIXES[engine.kind]:
        raise InputError(f"engine file {engine.file!r} was given; the name of a {SUFFIXES[engine.kind]} file is needed")
    path = folder / engine.file
    try:
        if engine.parity is not None:
            require_parity(engine.parity)
        require_precision(engine)
    except VerificationError:
        write_bytes(path.with_name(f"{path.name}.rejected"), content)
        raise
    written = replace(engine, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    if manifest_path(path).exists():
        manifest_path(path).unlink()
    write_bytes(path, content)
    write_noun(manifest_path(path), written)
    return written


def read_engine(path: Path) -> tuple[Engine, Path]:
    """The engine of an artefact or of its manifest, and the artefact's path, checked against each other.

    InputError where one of the two is missing or the manifest is no manifest; IncompatibleError where the artefact is not the one that was written.
    """
    manifest = path if path.suffix == ".json" else manifest_path(path)
    verb = "segnas build" if manifest.name.endswith(".engine.json") else "segnas export"
    if not manifest.exists():
        if manifest != path and not path.exists():
            raise InputError(f"{path} does not exist; give an engine (such as run/model.onnx) or its manifest, or make one with `{verb}`")
        raise InputError(f"{manifest} does not exist: {path.name} has no manifest, so its export did not end; run `{verb}` again")
    engine = read_noun(manifest, Engine)
    if Path(engine.file).name != engine.file:
        raise InputError(f"{manifest}: file is {engine.file!r}; the name of a file beside the manifest is needed")
    artefact = manifest.parent / engine.file
    if not artefact.is_file():
        raise InputError(f"{artefact} does not exist, but its manifest does; copy both, or run `{verb}` again")
    for field, built, found in (("bytes", engine.bytes, artefact.stat().st_size), ("sha256", engine.sha256, sha256_of(artefact))):
        if built != found:
            raise IncompatibleError(
                f"{artefact} is not the file that its manifest describes: {field} was {built} when it was built, {found} was found; "
                f"copy it again (as binary), or run `{verb}` again"
            )
    return engine, artefact


def manifest_path(artefact: Path) -> Path:
    """Where the manifest of an artefact lies."""
    return artefact.with_name(f"{artefact.name}.json")


def versions() -> tuple[tuple[str, str], ...]:
    """What was at work here, as sorted pairs of name and version; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "segnas": __version__}
    for package in ("torch", "onnx", "onnxscript", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return tuple(sorted(found.items()))

"""Package: what a `.pt2` file says of itself, read before any of its code is loaded.

A package is native code. To load it is to run it, with all rights of this process, so it is opened only where its sha256 is the one that was vouched
for (the manifest's, or the compiler's a moment ago), and only where it holds one compiled network and nothing else: no pickled weights or sample
inputs, which a loader might unpickle.
"""

import hashlib
import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from segnas.compiler import processor_digest
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.report import Port
from segnas.runtime.session import Specification, require_target
from segnas.target import Target

_MEMBERS = re.compile(
    r"[^/]+/(data/aotinductor/model/[^/]+\.(so|cpp|cubin|fatbin|ptx|json)|archive_format|archive_version|byteorder|\.data/(version|serialization_id))"
)
_METADATA = re.compile(r"[^/]+/data/aotinductor/model/[^/]+_metadata\.json")
_PORT = re.compile(r"(?P<name>\w+) (?P<dtype>\w+) (?P<shape>\d+(x\d+)*)")


@dataclass(frozen=True, slots=True)
class Package:
    """The bytes of a package that passed every check, and what goes in and comes out."""

    content: bytes
    specification: Specification
    architecture: str


def read_package(content: bytes, target: Target, sha256: str | None) -> Package:
    """The package, once it is certain that it is the one that was vouched for, and that it was compiled for this target on such a machine.

    InputError for what is no package of segnas's, or has no sha256 to go by; IncompatibleError for another one, or one for another target, torch or
    processor.
    """
    if sha256 is None:
        raise InputError(
            "a package of AOTInductor was given without its sha256; it is native code, and is opened only by its manifest: give the engine that "
            "`segnas export` wrote, with its .json beside it"
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IncompatibleError(f"the package's sha256 is not {sha256[:12]}: it is not the one that was written; run `segnas export` again")
    told = _told(content)
    specification = Specification(_port(told, "segnas.input"), _port(told, "segnas.output"))
    on_cuda = target.backend == "aotinductor-cuda"
    here = {"AOTI_DEVICE_KEY": "cuda" if on_cuda else "cpu", "segnas.torch": str(torch.__version__), "segnas.processor": processor_digest()}
    here |= {} if on_cuda else {"segnas.threads": str(target.threads)}
    differing = [f"{name.partition('.')[2] or 'device'} {told.get(name)!r}, not {value!r}" for name, value in here.items() if told.get(name) != value]
    if differing:
        raise IncompatibleError(
            f"the package was compiled for {'; '.join(differing)}: native code runs where it was compiled for; run `segnas export --runtime "
            f"{target.backend}` here"
        )
    _require_target(specification, target)
    return Package(content, specification, told.get("segnas.architecture", ""))


def load(package: Package, *, single_threaded: bool = False) -> Any:
    """The compiled network: its `run([image])` gives `[answer]`, tensors both. This runs the package's code.

    `single_threaded` leaves out the locks and events of the loader, which a CUDA graph cannot capture.
    """
    from torch._inductor import aoti_load_package  # pyright: ignore[reportPrivateUsage]

    with tempfile.TemporaryDirectory(prefix="segnas-package-") as folder, warnings.catch_warnings():  # a folder of this user alone
        warnings.filterwarnings("ignore", module=r"torch\.|copyreg")  # what torch deprecates of its own
        path = Path(folder) / "model.pt2"
        path.write_bytes(package.content)
        try:
            return aoti_load_package(str(path), run_single_threaded=single_threaded).loader
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise RequirementError(
                f"torch {torch.__version__} cannot load this package: {reason}; run `segnas export --runtime aotinductor` again"
            ) from error


def _told(content: bytes) -> Mapping[str, str]:
    """What the package's metadata say; InputError where there is more in it than one compiled network, or less."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            strange = [name for name in names if _MEMBERS.fullmatch(name) is None]
            if strange:
                raise InputError(f"the package holds {strange[0]!r}; one compiled network and nothing else is needed: run `segnas export` again")
            found = [json.loads(archive.read(name)) for name in names if _METADATA.fullmatch(name)]
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise InputError(f"this is no package of AOTInductor ({error}); the file may be cut short: run `segnas export` again") from None
    for told in found:
        if isinstance(told, dict) and "segnas.input" in told:
            return {str(name): str(value) for name, value in cast(dict[object, object], told).items()}
    raise InputError("the package does not say what it reads and gives, so segnas did not make it; run `segnas export --runtime aotinductor`")


def _port(told: Mapping[str, str], name: str) -> Port:
    match = _PORT.fullmatch(told.get(name, ""))
    if match is None:
        raise InputError(f"the package's {name} is {told.get(name)!r}; a name, a type and a shape are needed: run `segnas export` again")
    return Port(match["name"], match["dtype"], tuple(map(int, match["shape"].split("x"))))


def _require_target(specification: Specification, target: Target) -> None:
    require_target(specification, target)
    gives = specification.output
    kind = "uint8" if target.output_contract == "labels" else {"fp32": "float32", "fp16": "float16"}[target.precision]
    if (gives.name, gives.dtype) != (target.output_contract, kind):
        raise InputError(f"the engine gives {gives}; the target's output is {target.output_contract!r} as {kind}: export with that output")

"""Verifying: an engine's file, its manifest and this machine against each other, before anything of the engine is opened; and by running it."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from segnas.building import layers_path, source_of
from segnas.data import Dataset
from segnas.engine_checks import PARITY, PRECISION, compared, inspected, inspector_text, require_precision, seeded_images
from segnas.errors import IncompatibleError, InputError, RequirementError, SegnasError, VerificationError
from segnas.export.check import checked_onnx
from segnas.export.layers import shares_text
from segnas.export.manifest import manifest_path, read_engine
from segnas.export.tensorrt_graph import readable_graph
from segnas.files import read_noun, write_noun, write_text
from segnas.fitting import GPU, Outcome, fit_checks
from segnas.report import Engine
from segnas.runtime.session import open_session

RUN = "run"


@dataclass(frozen=True, slots=True)
class Verified:
    """An engine, its artefact, every outcome, and the command that makes it anew."""

    engine: Engine
    path: Path
    outcomes: tuple[Outcome, ...]
    command: str

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The checks that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def misfits(self) -> tuple[Outcome, ...]:
        """Of these, what is wrong with the file or this machine, so that the engine must not be opened here."""
        return tuple(outcome for outcome in self.failures if outcome.check not in (PARITY, PRECISION, RUN))


def verify_engine(path: Path) -> Verified:
    """Compare file, manifest and this machine; nothing of the engine is opened. `path` is the artefact or its manifest.

    InputError where one of the two is missing or no such file.
    """
    engine, artefact, whole = _files(path)
    if whole.status == "failed":
        return Verified(
            engine, artefact, (whole, Outcome("this machine", "not checked", "the file is not the one that the manifest is about")), _again(engine)
        )
    checks = {"onnx": _onnx_checks, "aotinductor": _package_checks}.get(engine.kind, fit_checks)
    return Verified(engine, artefact, (whole, *checks(engine, artefact), *_recorded(engine)), _again(engine))


def run_engine(path: Path, *, dataset: Dataset | None = None) -> Verified:
    """Verify, then run: one that TensorRT built is opened on its GPU, compared with the ONNX file that it was built from, and inspected; its manifest
    is written anew with what was found. Any other is opened and answers one image.

    An engine that does not fit this machine is not opened. VerificationError where parity or precision fail; the manifest says so too.
    """
    found = verify_engine(path)
    if found.misfits:
        return found
    engine, artefact = found.engine, found.path
    if engine.kind in ("onnx", "aotinductor"):
        return Verified(engine, artefact, (*found.outcomes, _answers(engine, artefact)), found.command)
    gpu = next(outcome for outcome in found.outcomes if outcome.check == GPU)
    if gpu.status != "passed":
        raise RequirementError(f"{artefact} cannot be run here: {gpu.detail}; run this command on a machine with that GPU")
    source = source_of(artefact, engine)
    if source is None:
        raise InputError(
            f"the ONNX file that {artefact.name} was built from ({dict(engine.build).get('onnx', '?')}, sha256 {engine.source_sha256[:12]}) does "
            "not lie beside it; copy it there, and run this command again"
        )
    proved = _proved(engine, artefact, source, dataset)
    require_precision(proved.precision[0], proved.target.precision)
    if proved.parity is not None and not proved.parity.passed:
        raise VerificationError(f"{artefact}: {_parity(proved)}; build it again at a higher precision: {found.command}")
    return verify_engine(artefact)


def require_verified(found: Verified) -> None:
    """IncompatibleError naming every check that does not fit, what the engine was built with, what is here, and the command that makes it anew;
    VerificationError where it fits, and parity or precision failed.
    """
    if found.failures:
        told = "; ".join(f"{outcome.check}: {outcome.detail}" for outcome in found.misfits or found.failures)
        if found.misfits:
            raise IncompatibleError(f"{found.path} does not fit: {told}; make it anew where it is to run: {found.command}")
        raise VerificationError(f"{found.path} failed: {told}; make it anew: {found.command}")


def _files(path: Path) -> tuple[Engine, Path, Outcome]:
    """Manifest and artefact, and whether they belong together."""
    try:
        engine, artefact = read_engine(path)
    except IncompatibleError as error:
        manifest = path if path.suffix == ".json" else manifest_path(path)
        engine = read_noun(manifest, Engine)
        return engine, manifest.parent / engine.file, Outcome("file", "failed", str(error).partition("; ")[0])
    return engine, artefact, Outcome("file", "passed", f"{engine.bytes} bytes, sha256 {engine.sha256[:12]}, as in the manifest")


def _again(engine: Engine) -> str:
    """The command that makes such an engine."""
    usual = {"onnx": "segnas export --runtime onnxruntime", "aotinductor": "segnas export --runtime aotinductor"}
    return dict(engine.build).get("command") or usual.get(engine.kind, "segnas build")


def _proved(engine: Engine, artefact: Path, source: Path, dataset: Dataset | None) -> Engine:
    """Run and inspect, and write the manifest anew."""
    content, model = artefact.read_bytes(), _model(source)
    text = inspector_text(engine, content)
    proved = compared(inspected(engine, model, text), content, model, dataset=dataset)
    write_text(layers_path(artefact), text)
    write_noun(manifest_path(artefact), proved)
    return proved


def _model(source: Path) -> ModelProto:
    """The ONNX file as TensorRT reads it."""
    return readable_graph(checked_onnx(source.read_bytes(), folder=source.parent, tensorrt=False))[0]


# ---- ONNX files and packages


def _onnx_checks(engine: Engine, artefact: Path) -> Iterator[Outcome]:
    import onnxruntime

    built, found = engine.target.runtime_version, str(onnxruntime.__version__)
    if built == found:
        yield Outcome("release", "passed", f"onnxruntime {found}")
    else:
        yield Outcome("release", "not checked", f"its figures are onnxruntime {built}'s, here is {found}, which reads it too: --run tries it")
    provider = dict(engine.target.options).get("provider", "CPUExecutionProvider")
    available = onnxruntime.get_available_providers()
    ok = provider in available
    yield Outcome("provider", "passed" if ok else "failed", provider if ok else f"built with {provider}, here are {', '.join(available)}")
    try:
        checked_onnx(artefact.read_bytes(), folder=artefact.parent, tensorrt=False)
        yield Outcome("graph", "passed", "whole, its weights finite and all there")
    except InputError as error:
        yield Outcome("graph", "failed", str(error))


def _package_checks(engine: Engine, artefact: Path) -> Iterator[Outcome]:
    """What a package says of itself: torch, processor, threads; none of its code is loaded."""
    from segnas.runtime.package import read_package

    try:
        read_package(artefact.read_bytes(), engine.target, engine.sha256)
        yield Outcome("package", "passed", f"for torch {engine.target.runtime_version} and this processor")
    except (IncompatibleError, InputError) as error:
        yield Outcome("package", "failed", str(error))


def _answers(engine: Engine, artefact: Path) -> Outcome:
    """One image through the engine."""
    import numpy as np

    try:
        with closing(open_session(artefact, engine.target, sha256=engine.sha256)) as session:
            answer = session.run(seeded_images(session.specification.input, engine.target.height, engine.target.width, count=1)[0])
    except SegnasError as error:
        return Outcome(RUN, "failed", str(error))
    finite = bool(np.isfinite(answer.astype(np.float32)).all())
    return Outcome(RUN, "passed" if finite else "failed", f"{session.specification.output}{'' if finite else ' holds values that are not finite'}")


# ---- what the manifest says of earlier checks


def _recorded(engine: Engine) -> Iterator[Outcome]:
    if engine.parity is not None:
        yield Outcome(PARITY, "passed" if engine.parity.passed else "failed", _parity(engine))
    for unrun in engine.unrun:
        yield Outcome(unrun.check, "not checked", unrun.reason)
    if engine.precision and not any(unrun.check == PRECISION for unrun in engine.unrun):
        proof = engine.precision[0]
        try:
            require_precision(proof, engine.target.precision)
            yield Outcome(PRECISION, "passed", f"{shares_text(proof)} ({proof.source})")
        except VerificationError as error:
            yield Outcome(PRECISION, "failed", str(error))


def _parity(engine: Engine) -> str:
    found = engine.parity
    if found is None:
        return "not run"
    return (
        f"{100 * found.argmax_agreement:.4f} % of the pixels as {found.reference} has them, {100 * found.required_agreement:.2f} % are required, "
        f"over {found.images} images"
    )

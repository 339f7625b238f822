"""Exporting: a network and its weights as an engine on disk, with the proof that it computes the same; where export and runtime are joined."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from segnas import __version__
from segnas.data import NORMALISE_MEAN, NORMALISE_STD, Dataset, engine_input, read_image
from segnas.errors import IncompatibleError, InputError
from segnas.export.check import SIZES_KEY, checked_onnx, sizes_text
from segnas.export.contracts import input_shape
from segnas.export.graph import onnx_from_network
from segnas.export.manifest import SUFFIXES, versions, write_engine
from segnas.export.parity import require_parity
from segnas.export.precision import convolution_efforts, executed_proof, file_proof
from segnas.export.quantise import plan_of, quantised
from segnas.export.ranges import PERCENTILE, feature_ranges
from segnas.files import require_writable, sha256_of
from segnas.labels import IGNORE
from segnas.measuring import engine_from_network
from segnas.network import Network, weights_digest
from segnas.proving import REQUIRED_AGREEMENT, onnx_parity, spread, torch_parity, trial_images
from segnas.report import Calibrated, Engine, Parity, Port, PrecisionProof, Sizes
from segnas.runtime.onnxruntime_session import optimised_graph
from segnas.runtime.session import open_session
from segnas.target import Target

CALIBRATION_IMAGES = 64

READERS = ("onnxruntime", "tensorrt")
"""What an ONNX file may be written for."""


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """How an engine is exported, beyond its target.

    `name` is the file's stem (default `model`, `model.fp16`, `model.int8`); `output_size` (height, width) of the answer, the input's by default;
    `sizes` those that a dynamic engine takes, the best being the target's. int8 takes the ranges of its features from `calibration_images` of
    `calibration` and must agree in `min_agreement` of the pixels. `parity_images` 0 means `PARITY_IMAGES`. An ONNX file is written for its `reader`:
    what is fastest on ONNX Runtime's CPU is not always what TensorRT reads (`segnas.export.argmax`, `segnas.export.quantise`).
    """

    name: str = ""
    output_size: tuple[int, int] | None = None
    sizes: Sizes | None = None
    calibration: Dataset | None = None
    calibration_images: int = CALIBRATION_IMAGES
    reader: str = "onnxruntime"
    min_agreement: float = REQUIRED_AGREEMENT["int8"]
    parity_images: int = 0


@dataclass(frozen=True)
class _Made:
    """An engine's bytes and all that its manifest says because of them."""

    content: bytes
    parity: Parity
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    precision: tuple[PrecisionProof, ...] = ()
    calibrated: Calibrated | None = None
    build: tuple[tuple[str, str], ...] = ()


def export_engine(network: Network, target: Target, folder: Path, *, dataset: Dataset, settings: ExportSettings | None = None) -> Engine:
    """Write the engine of a network in evaluation mode and its manifest; parity on real images of `dataset` decides whether it stands.

    fp32 is compared with PyTorch; fp16 and int8 with their own fp32 ONNX, which is compared with PyTorch first. VerificationError where parity or the
    proof of precision fails, the artefact kept as `.rejected`; InputError, IncompatibleError or RequirementError, before anything is written, for
    what does not fit together.
    """
    settings = settings or ExportSettings()
    kind = "aotinductor" if target.runtime == "aotinductor" else "onnx"
    name = settings.name or ("model" if target.precision == "fp32" else f"model.{target.precision}")
    require_writable(folder / f"{name}{SUFFIXES[kind]}")
    _require(network, target, dataset, settings)
    classes = tuple(label.name for label in dataset.labels.classes)
    digest = weights_digest(network.state_dict())
    metadata = _metadata(network, target, classes, digest, settings)
    made = (_package if kind == "aotinductor" else _onnx)(network, target, metadata, dataset, settings)
    engine = Engine(
        file=f"{name}{SUFFIXES[kind]}",
        kind=kind,
        sha256="",
        bytes=0,
        target=target,
        architecture=network.architecture.digest,
        weights_sha256=digest,
        classes=classes,
        parity=made.parity,
        versions=versions(),
        inputs=made.inputs,
        outputs=made.outputs,
        sizes=settings.sizes,
        precision=made.precision,
        calibrated=made.calibrated,
        build=made.build,
    )
    return write_engine(folder, made.content, engine)


def _require(network: Network, target: Target, dataset: Dataset, settings: ExportSettings) -> None:
    architecture = network.architecture.require_segmentation()
    if network.training:
        raise InputError("the network is in training mode, where its normalisations follow the batch; call eval() first")
    if len(dataset.labels.classes) != architecture.classes:
        raise IncompatibleError(f"the architecture has {architecture.classes} classes, {dataset.name} has {len(dataset.labels.classes)}")
    if settings.sizes is not None and settings.sizes.best != (target.height, target.width):
        raise InputError(
            f"sizes {sizes_text(settings.sizes)} were given for a target of {target.height}x{target.width}, which must be the best of them"
        )
    if settings.reader not in READERS:
        raise InputError(f"an ONNX file for reader {settings.reader!r} was asked for; allowed: {', '.join(READERS)}")
    if target.runtime == "aotinductor" and (settings.sizes is not None or settings.output_size is not None):
        raise InputError("AOTInductor compiles for one size of input and output; leave --dynamic and --output-size out, or use --runtime onnxruntime")
    if target.precision != "int8":
        return
    images = settings.calibration
    if images is None or settings.calibration_images < 1 or not len(images):
        raise InputError("int8 needs calibration images, and none were given; 100 or more of the train split are good, at least 1 is needed")
    if (images.root, images.split) == (dataset.root, dataset.split):
        raise InputError(f"the {dataset.split} split was given both to calibrate and to prove the engine; calibrate on another one: train")


def _metadata(network: Network, target: Target, classes: tuple[str, ...], digest: str, settings: ExportSettings) -> dict[str, str]:
    """What the engine's file says of itself."""
    found = {
        "architecture": network.architecture.digest,
        "classes": ",".join(classes),
        "ignore_index": str(IGNORE),
        "input": target.input_contract,
        "mean": ",".join(map(str, NORMALISE_MEAN)),
        "output": target.output_contract,
        "precision": target.precision,
        "std": ",".join(map(str, NORMALISE_STD)),
        "tool": f"segnas {__version__}",
        "weights_sha256": digest,
    }
    return found if settings.sizes is None else {**found, SIZES_KEY: sizes_text(settings.sizes)}


def _package(network: Network, target: Target, metadata: Mapping[str, str], dataset: Dataset, settings: ExportSettings) -> _Made:
    """A package of AOTInductor, beside PyTorch."""
    content = engine_from_network(network, target, metadata=metadata)
    with closing(open_session(content, target, sha256=hashlib.sha256(content).hexdigest())) as session:
        ports = (session.specification.input,), (session.specification.output,)
    return _Made(content, torch_parity(network, content, target, trial_images(dataset, target, count=settings.parity_images)), *ports)


def _onnx(network: Network, target: Target, metadata: Mapping[str, str], dataset: Dataset, settings: ExportSettings) -> _Made:
    """An ONNX file, beside PyTorch or beside its own fp32 graph."""
    graph = partial(onnx_from_network, network, output_size=settings.output_size)
    written = replace(target, runtime=settings.reader)
    single = replace(written, precision="fp32")
    calibrated, build = None, {"reader": settings.reader}
    if target.precision == "int8":
        content, calibrated, made = _int8(graph(single, sizes=settings.sizes, metadata=metadata), target, settings)
        build |= made
    else:
        content = graph(written, sizes=settings.sizes, metadata=metadata)
    model = checked_onnx(content, folder=None, tensorrt=settings.reader == "tensorrt")
    found, beside = _judged(network, content, target, metadata, dataset, settings)
    proofs = _proofs(content, model, graph(single), target)
    reads, gives = ((_port(value),) for value in (model.graph.input[0], model.graph.output[0]))
    return _Made(content, found, reads, gives, proofs, calibrated, tuple(sorted((build | beside).items())))


def _judged(
    network: Network, content: bytes, target: Target, metadata: Mapping[str, str], dataset: Dataset, settings: ExportSettings
) -> tuple[Parity, dict[str, str]]:
    """The file beside PyTorch; one of lower precision beside its own fp32 ONNX, which must first agree with PyTorch."""
    trial = trial_images(dataset, target, count=settings.parity_images, sizes=settings.sizes)
    if target.precision == "fp32":
        return torch_parity(network, content, target, trial, settings.output_size), {}
    logits = replace(target, precision="fp32", output_contract="logits")
    told = {**metadata, "precision": "fp32", "output": "logits"}
    reference = onnx_from_network(network, logits, metadata=told, sizes=settings.sizes, output_size=settings.output_size)
    require_parity(torch_parity(network, reference, logits, trial_images(dataset, logits, sizes=settings.sizes), settings.output_size))
    required = settings.min_agreement if target.precision == "int8" else REQUIRED_AGREEMENT[target.precision]
    return onnx_parity(content, reference, target, trial, required)


def _proofs(content: bytes, model: ModelProto, single: bytes, target: Target) -> tuple[PrecisionProof, ...]:
    """What the file says of its precision, and what ONNX Runtime makes of it; `single` is the network's static fp32 graph."""
    efforts = convolution_efforts(ModelProto.FromString(single))
    executed = ModelProto.FromString(optimised_graph(content, target))
    source = f"the graph that onnxruntime {onnxruntime.__version__} executes on the CPU"
    return file_proof(model, efforts, "the file"), executed_proof(executed, model, efforts, source)


def _int8(single: bytes, target: Target, settings: ExportSettings) -> tuple[bytes, Calibrated, dict[str, str]]:
    """The int8 graph of an fp32 one, what it was calibrated on, and how."""
    assert settings.calibration is not None
    model = ModelProto.FromString(single)
    plan = plan_of(model, signed=settings.reader == "tensorrt")
    calibrated, images = _calibration(settings.calibration, settings.calibration_images, target)
    made = quantised(model, plan, feature_ranges(model, plan.features, images, threads=target.threads))
    build = {
        "calibration": f"{PERCENTILE}th percentile of an image's magnitudes, largest over {len(calibrated.images)} images",
        "features": "int8" if settings.reader == "tensorrt" else "uint8",
    }
    return made.SerializeToString(deterministic=True), calibrated, build


def _calibration(dataset: Dataset, count: int, target: Target) -> tuple[Calibrated, Iterator[NDArray[Any]]]:
    """Evenly spread images of the split, by name and content, and as the engine reads them."""
    samples = [dataset.samples[index] for index in spread(len(dataset), count)]
    listed = hashlib.sha256("".join(f"{sample.name} {sha256_of(sample.image)}\n" for sample in samples).encode())
    calibrated = Calibrated(dataset.name, dataset.split, tuple(sample.name for sample in samples), listed.hexdigest())
    images = (engine_input(read_image(sample.image), target.input_contract, target.height, target.width) for sample in samples)
    return calibrated, (np.repeat(image, target.batch, axis=0) for image in images)


def _port(value: ValueInfoProto) -> Port:
    """An input or output of the file; a side that may vary is -1."""
    sides = tuple(side if isinstance(side, int) else -1 for side in input_shape(value))
    return Port(value.name, helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name, sides)

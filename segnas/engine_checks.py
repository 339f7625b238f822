"""Proving: an engine that TensorRT built, run on its GPU beside the ONNX file that it was built from, and what its inspector says of precision."""

from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from segnas.data import Dataset, engine_input
from segnas.errors import InputError, RequirementError, VerificationError
from segnas.export.layers import onnx_layers, proof_of, shares_text
from segnas.export.parity import parity
from segnas.export.tensorrt_build import SMOKE_TEST
from segnas.export.tensorrt_graph import logits_graph
from segnas.export.tensorrt_inspect import inspected_layers, opened, told_by_inspector
from segnas.report import Engine, Parity, Port, PrecisionProof, Unrun
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.processor import available_cores
from segnas.runtime.session import open_session
from segnas.tensorrt_api import open_api

REQUIRED_AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.97}
"""Least share of pixels with the class that ONNX Runtime gives on the same file (fp32 and fp16 as an export's; int8 is our choice)."""

SEEDED_IMAGES = 8
REAL_IMAGES = 4
GRAPH = "the graph that it was built from"
PARITY, PRECISION = "parity", "precision"


def inspected(engine: Engine, model: ModelProto, text: str) -> Engine:
    """The engine with the precision that the inspector's JSON tells, before the graph's; where it tells none, the check stays unrun with the reason.

    `model` is the ONNX file that it was built from, as TensorRT reads it (`readable_graph`).
    """
    graph = graph_proof(model, engine)
    left = tuple(each for each in engine.unrun if each.check not in (PRECISION, SMOKE_TEST))
    try:
        layers = inspected_layers(text, onnx_layers(model, engine.sizes))
    except InputError as error:
        return replace(engine, precision=(graph,), unrun=(*left, Unrun(PRECISION, f"from the graph; {error}")))
    source = f"engine inspector of {engine.kind} {engine.target.runtime_version}"
    return replace(engine, precision=(proof_of(layers, source), graph), unrun=left)


def inspector_text(engine: Engine, content: bytes) -> str:
    """Open the engine on the GPU here, and let the inspector speak; errors of `opened`."""
    api = open_api(engine.kind)
    return told_by_inspector(api, opened(api, content, host_code=dict(engine.build).get("version_compatible") == "on"), engine.sizes)


def compared(engine: Engine, content: bytes, model: ModelProto, *, dataset: Dataset | None = None) -> Engine:
    """The engine with its parity with ONNX Runtime on the same graph, over seeded images and the first of the dataset; errors of `open_session`."""
    left = tuple(each for each in engine.unrun if each.check != PARITY)
    return replace(engine, parity=_parity(engine, content, model, dataset), unrun=left)


def graph_proof(model: ModelProto, engine: Engine) -> PrecisionProof:
    """The precision of the graph: what the engine is told to compute with."""
    return proof_of(onnx_layers(model, engine.sizes), GRAPH)


def require_precision(proof: PrecisionProof, precision: str) -> None:
    """VerificationError where what is called fp16 does less than half of its work in fp16 or int8, or what is called int8 none of it in int8."""
    half, integer = proof.share("fp16") + proof.share("int8"), proof.share("int8")
    if (precision == "fp16" and half < 0.5) or (precision == "int8" and integer == 0.0):
        raise VerificationError(
            f"the engine is called {precision}, and of its multiply-accumulates run, by {proof.source}: {shares_text(proof)}; export it again with "
            f"`segnas export --precision {precision}`, and build from that file"
        )


def _parity(engine: Engine, content: bytes, model: ModelProto, dataset: Dataset | None) -> Parity:
    height, width = (engine.target.height, engine.target.width) if engine.sizes is None else engine.sizes.best
    target = replace(
        cpu_target(height, width, available_cores(), output_contract="logits", batch=engine.target.batch), precision=engine.target.precision
    )
    logits = open_session(logits_graph(model).SerializeToString(deterministic=True), target)
    with closing(logits) as reference, closing(open_session(content, engine.target, sha256=engine.sha256)) as candidate:
        contract = engine.target.input_contract
        images: list[NDArray[Any]] = seeded_images(candidate.specification.input, height, width)
        if dataset is not None:
            images += [engine_input(dataset.read(index)[0], contract, height, width) for index in range(min(REAL_IMAGES, len(dataset)))]
        return parity(
            lambda image: np.asarray(reference.run(image), np.float32),
            candidate.run,
            images,
            output_contract=engine.target.output_contract,
            required_agreement=REQUIRED_AGREEMENT[engine.target.precision],
            reference_name=f"onnxruntime {target.runtime_version} on the same ONNX file",
        )


def seeded_images(port: Port, height: int, width: int, count: int = SEEDED_IMAGES) -> list[NDArray[Any]]:
    """Random images as an engine of that input reads them: normalised (N, C, height, width), or uint8 (N, height, width, C).

    Noise over slow changes, so that neighbours are alike, as in pictures.
    """
    batch, channels = port.shape[0], port.shape[3 if port.dtype == "uint8" else 1]
    images: list[NDArray[Any]] = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        coarse = draw.standard_normal((batch, channels, -(-height // 16), -(-width // 16)), dtype=np.float32)
        slow = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, :height, :width]
        image = slow + 0.1 * draw.standard_normal(slow.shape, dtype=np.float32)
        if port.dtype == "uint8":
            image = np.clip(128 + 60 * image.transpose(0, 2, 3, 1), 0, 255)
        images.append(np.ascontiguousarray(image, port.dtype))
    return images


def reason_of(error: RequirementError | InputError) -> str:
    """Why something could not be run, as `Unrun` keeps it."""
    return str(error).partition(";")[0]

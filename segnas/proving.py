"""Proving: real images through an engine and through what it was made from, which decides whether the engine stands."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from segnas.data import Dataset, engine_input, normalise, read_image
from segnas.export.parity import Run, Truths, parity
from segnas.export.rounding import rounded_logits
from segnas.network import Network
from segnas.ops import resized
from segnas.report import Parity, Sizes
from segnas.runtime.session import open_session
from segnas.target import Target

PARITY_IMAGES = {"fp32": 4, "fp16": 16, "int8": 16}
"""How many images prove an engine; of a lower precision more, as an mIoU over a few of them is worth little (our choice)."""

REQUIRED_AGREEMENT = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.97}
"""The least share of pixels with the same class; int8's is a default."""


@dataclass(frozen=True)
class Trial:
    """The images that an engine is proven on, as it reads them, and their ground truth where they have one."""

    images: Sequence[NDArray[Any]]
    truths: Truths


def trial_images(dataset: Dataset, target: Target, *, count: int = 0, sizes: Sizes | None = None) -> Trial:
    """Evenly spread images of the dataset, `PARITY_IMAGES` by default; of a dynamic engine also one at the least and one at the largest size."""
    indices = spread(len(dataset), count or PARITY_IMAGES[target.precision])
    pairs = [dataset.read(i) if dataset.samples[i].label is not None else (read_image(dataset.samples[i].image), None) for i in indices]
    wanted = [(image, (target.height, target.width)) for image, _ in pairs]
    if sizes is not None:
        wanted += [(pairs[0][0], sizes.least), (pairs[0][0], sizes.most)]
    ids = [truth for _, truth in pairs] + [None] * (len(wanted) - len(pairs))
    return Trial([engine_input(image, target.input_contract, *size) for image, size in wanted], Truths(dataset.labels, ids))


def spread(available: int, count: int) -> list[int]:
    """At most `count` indices from the first to the last, evenly spread."""
    chosen = min(available, count)
    return sorted({round(index * (available - 1) / max(1, chosen - 1)) for index in range(chosen)})


def torch_parity(network: Network, content: bytes, target: Target, trial: Trial, output_size: tuple[int, int] | None = None) -> Parity:
    """An fp32 engine beside PyTorch."""
    with ExitStack() as stack:
        return parity(
            _torch_logits(network, target, output_size),
            _opened(content, target, stack),
            trial.images,
            output_contract=target.output_contract,
            required_agreement=REQUIRED_AGREEMENT["fp32"],
            reference_name=f"torch {torch.__version__}",
            truths=trial.truths,
        )


def onnx_parity(content: bytes, reference: bytes, target: Target, trial: Trial, required: float) -> tuple[Parity, dict[str, str]]:
    """An ONNX file of lower precision beside its own fp32 ONNX, which gives logits.

    A half one is judged as if it were computed in half, since ONNX Runtime's CPU computes it in float32; how it agrees as executed is told beside.
    """
    name = f"its own fp32 ONNX on onnxruntime {onnxruntime.__version__}"
    with ExitStack() as stack:
        logits = _opened(reference, replace(target, precision="fp32", output_contract="logits"), stack)

        def compared(candidate: Run, contract: str, against: str) -> Parity:
            return parity(
                logits,
                candidate,
                trial.images,
                output_contract=contract,
                required_agreement=required,
                reference_name=against,
                truths=trial.truths,
            )

        executed = compared(_opened(content, target, stack), target.output_contract, name)
        if target.precision != "fp16" or not executed.passed:
            return executed, {}
        half = _opened(rounded_logits(content), replace(target, output_contract="logits"), stack)
        rounded = compared(half, "logits", f"{name}, each value between two nodes rounded to half")
        return rounded, {"agreement_as_executed": f"{executed.argmax_agreement:.6f}"}


def _opened(content: bytes, target: Target, stack: ExitStack) -> Run:
    """Runs the engine, opened for the size of each image that comes; of a batch each image has another place, with its mirror image in the others."""
    sessions: dict[tuple[int, int], Run] = {}
    places = cycle(range(target.batch))
    sha256, first = hashlib.sha256(content).hexdigest(), 1 if target.input_contract == "image" else 2

    def run(image: NDArray[Any]) -> NDArray[Any]:
        size = (int(image.shape[first]), int(image.shape[first + 1]))
        if size not in sessions:
            made = open_session(content, replace(target, height=size[0], width=size[1]), sha256=sha256)
            sessions[size] = stack.enter_context(closing(made)).run
        place = next(places)
        batch = np.repeat(np.flip(image, first + 1), target.batch, axis=0)
        batch[place] = image[0]
        return sessions[size](batch)[place : place + 1]

    return run


def _torch_logits(network: Network, target: Target, output_size: tuple[int, int] | None) -> Run:
    """Logits (N, C, h, w) of PyTorch for what the engine reads, at the engine's output size."""
    last = network.architecture.nodes[-1]
    resizes = last.op == "resize"

    def run(image: NDArray[Any]) -> NDArray[np.float32]:
        tensor = torch.from_numpy(normalise(image) if target.input_contract == "image" else image)
        with torch.inference_mode():
            if output_size is None:
                return cast(NDArray[np.float32], network(tensor).numpy())
            logits, kept = network.features(tensor, last.inputs)
            source, corners = (kept[last.inputs[0]], bool(last.kind["align_corners"])) if resizes else (logits, False)
            return cast(NDArray[np.float32], resized(source, output_size, corners).numpy())

    return run

"""Exporting: a network and its weights as an engine on disk, with the proof that it computes the same; where export and runtime are joined."""

import hashlib
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from segnas import __version__
from segnas.data import Dataset, network_input
from segnas.errors import IncompatibleError
from segnas.export.manifest import SUFFIXES, versions, write_engine
from segnas.export.parity import parity
from segnas.files import require_writable
from segnas.measuring import engine_from_network
from segnas.network import Network, weights_digest
from segnas.report import Engine
from segnas.runtime.session import open_session
from segnas.target import Target

PARITY_IMAGES = 4


def export_engine(network: Network, target: Target, folder: Path, *, dataset: Dataset) -> Engine:
    """Write `model.onnx` (`model.pt2` for AOTInductor) and its manifest; parity with PyTorch on real images decides whether it stands."""
    kind = "aotinductor" if target.runtime == "aotinductor" else "onnx"
    require_writable(folder / f"model{SUFFIXES[kind]}")
    architecture = network.architecture.require_segmentation()
    classes = tuple(label.name for label in dataset.labels.classes)
    if len(classes) != architecture.classes:
        raise IncompatibleError(f"the architecture has {architecture.classes} classes, {dataset.name} has {len(classes)}")
    digest = weights_digest(network.state_dict())
    metadata = {"classes": ",".join(classes), "architecture": architecture.digest, "weights_sha256": digest, "tool": f"segnas {__version__}"}
    content = engine_from_network(network, target, metadata=metadata)
    images = [network_input(dataset.read(index)[0], target.height, target.width) for index in range(min(PARITY_IMAGES, len(dataset)))]

    def reference(image: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    with closing(open_session(content, target, sha256=hashlib.sha256(content).hexdigest())) as session:
        result = parity(reference, session.run, images, output_contract=target.output_contract, reference_name=f"torch {torch.__version__}")
        specification = session.specification
    engine = Engine(
        file=f"model{SUFFIXES[kind]}",
        kind=kind,
        sha256="",
        bytes=0,
        target=target,
        architecture=architecture.digest,
        weights_sha256=digest,
        classes=classes,
        parity=result,
        versions=versions(),
        inputs=(specification.input,),
        outputs=(specification.output,),
    )
    return write_engine(folder, content, engine)

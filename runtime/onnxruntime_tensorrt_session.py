"""ONNX Runtime's TensorRT provider: the ONNX file itself, given whole to TensorRT, which builds its engine when the session is opened.

Opening takes as long as a build (minutes, twice: once under the profiler, once for timing); a timing cache in the temporary folder serves the second.
onnxruntime-gpu up to 1.31 is built for TensorRT 10 (it loads libnvinfer.so.10); where that is missing ONNX Runtime would fall to another provider,
which is an error here. Options and their spelling: onnxruntime.ai, TensorRT execution provider. Tested on a simulated provider only.
"""

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segnas.runtime.onnxruntime_cuda_session import OnnxRuntimeCudaSession
from segnas.runtime.onnxruntime_cuda_target import CudaFacts, Provider, onnxruntime_cuda_target
from segnas.target import TENSORRT_PROVIDER, Target


def _asked(chosen: Mapping[str, str], precision: str, graph: bool) -> dict[str, str]:
    told = {True: "True", False: "False"}
    return {
        "device_id": "0",
        "trt_builder_optimization_level": chosen["level"],
        "trt_cuda_graph_enable": told[graph],
        "trt_engine_cache_enable": "False",
        "trt_fp16_enable": told[precision == "fp16"],
        "trt_int8_enable": told[precision == "int8"],
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": _timings().name,
    }


TENSORRT = Provider(
    TENSORRT_PROVIDER,
    "onnxruntime-tensorrt",
    {
        "graph": ("on", "off"),
        "level": ("3", "0", "1", "2", "4", "5"),
        "optimisation": ("all", "extended", "basic", "none"),
        "provider": (TENSORRT_PROVIDER,),
    },
    _asked,
    "TensorRT 10 (libnvinfer.so.10), CUDA and cuDNN of the versions that onnxruntime-gpu was built for",
)


@functools.cache
def _timings() -> tempfile.TemporaryDirectory[str]:
    """A folder for this process's timing cache: one of another GPU or TensorRT would be refused or, worse, believed."""
    return tempfile.TemporaryDirectory(prefix="segnas-timings-")


def onnxruntime_tensorrt_target(
    height: int,
    width: int,
    *,
    precision: str = "fp32",
    input_contract: str = "normalised",
    output_contract: str = "labels",
    batch: int = 1,
    scope: str = "gpu",
) -> Target:
    """The target that this machine's CUDA device is by that provider; RequirementError where device or provider is missing."""
    return onnxruntime_cuda_target(
        height,
        width,
        precision=precision,
        input_contract=input_contract,
        output_contract=output_contract,
        batch=batch,
        scope=scope,
        provider=TENSORRT,
    )


def open_onnxruntime_tensorrt(
    content: bytes, target: Target, sha256: str | None = None, path: Path | None = None, *, runtime: Any = None, facts: CudaFacts | None = None
) -> OnnxRuntimeCudaSession:
    """An ONNX engine on the CUDA device here, by TensorRT. Errors are those of `open_onnxruntime_cuda`; a node that TensorRT does not take is one."""
    if runtime is None:
        import onnxruntime as runtime
    return OnnxRuntimeCudaSession(content, target, provider=TENSORRT, runtime=runtime, facts=facts)

"""PyTorch on a CUDA device: the network itself, in the target's precision and channels last, as a session of `cuda_graph_session`.

What is captured is what runs: from the image, float32 (N, C, H, W) normalised, over the change to the target's precision and to channels last, to
`labels`, uint8 (N, H, W), or `logits`, (N, classes, H, W) in that precision. Normalisations are folded into convolutions, as in every exported
engine.
"""

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from segnas.errors import InputError
from segnas.runtime.cuda_device import CudaDevice, DeviceLayer, arithmetic, memory_errors
from segnas.runtime.cuda_graph_session import CudaGraphSession
from segnas.runtime.gpu_samples import UnsteadyWarning
from segnas.runtime.requirements import chosen_options, defaults, require_fields, require_here
from segnas.runtime.targets import target_on_device
from segnas.target import Target

__all__ = ["UnsteadyWarning", "folded", "open_torch", "torch_target"]

OPTIONS = {"batchnorm": ("folded",), "benchmark": ("on", "off"), "graph": ("on",), "layout": ("channels_last",), "tf32": ("off", "on")}
MOST_CLASSES = 256
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_FIELDS = {"runtime": ("torch",), "precision": tuple(_DTYPES), "input_contract": ("normalised",), "scope": ("gpu", "end_to_end")}


def torch_target(
    height: int,
    width: int,
    *,
    precision: str = "fp16",
    output_contract: str = "labels",
    batch: int = 1,
    scope: str = "gpu",
    device: DeviceLayer | None = None,
) -> Target:
    """The target that this machine's CUDA device is, with torch as installed; RequirementError where there is none."""
    device = device or cuda_device()
    target = target_on_device(
        device.name,
        "torch",
        device.version,
        height,
        width,
        precision=precision,
        output_contract=output_contract,
        batch=batch,
        scope=scope,
        options={**defaults(OPTIONS), **dict(device.libraries)},
    )
    _chosen_options(target, device)
    return target


def open_torch(module: nn.Module, input_channels: int, target: Target, device: DeviceLayer | None = None) -> CudaGraphSession:
    """A copy of the module, captured and ready, for images (N, input_channels, H, W) of the target's size; the module stays as it is.

    InputError for a target or module that this runtime does not run, IncompatibleError for a target of another device or version, RequirementError
    without a CUDA device or memory, VerificationError where the captured graph does not compute what the module does.
    """
    device = device or cuda_device()
    chosen = _chosen_options(target, device)
    with memory_errors(), arithmetic(benchmark=chosen["benchmark"] == "on", tf32=chosen["tf32"] == "on"), torch.no_grad():
        network = device.place(folded(module), _DTYPES[target.precision])
        return CudaGraphSession(_answering(network, target), input_channels, target, device)


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in which each convolution of a `Sequential` has taken in the normalisation right behind it."""
    copied = copy.deepcopy(module).eval()
    for chain in [part for part in copied.modules() if isinstance(part, nn.Sequential)]:
        for index in range(len(chain) - 1):
            convolution, normalisation = chain[index], chain[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
                chain[index], chain[index + 1] = fuse_conv_bn_eval(convolution, normalisation), nn.Identity()
    return copied


@functools.cache
def cuda_device() -> CudaDevice:
    """The CUDA device of this process, with one stream for all sessions; RequirementError where there is none."""
    return CudaDevice()


def _answering(network: nn.Module, target: Target) -> Callable[[Tensor], Tensor]:
    """From the image to logits in the target's precision, or to their argmax."""
    labels, dtype = target.output_contract == "labels", _DTYPES[target.precision]

    def answer(image: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, H, W) uint8, or (N, classes, H, W)."""
        logits = network(image.to(dtype=dtype, memory_format=torch.channels_last))
        if logits.dim() != 4 or logits.shape[0] != image.shape[0] or (labels and logits.shape[1] > MOST_CLASSES):
            raise InputError(
                f"the network gives {'x'.join(map(str, logits.shape))} for input float32 {'x'.join(map(str, image.shape))}; (N, classes, H, W) is "
                f"needed, with at most {MOST_CLASSES} classes for output 'labels'"
            )
        return logits.argmax(dim=1).to(torch.uint8) if labels else logits

    return answer


def _chosen_options(target: Target, device: DeviceLayer) -> dict[str, str]:
    """The target's options over our defaults, once it is certain that this session can be that target."""
    require_fields(target, "torch", _FIELDS)
    libraries = dict(device.libraries)
    require_here(target, device.name, device.version, libraries)
    return chosen_options(target, "torch", OPTIONS, libraries)

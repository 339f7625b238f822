"""What a session asks for in common of a target: this machine's processor, or its CUDA device, with a runtime as installed."""

from collections.abc import Mapping

from segnas.errors import InputError
from segnas.runtime.processor import available_cores, device_name
from segnas.target import Target


def target_on_processor(
    runtime: str,
    version: str,
    height: int,
    width: int,
    *,
    threads: int,
    output_contract: str,
    batch: int,
    options: Mapping[str, str],
    precision: str = "fp32",
    input_contract: str = "normalised",
) -> Target:
    """This machine's CPU by that runtime; InputError for more threads than there are cores to run on."""
    cores = available_cores()
    if not 1 <= threads <= cores:
        raise InputError(f"{threads} threads were asked for; 1 to {cores} are allowed here (more threads than cores run up to 1.85x slower)")
    return Target(
        device_name(),
        runtime,
        version,
        precision,
        height,
        width,
        batch=batch,
        threads=threads,
        input_contract=input_contract,
        output_contract=output_contract,
        options=tuple(sorted(options.items())),
    )


def target_on_device(
    device: str,
    runtime: str,
    version: str,
    height: int,
    width: int,
    *,
    precision: str,
    output_contract: str,
    batch: int,
    scope: str,
    options: Mapping[str, str],
    input_contract: str = "normalised",
) -> Target:
    """That CUDA device by that runtime."""
    return Target(
        device,
        runtime,
        version,
        precision,
        height,
        width,
        batch=batch,
        input_contract=input_contract,
        output_contract=output_contract,
        scope=scope,
        options=tuple(sorted(options.items())),
    )

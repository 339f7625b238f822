"""Target: everything that a millisecond depends on."""

from dataclasses import dataclass, fields

from segnas.errors import InputError

RUNTIMES = ("onnxruntime", "torch", "tensorrt", "tensorrt-rtx", "aotinductor")
PRECISIONS = ("fp32", "fp16", "int8")
INPUT_CONTRACTS = ("normalised", "image")
OUTPUT_CONTRACTS = ("labels", "logits")
CPU_BACKENDS = ("onnxruntime", "aotinductor")
GPU_BACKENDS = ("torch", "aotinductor-cuda", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
"""What can be profiled and opened, named as `Target.backend` is: on the CPU, and on a CUDA device."""

CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
SCOPES = ("end_to_end", "gpu", "pipeline")


@dataclass(frozen=True, slots=True)
class Target:
    """A device, the software on it and the way that it is asked: two targets are equal, or their numbers do not mix.

    `height` and `width` are the input's, in pixels. `options` are sorted pairs of text: optimisation level, spinning, TF32, graph replay.
    """

    device: str
    runtime: str
    runtime_version: str
    precision: str
    height: int
    width: int
    batch: int = 1
    threads: int = 1
    input_contract: str = "normalised"
    output_contract: str = "labels"
    scope: str = "end_to_end"
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("runtime", self.runtime, RUNTIMES),
            ("precision", self.precision, PRECISIONS),
            ("input_contract", self.input_contract, INPUT_CONTRACTS),
            ("output_contract", self.output_contract, OUTPUT_CONTRACTS),
            ("scope", self.scope, SCOPES),
        ):
            if value not in allowed:
                raise InputError(f"target {name} was given {value!r}; allowed: {', '.join(allowed)}")
        for name, number in (("height", self.height), ("width", self.width), ("batch", self.batch), ("threads", self.threads)):
            if number < 1:
                raise InputError(f"target {name} was given {number}; at least 1 is needed")
        names = [name for name, _ in self.options]
        if names != sorted(set(names)):
            raise InputError(f"target options {self.options} must be sorted and name each option once")

    @property
    def backend(self) -> str:
        """What the command line calls the runtime: `runtime`, with `-cuda` where ONNX Runtime or AOTInductor run on a CUDA device, and `-tensorrt`
        where ONNX Runtime does so by its TensorRT provider.
        """
        options = dict(self.options)
        if self.runtime == "onnxruntime":
            return self.runtime + {CUDA_PROVIDER: "-cuda", TENSORRT_PROVIDER: "-tensorrt"}.get(options.get("provider", ""), "")
        return f"{self.runtime}-cuda" if options.get("device") == "cuda" else self.runtime

    def differences(self, other: "Target") -> tuple[tuple[str, object, object], ...]:
        """The fields in which two targets differ: (field, here, there)."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return tuple((name, here, there) for name, here, there in pairs if here != there)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.scope != "gpu" else ""
        return f"{self.device}, {self.runtime} {self.runtime_version} {self.precision}, {self.height}x{self.width}, batch {self.batch}{threads}"


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from `HEIGHTxWIDTH`."""
    height, cross, width = text.lower().partition("x")
    if not cross or not height.isdecimal() or not width.isdecimal() or int(height) < 1 or int(width) < 1:
        raise InputError(f"size {text!r} was given; it is written HEIGHTxWIDTH, such as 512x1024")
    return int(height), int(width)

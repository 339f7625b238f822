"""The pipeline: every step is timed, pictures are taken in turn, and the labels are those of the engine."""

import dataclasses
import time

import numpy as np
import pytest

from segnas.data import network_input
from segnas.errors import InputError
from segnas.report import Port
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.scopes import STEPS, PipelineSession, require_scope, scopes_of
from segnas.runtime.session import Session, Specification
from segnas.target import CUDA_PROVIDER, Target


class Recorder:
    """A session that keeps what it is given."""

    def __init__(self, batch: int = 1, output: str = "labels") -> None:
        self.target = cpu_target(6, 10, batch=batch, output_contract=output)
        shape = (1, 6, 10) if output == "labels" else (1, 4, 6, 10)
        self.specification = Specification(Port("input", "float32", (1, 3, 6, 10)), Port(output, "uint8" if output == "labels" else "float32", shape))
        self.seen: list[np.ndarray] = []
        self.closed = False
        self.warnings = ("told",)

    def run(self, image):
        self.seen.append(image)
        time.sleep(0.002)
        return np.zeros(self.specification.output.shape, self.specification.output.dtype)

    def sample(self, runs):
        raise AssertionError("the pipeline runs pictures, not the fixed image")

    def close(self):
        self.closed = True


def picture(value: int) -> np.ndarray:
    return np.full((12, 20, 3), value, np.uint8)


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_pictures_go_through_in_turn_and_every_step_counts(output):
    inner, decoded = Recorder(output=output), list[int]()

    def decode(value):
        decoded.append(value)
        time.sleep(0.003)
        return picture(value)

    session: Session = PipelineSession(inner, [lambda: decode(1), lambda: decode(2)], "two greys")
    assert session.target == dataclasses.replace(inner.target, scope="pipeline")
    times = session.sample(5)
    assert decoded == [1, 2, 1, 2, 1]
    assert all(ms >= 5 for ms in times)
    assert all(np.array_equal(seen, network_input(picture(value), 6, 10)) for seen, value in zip(inner.seen, decoded, strict=True))
    conditions = dict(session.conditions)
    assert conditions["pictures"] == "2: two greys"
    steps = {step: float(conditions[f"{step}_ms"]) for step in STEPS}
    assert steps["decode"] >= 3
    assert steps["infer"] >= 2
    assert sum(steps.values()) == pytest.approx(sorted(times)[2], rel=0.5)
    assert session.warnings == ("told",)
    session.close()
    assert inner.closed


def test_what_cannot_be_timed_is_refused():
    with pytest.raises(InputError, match="no picture"):
        PipelineSession(Recorder(), [], "")
    with pytest.raises(InputError, match="batch 2"):
        PipelineSession(Recorder(batch=2), [lambda: picture(1)], "")


def test_which_scopes_there_are_depends_on_the_device():
    cpu = cpu_target(6, 10)
    gpu = Target("GPU", "tensorrt", "11.4.0.106", "fp16", 6, 10, scope="gpu")
    assert scopes_of(cpu) == ("end_to_end", "pipeline")
    assert scopes_of(gpu) == scopes_of(dataclasses.replace(cpu, options=(("provider", CUDA_PROVIDER),))) == ("gpu", "end_to_end", "pipeline")
    with pytest.raises(InputError, match="scope 'gpu' was asked for; 'onnxruntime' is timed end_to_end, pipeline"):
        require_scope("gpu", cpu)

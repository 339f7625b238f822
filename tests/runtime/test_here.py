"""An engine of another machine: which fields differ, and which of them may."""

import dataclasses

import pytest

from segnas.errors import IncompatibleError, RequirementError, UsageError
from segnas.runtime.here import differences, facts_here, target_here
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.processor import available_cores, device_name
from segnas.target import CUDA_PROVIDER, TENSORRT_PROVIDER, Target

HERE = cpu_target(64, 128)
RTX = Target("compute capability 8.9", "tensorrt-rtx", "1.7.1.116", "fp16", 64, 128, scope="gpu", options=(("graph", "auto"),))


def test_this_machines_own_target_differs_in_nothing():
    facts = facts_here(HERE)
    assert facts == {"device": device_name(), "runtime_version": HERE.runtime_version, "huge_pages": "off"}
    assert differences(HERE, facts) == ()
    assert target_here(HERE, facts, ()) == (HERE, ())
    chosen = cpu_target(64, 128, spinning=True, optimisation="basic", batch=3)  # what was chosen is no fact of the machine
    assert target_here(chosen, facts, ())[0] == chosen


def test_each_difference_is_named_and_may_be_allowed():
    other = dataclasses.replace(HERE, device="a toaster", runtime_version="1.2.3", threads=available_cores() + 6)
    facts = facts_here(HERE)
    with pytest.raises(
        IncompatibleError, match=r"device: the engine has 'a toaster', here is .*runtime_version.*threads: .*--allow-mismatch device"
    ) as c:
        target_here(other, facts, ())
    assert c.value.exit_code == 6
    with pytest.raises(IncompatibleError, match=r"another machine \(threads"):
        target_here(other, facts, ("device", "runtime_version"))
    target, found = target_here(other, facts, ("device", "runtime_version", "threads"))
    assert target == dataclasses.replace(HERE, threads=available_cores())
    assert found[0] == ("device", "a toaster", HERE.device)
    with pytest.raises(UsageError, match=r"--allow-mismatch devise was given; fields .* are device, runtime_version, huge_pages, threads"):
        target_here(other, facts, ("devise",))


def test_an_engine_with_huge_pages_is_not_timed_without_them_nor_one_without_them_with_them():
    facts = facts_here(HERE)
    huge = dataclasses.replace(HERE, options=tuple(sorted((*HERE.options, ("huge_pages", "on")))))
    for target, here, other in ((huge, facts, HERE), (HERE, facts | {"huge_pages": "on"}, huge)):
        with pytest.raises(IncompatibleError, match=r"huge_pages: the engine has 'o\w+', here is 'o\w+'.*GLIBC_TUNABLES=glibc.malloc.hugetlb=1"):
            target_here(target, here, ())
        assert target_here(target, here, ("huge_pages",))[0] == other
    assert target_here(huge, facts | {"huge_pages": "on"}, ()) == (huge, ())


def test_options_that_are_facts_count():
    target = dataclasses.replace(HERE, options=(("capability", "9.0"), ("graph", "on")))
    facts = facts_here(HERE) | {"capability": "8.9"}
    assert differences(target, facts) == (("capability", "9.0", "8.9"),)
    assert dict(target_here(target, facts, ("capability",))[0].options) == {"capability": "8.9", "graph": "on"}


def test_an_engine_of_tensorrt_rtx_takes_the_device_that_it_is_timed_on():
    facts = {"device": "NVIDIA GeForce RTX 4090", "runtime_version": "1.7.1.116"}
    target, found = target_here(RTX, facts, ())
    assert (target.device, found) == ("NVIDIA GeForce RTX 4090", ())
    assert differences(RTX, facts | {"runtime_version": "1.8.0"}) == (("runtime_version", "1.7.1.116", "1.8.0"),)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (dataclasses.replace(HERE, options=(("provider", CUDA_PROVIDER),)), "provider 'CUDAExecutionProvider' was asked for; this build"),
        (dataclasses.replace(HERE, options=(("provider", TENSORRT_PROVIDER),)), "provider 'TensorrtExecutionProvider' was asked for; this build"),
        (dataclasses.replace(RTX, runtime="tensorrt"), "TensorRT is not installed here"),
        (dataclasses.replace(HERE, runtime="torch", options=()), "PyTorch on a GPU needs an NVIDIA GPU"),
    ],
)
def test_a_runtime_that_is_not_here_is_a_requirement(target, words):
    import onnxruntime
    import torch

    if torch.cuda.is_available() or CUDA_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("a GPU is here")
    with pytest.raises(RequirementError, match=words):
        facts_here(target)

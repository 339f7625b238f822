"""The inspector's JSON in both layouts: as documented, and as drawn at random and written in each."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.export.layers import Layer, onnx_layers, proof_of
from segnas.export.tensorrt_inspect import inspected_layers

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)

# NVIDIA's own example of a layer at detailed verbosity (TensorRT documentation, Engine Inspector), shortened by what is not read.
DOCUMENTED = {
    "Name": "node_of_gpu_0/res4_0_branch2a_1 + node_of_gpu_0/res4_0_branch2a_bn_1 + node_of_gpu_0/res4_0_branch2a_bn_2",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "gpu_0/res3_3_branch2c_bn_3",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {
            "Name": "gpu_0/res4_0_branch2a_bn_2",
            "Dimensions": [16, 256, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "ParameterType": "Convolution",
    "Kernel": [1, 1],
    "OutMaps": 256,
    "Groups": 1,
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32_tilesize256x128x64",
}


def test_the_documented_layer() -> None:
    (layer,) = inspected_layers(json.dumps({"Layers": [DOCUMENTED], "Bindings": ["data", "prob"]}))
    assert (layer.dtype, layer.op, layer.output) == ("int8", "CaskConvolution", (16, 256, 28, 28))
    assert layer.parameters == 256 * 512
    assert layer.macs == 16 * 28 * 28 * 256 * 512  # every output value is a sum over 512 channels


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ({"Format/Datatype": "Half"}, "fp16"),
        ({"Format/Datatype": "Row major linear FP16 format"}, "fp16"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "unknown"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Float"}, "fp32"),
        ({"Format": "LINEAR", "Datatype": "BF16"}, "bf16"),
        ({"Format": "HWC8", "DataType": "FP8"}, "fp8"),
        ({"Format/Datatype": "UInt8"}, "uint8"),
        ({}, "unknown"),
    ],
)
def test_types_of_tensors_in_the_words_of_each_release(told: dict[str, str], dtype: str) -> None:
    record = {"Name": "pool", "LayerType": "CaskPooling", "Inputs": [{"Name": "x", "Dimensions": [1, 8, 4, 4], **told}], "Outputs": []}
    assert inspected_layers(json.dumps({"Layers": [record]}))[0].dtype == dtype


def test_int8_weights_alone_are_no_int8_arithmetic() -> None:
    record = {**DOCUMENTED, "TacticName": "sm80_weights_only_h884", "Inputs": [{**DOCUMENTED["Inputs"][0], "Format/Datatype": "Half"}]}
    assert inspected_layers(json.dumps({"Layers": [record]}))[0].dtype == "fp16"


def engine_text(graph: tuple[Layer, ...], *, eleven: bool, groups: list[int], types: list[str], rest: int) -> str:
    """The inspector's JSON of an engine that fused the graph's layers into groups, in the layout of TensorRT 10 or of 11; the last `rest` layers are
    named nowhere. A reformatting copy before each names the same nodes.
    """
    words = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}
    records: list[dict[str, Any]] = []
    left = list(graph[: len(graph) - rest])
    for index, size in enumerate(groups):
        mine, left = left[:size], left[size:]
        if not mine:
            continue
        word = words[types[index % len(types)]]
        tensor = {"Name": f"t{index}", "Dimensions": [1, 8, 4, 4]} | ({"Format": "LINEAR", "DataType": word} if eleven else {"Format/Datatype": word})
        metadata = "\x1e".join(f"[ONNX Layer: {layer.name}]" for layer in mine)
        common = {"Inputs": [tensor], "Outputs": [tensor], "Metadata": metadata}
        records.append({"Name": f"Reformatting CopyNode {index}", "LayerType": "Reformat", **common})
        records.append({"Name": f"{{ForeignNode[{index}]}}", "LayerType": "Myelin", "TacticName": "kernel", **common})
    ports: dict[str, Any] = {"I/O Tensors": [{"Name": "input", "IOMode": "Input"}]} if eleven else {"Bindings": ["input", "labels"]}
    return json.dumps({"Layers": records, **ports})


GRAPH = onnx_layers(engines.small_model())


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    types=st.lists(st.sampled_from(["fp32", "fp16", "int8"]), min_size=1, max_size=4),
    rest=st.integers(0, len(GRAPH) - 1),
)
def test_both_layouts_say_the_same_and_nothing_is_lost_or_counted_twice(groups: list[int], types: list[str], rest: int) -> None:
    ten, eleven = (inspected_layers(engine_text(GRAPH, eleven=newer, groups=groups, types=types, rest=rest), GRAPH) for newer in (False, True))
    assert ten == eleven
    assert sum(layer.macs for layer in ten) == engines.MACS
    assert sum(layer.parameters for layer in ten) == engines.PARAMETERS
    named = min(sum(groups), len(GRAPH) - rest)
    unnamed = sum(layer.macs for layer in GRAPH[named:])
    proof = proof_of(ten, "inspector")
    assert sum(share.macs for share in proof.shares if share.dtype == "unknown") == unnamed
    assert math.isclose(sum(proof.share(share.dtype) for share in proof.shares), 1.0)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
@settings(max_examples=60, deadline=None)
def test_any_other_json_is_refused_or_read_and_never_fails_otherwise(value: Any) -> None:
    for text in (json.dumps(value), json.dumps({"Layers": value}), json.dumps({"Layers": [{"Inputs": value, "Outputs": value, "Weights": value}]})):
        try:
            inspected_layers(text, GRAPH)
        except InputError as error:
            assert "inspector" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ('{"Layers": [{"Name": "a "quoted" name"}]}', "no JSON"),
        ('{"Layers": []}', "holds no layers"),
        ('{"Layers": ["conv1 + relu1"], "Bindings": []}', "names alone.*--verbosity detailed"),
    ],
)
def test_texts_without_types(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspected_layers(text)

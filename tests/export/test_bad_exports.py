"""What is refused on the way to an engine, and what it leaves: one message, the documented exit code, no partial file."""

import contextlib
import dataclasses
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from segnas.__main__ import main
from segnas.arch import Architecture, Node
from segnas.data import Dataset, Sample
from segnas.errors import InputError, SegnasError
from segnas.export.check import checked_onnx
from segnas.export.graph import onnx_from_network
from segnas.exporting import ExportSettings, export_engine
from segnas.files import write_noun
from segnas.kinds import kind
from segnas.network import Network, initialised
from segnas.report import Sizes
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.steps import save_weights

SIZE = (64, 96)


def graph(**changes: Any) -> bytes:
    """A small graph of one convolution; `changes` go to its parts."""
    weight = changes.get("weight", np.ones((5, 3, 1, 1), np.float32))
    nodes = [helper.make_node(changes.get("op", "Conv"), ["input", "weight"], ["logits"], "only", domain=changes.get("domain", ""))]
    reads = [helper.make_tensor_value_info("input", changes.get("kind", TensorProto.FLOAT), changes.get("shape", [1, 3, 8, 16]))]
    if changes.get("two"):
        reads.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    gives = [helper.make_tensor_value_info("logits", changes.get("kind", TensorProto.FLOAT), ["a", "b", "c", "d"])]
    made = helper.make_graph(nodes, "g", reads, gives, [numpy_helper.from_array(weight, "weight")])
    opsets = [helper.make_opsetid("", changes.get("opset", 18)), *([helper.make_opsetid(changes["domain"], 1)] if "domain" in changes else [])]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    for key, value in changes.get("metadata", {}).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def outside(location: str, length: int) -> bytes:
    """The graph with its weights in another file."""
    model = onnx.load_from_string(graph())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


def with_value(value: float) -> np.ndarray:
    weight = np.ones((5, 3, 1, 1), np.float32)
    weight[2, 1] = value
    return weight


def quantised_to(kind_: type) -> bytes:
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["steps"], "pair"),
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["logits"], "back"),
    ]
    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 16]) for name in ("input", "logits")]
    tensors = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(kind_(0), "zero")]
    return helper.make_model(
        helper.make_graph(nodes, "g", port[:1], port[1:], tensors), opset_imports=[helper.make_opsetid("", 18)]
    ).SerializeToString()


def chosen_labels() -> bytes:
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], "largest"),
        helper.make_node("Greater", ["input", "largest"], ["more"], "more"),
        helper.make_node("Where", ["more", "one", "none"], ["labels"], "chooser"),
    ]
    reads = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 16])]
    gives = [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, 3, 8, 16])]
    tensors = [numpy_helper.from_array(np.uint8(value), name) for name, value in (("none", 0), ("one", 1))]
    return helper.make_model(helper.make_graph(nodes, "g", reads, gives, tensors), opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


BAD_BYTES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "cut short": (graph()[:-20], "cut short"),
    "garbage": (b"\x00garbage" * 20, "no ONNX at all"),
    "a text": (b"not a graph", "no ONNX at all"),
    "external data without a folder": (outside("weights.bin", 60), r"'weight' lie outside.*'weights\.bin'"),
    "NaN": (graph(weight=with_value(np.nan)), "'weight' hold 1 values that are NaN or infinite"),
    "infinity": (graph(weight=with_value(-np.inf)), "'weight' hold 1 values"),
    "an unknown operator": (graph(op="Frobnicate"), "'Frobnicate', which ONNX's opset 18 does not have"),
    "a custom operator": (graph(domain="com.example"), r"'com\.example\.Conv'"),
    "a too new opset": (graph(opset=26), "of opset 26; 9 to 25"),
    "a too old opset": (graph(opset=8), "of opset 8; 9 to 25"),
    "two inputs": (graph(two=True), r"2 inputs \(input, more\) and 1 outputs"),
    "a type that is no image": (graph(kind=TensorProto.DOUBLE, weight=np.ones((5, 3, 1, 1))), "'input' is DOUBLE with 4 sides"),
    "a side of 0": (graph(shape=[1, 3, 0, 16]), "every side is at least 1"),
    "varying sides without sizes": (graph(shape=[1, 3, "height", "width"]), "1x3xheightxwidth, and the file declares no sizes"),
    "a varying batch": (graph(shape=["n", 3, 8, 16]), "only its height and width may vary"),
    "damaged sizes": (graph(shape=[1, 3, "h", "w"], metadata={"sizes": "8x8:4x4:16x16"}), "none of whose sides shrinks"),
    "shapes that do not fit": (graph(weight=np.ones((5, 3, 1, 1, 1), np.float32)), "breaks ONNX's own rules"),
    "unsigned features": (quantised_to(np.uint8), "'pair' quantises to other numbers than int8.*--for tensorrt"),
    "labels by comparisons": (chosen_labels(), "'chooser' chooses between labels of uint8.*--for tensorrt"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_bad_bytes_are_refused(name):
    content, message = BAD_BYTES[name]
    with pytest.raises(InputError, match=message) as caught:
        checked_onnx(content, folder=None)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_good_bytes_are_not():
    assert checked_onnx(graph(), folder=None).graph.node[0].name == "only"
    assert checked_onnx(graph(shape=[1, 3, "h", "w"], metadata={"sizes": "8x8:8x8:16x16"}), folder=None)
    assert checked_onnx(quantised_to(np.int8), folder=None)
    for content in (quantised_to(np.uint8), chosen_labels()):
        assert checked_onnx(content, folder=None, tensorrt=False)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damage_is_refused_or_harmless(data):
    """Bytes cut or changed anywhere: a model that passes the check, or one error of ours, never another."""
    content = bytearray(graph())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        checked_onnx(bytes(content), folder=None)


@pytest.mark.parametrize(
    ("location", "held", "message"),
    [
        ("weights.bin", None, r"weights\.bin, which cannot be read: No such file"),
        ("weights.bin", 59, r"need 60 bytes from byte 0 of .*weights\.bin, which has 59"),
        ("../weights.bin", 60, "only a file in the ONNX file's own folder"),
        ("/etc/passwd", 60, "only a file in the ONNX file's own folder"),
        ("", 60, "only a file in the ONNX file's own folder"),
        ("link.bin", 60, "only a file in the ONNX file's own folder"),
    ],
)
def test_external_data_must_be_whole_and_near(location, held, message, tmp_path):
    if held is not None:
        (tmp_path / "weights.bin").write_bytes(bytes(held))
    (tmp_path / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InputError, match=message):
        checked_onnx(outside(location, 60), folder=tmp_path)


def test_external_data_is_read_in(tmp_path):
    (tmp_path / "weights.bin").write_bytes(np.full((5, 3), 0.5, np.float32).tobytes())
    model = checked_onnx(outside("weights.bin", 60), folder=tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert (numpy_helper.to_array(model.graph.initializer[0]) == 0.5).all()
    assert checked_onnx(model.SerializeToString(), folder=None)
    (tmp_path / "weights.bin").write_bytes(np.full((5, 3), np.nan, np.float32).tobytes())
    with pytest.raises(InputError, match="NaN"):
        checked_onnx(outside("weights.bin", 60), folder=tmp_path)


# ---- exports


def tree(folder: Path) -> set[str]:
    """Every file under the folder, however it begins."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


Refused = Callable[..., str]


@pytest.fixture
def refused(learned: Network, streets: Callable[[str], Dataset], tmp_path: Path) -> Refused:
    """An export that must fail with that exit code, and leave those files alone; the message."""

    def export(code: int, *, leaves: tuple[str, ...] = (), network: Network = learned, dataset: Dataset | None = None, **changes: Any) -> str:
        wanted = ExportSettings(**{"calibration": streets("val"), **changes.pop("settings", {})})
        target = changes.pop("target", None) or cpu_target(*SIZE, **changes)
        with pytest.raises(SegnasError) as caught:
            export_engine(network, target, tmp_path / "out", dataset=dataset or streets("train"), settings=wanted)
        assert caught.value.exit_code == code
        assert tree(tmp_path) == {f"out/{name}" for name in leaves}
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return export


def test_a_network_in_training_mode(refused, learned):
    network = Network(learned.architecture)
    network.load_state_dict(learned.state_dict())
    assert "training mode" in refused(4, network=network.train())


def test_another_number_of_classes(refused):
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8), Node(kind("classifier"), (1,), 11))
    assert "11 classes, synthetic-streets has 19" in refused(6, network=initialised(Architecture(nodes), 0).eval())


def test_more_classes_than_a_byte_holds(cache):
    nodes = (Node(kind("image"), (), 3), Node(kind("classifier"), (0,), 257))
    for precision in ("fp32", "fp16"):
        with pytest.raises(InputError, match="257 classes do not fit the uint8 output"):
            onnx_from_network(initialised(Architecture(nodes), 0), cpu_target(8, 8, precision=precision), cache=cache)


def test_weights_that_are_not_finite(refused, learned):
    network = Network(learned.architecture)
    network.load_state_dict(learned.state_dict())
    with torch.no_grad():
        network.nodes["9"].layers[0].bias[3] = float("inf")
    for precision in ("fp32", "fp16", "int8"):
        assert "NaN or infinity (nodes.9.layers.0.bias)" in refused(4, network=network.eval(), precision=precision)


def test_no_calibration_images(refused, streets):
    nothing = dataclasses.replace(streets("val"), samples=())
    for changes in ({"calibration": None}, {"calibration_images": 0}, {"calibration": nothing}):
        assert "int8 needs calibration images, and none were given" in refused(4, precision="int8", settings=changes)


def test_calibration_on_what_proves_it(refused, streets):
    message = refused(4, precision="int8", settings={"calibration": streets("train")})
    assert "the train split was given both to calibrate and to prove" in message


def test_a_damaged_calibration_image(refused, streets, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken") / "image.png"
    broken.write_bytes(streets("val").samples[0].image.read_bytes()[:100])
    dataset = dataclasses.replace(streets("val"), samples=(Sample("image", broken, None),))
    assert "damaged, cut short or not a PNG" in refused(4, precision="int8", settings={"calibration": dataset})


def test_int8_calibrated_on_grey_does_not_pass(refused, streets, tmp_path_factory):
    """Grey is near the mean of all images: the ranges hold next to nothing, and 57 % of the pixels agreed (98 on black)."""
    grey = tmp_path_factory.mktemp("grey") / "image.png"
    cv2.imwrite(str(grey), np.full((64, 96, 3), 128, np.uint8))
    dataset = dataclasses.replace(streets("val"), samples=(Sample("image", grey, None),))
    message = refused(5, precision="int8", leaves=("model.int8.onnx.rejected",), settings={"calibration": dataset})
    assert "97.0000 % are required" in message


def test_half_that_overflows_does_not_pass(refused, learned):
    network = Network(learned.architecture)
    network.load_state_dict(learned.state_dict())
    norms = [layer for name in ("1", "2") for layer in network.nodes[name].modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():  # features of thousands and then of a million, which the next normalisation brings back
        for layer, before, after in zip(norms[-2:], (1, 2e4), (2e4, 1), strict=True):
            layer.running_mean.mul_(before)
            layer.running_var.mul_(before**2)
            layer.weight.mul_(after)
            layer.bias.mul_(after)
    message = refused(5, network=network.eval(), precision="fp16", leaves=("model.fp16.onnx.rejected",))
    assert "values are not finite" in message
    assert " 0 values are not finite" not in message


def test_sizes_and_targets_that_do_not_fit(refused):
    assert "which must be the best of them" in refused(4, settings={"sizes": Sizes((32, 48), (64, 97), (96, 128))})
    assert "too small" in refused(4, settings={"sizes": Sizes((4, 4), SIZE, (96, 128))})
    assert "at least 1x1 is needed" in refused(4, settings={"output_size": (0, 10)})


def test_a_shape_outside_the_profile(learned, cache):
    content = onnx_from_network(
        learned, cpu_target(*SIZE), sizes=Sizes((32, 48), SIZE, (96, 128)), metadata={"sizes": "32x48:64x96:96x128"}, cache=cache
    )
    with pytest.raises(InputError, match="takes 32x48 to 96x128; 128x128 was asked for") as caught:
        open_session(content, cpu_target(128, 128))
    assert caught.value.exit_code == 4
    damaged = content.replace(b"32x48:64x96:96x128", b"32x48:64x96:96x12!")
    with pytest.raises(InputError, match="are damaged"):
        open_session(damaged, cpu_target(*SIZE))


@pytest.mark.parametrize(
    "changes", [{"precision": "fp16"}, {"precision": "int8"}, {"input_contract": "image"}, {"settings": {"sizes": Sizes((32, 48), SIZE, (96, 128))}}]
)
def test_aotinductor_is_asked_for_what_it_does_not_compile(changes, refused):
    wanted = dict(changes)
    extra = wanted.pop("settings", {})
    target = dataclasses.replace(cpu_target(*SIZE, **wanted), runtime="aotinductor", runtime_version=torch.__version__, options=())
    message = refused(4, target=target, settings=extra)
    assert "aotinductor compiles fp32" in message or "compiles normalised" in message or "compiles for one size" in message


def test_a_folder_that_cannot_be_written(refused, tmp_path_factory, learned, streets):
    blocked = tmp_path_factory.mktemp("blocked") / "file"
    blocked.write_text("no folder")
    with pytest.raises(SegnasError, match="could not be written") as caught:
        export_engine(learned, cpu_target(*SIZE), blocked / "out", dataset=streets("train"))
    assert caught.value.exit_code == 3


def test_a_full_disk(refused, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "the disk is full" in refused(3)


@pytest.mark.parametrize("moment", ["artefact", "manifest"])
def test_an_interrupted_export_leaves_nothing_half(moment, learned, streets, tmp_path, monkeypatch):
    written: list[str] = []

    def interrupted(source: Any, to: Any) -> None:
        written.append(str(to))
        if len(written) == (1 if moment == "artefact" else 2):
            raise KeyboardInterrupt
        rename(source, to)

    rename = os.replace
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_engine(learned, cpu_target(*SIZE), tmp_path, dataset=streets("train"))
    assert tree(tmp_path) == (set() if moment == "artefact" else {"model.onnx"})  # an artefact without manifest is refused by whoever reads it


# ---- the command line


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], learned: Network, streets: Callable[[str], Dataset], tmp_path: Path):
    """`segnas export` with some words more; its exit code and its one message, with nothing written."""
    given = tmp_path / "given"
    write_noun(given / "arch.json", learned.architecture)
    save_weights(given / "weights.safetensors", learned.state_dict(), learned.architecture, "none")
    save_weights(given / "other.safetensors", learned.state_dict(), Architecture(learned.architecture.nodes[:-1]), "none")

    def run(*words: object, weights: str = "weights") -> tuple[int, str]:
        usual = ["export", "--arch", given / "arch.json", "--weights", given / f"{weights}.safetensors", "--size", "64x96", "--threads", 1]
        usual += ["--data-root", streets("train").root, "--split", "train", "--out", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["segnas", *map(str, (*usual, *words))])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capfd.readouterr().err
        assert "Traceback" not in error
        assert error.count("Error: ") == 1
        assert not (tmp_path / "out").exists() or not tree(tmp_path / "out")
        return int(ended.value.code or 0), error[error.index("Error: ") + 7 :]

    return run


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--precision", "fp8"), 2, "'fp8' is not one of"),
        (("--precision", "int8", "--calibration", 0, "--calibration-split", "val"), 4, "none were given"),
        (("--precision", "int8", "--calibration-split", "test"), 4, "does not exist"),
        (("--precision", "int8", "--calibration-split", "train"), 4, "both to calibrate and to prove"),
        (("--for", "tensorrt", "--runtime", "aotinductor"), 2, "writes no ONNX file"),
        (("--output-size", "0x64"), 4, "HEIGHTxWIDTH"),
        (("--dynamic", "32x48"), 4, "the least and the largest size"),
        (("--dynamic", "128x128:256x256"), 4, "none of whose sides shrinks"),
        (("--min-agreement", 2), 2, "not in the range"),
        (("--input", "rgb"), 2, "'rgb' is not one of"),
        (("--name", "../model"), 4, "the name of a .onnx file is needed"),
    ],
)
def test_the_command_line_refuses(words, code, message, call):
    found = call(*words)
    assert found[0] == code
    assert message in found[1].replace("\n", " ")


def test_weights_of_another_architecture(call):
    code, message = call(weights="other")
    assert code == 6
    assert "holds weights of architecture" in message

"""Exports from end to end: what lies on the disk, what the manifest says, and what the command line takes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from segnas.cli import segnas
from segnas.data import engine_input
from segnas.errors import InputError, VerificationError
from segnas.export.check import checked_onnx
from segnas.export.manifest import read_engine
from segnas.exporting import ExportSettings, export_engine
from segnas.files import sha256_of, write_noun
from segnas.metrics import ConfusionMatrix
from segnas.proving import spread, trial_images
from segnas.report import Sizes
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.steps import save_weights

SIZE = (64, 96)


@pytest.fixture
def settings(streets) -> ExportSettings:
    """int8 from the streets of val; what it must agree in fits a network that has learned for a second."""
    return ExportSettings(calibration=streets("val"), min_agreement=0.9)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_precision_has_its_file_and_its_proof(precision, learned, streets, settings, tmp_path):
    target = cpu_target(*SIZE, precision=precision)
    made = export_engine(learned, target, tmp_path, dataset=streets("train"), settings=settings)
    name = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}[precision]
    assert made.file == name
    assert read_engine(tmp_path / name) == (made, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.json"]
    assert made.parity.passed
    assert made.parity.images == (4 if precision == "fp32" else 6)  # there are no more
    assert abs(made.parity.miou_change) <= 0.01
    assert ("torch" in made.parity.reference) == (precision == "fp32")
    assert ("rounded to half" in made.parity.reference) == (precision == "fp16")
    file, executed = made.precision
    assert file.share(precision) > 0.5
    assert executed.share("fp32" if precision == "fp16" else precision) > 0.5
    assert [str(port) for port in (*made.inputs, *made.outputs)] == ["input float32 1x3x64x96", "labels uint8 1x64x96"]
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / name).metadata_props}
    assert (said["precision"], said["input"], said["output"], said["ignore_index"]) == (precision, "normalised", "labels", "255")
    assert (said["mean"], said["std"]) == ("0.485,0.456,0.406", "0.229,0.224,0.225")
    assert said["classes"].split(",") == [label.name for label in streets("train").labels.classes]
    assert (said["architecture"], said["weights_sha256"]) == (learned.architecture.digest, made.weights_sha256)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_engine_of_a_batch_is_proven_place_by_place(precision, learned, streets, settings, tmp_path):
    made = export_engine(learned, cpu_target(*SIZE, precision=precision, batch=3), tmp_path, dataset=streets("train"), settings=settings)
    assert made.parity.passed
    assert [str(port) for port in (*made.inputs, *made.outputs)] == ["input float32 3x3x64x96", "labels uint8 3x64x96"]
    if precision == "fp32":
        assert made.parity.argmax_agreement >= 0.9999


def test_the_calibration_images_are_written_down(learned, streets, settings, tmp_path):
    made = export_engine(learned, cpu_target(*SIZE, precision="int8"), tmp_path, dataset=streets("train"), settings=settings)
    val = streets("val")
    assert made.calibrated.images == tuple(sample.name for sample in val.samples)
    assert (made.calibrated.dataset, made.calibrated.split, len(made.calibrated.sha256)) == ("synthetic-streets", "val", 64)
    calibration = "99.99th percentile of an image's magnitudes, largest over 4 images"
    assert dict(made.build) == {"calibration": calibration, "features": "uint8", "reader": "onnxruntime"}
    fewer = ExportSettings(calibration=val, calibration_images=3, min_agreement=0.5, name="fewer")
    other = export_engine(learned, cpu_target(*SIZE, precision="int8"), tmp_path, dataset=streets("train"), settings=fewer)
    assert other.calibrated.images == tuple(val.samples[index].name for index in (0, 2, 3))
    assert other.calibrated.sha256 != made.calibrated.sha256


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_two_exports_into_two_folders_are_the_same_bytes(precision, learned, streets, settings, tmp_path):
    made = [
        export_engine(
            learned, cpu_target(*SIZE, precision=precision, input_contract="image"), tmp_path / name, dataset=streets("train"), settings=settings
        )
        for name in ("one", "another/deeper")
    ]
    assert made[0] == made[1]
    assert sha256_of(tmp_path / "one" / made[0].file) == sha256_of(tmp_path / "another/deeper" / made[0].file) == made[0].sha256
    assert str(tmp_path).encode() not in (tmp_path / "one" / made[0].file).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_file_for_tensorrt_holds_nothing_that_it_misreads(precision, learned, streets, settings, tmp_path):
    target = cpu_target(*SIZE, precision=precision)
    usual = export_engine(learned, target, tmp_path, dataset=streets("train"), settings=settings)
    other = export_engine(
        learned, target, tmp_path, dataset=streets("train"), settings=dataclasses.replace(settings, reader="tensorrt", name="other")
    )
    model = checked_onnx((tmp_path / "other.onnx").read_bytes(), folder=None)
    assert [node.op_type for node in model.graph.node if node.name.startswith("argmax/")] == ["ArgMax", "Cast"]
    assert dict(other.build)["reader"] == "tensorrt"
    if precision != "fp16":  # 64x96 floats are a multiple of 4096 bytes: comparisons instead of an argmax; and of int8, unsigned features
        with pytest.raises(InputError, match="--for tensorrt"):
            checked_onnx((tmp_path / usual.file).read_bytes(), folder=None)


def test_a_dynamic_image_engine_of_each_precision_serves_every_size(learned, streets, tmp_path):
    sizes = Sizes((32, 48), SIZE, (96, 128))
    image = streets("train").read(0)[0]
    for precision in ("fp16", "int8"):
        settings = ExportSettings(sizes=sizes, calibration=streets("val"), min_agreement=0.5)
        target = cpu_target(*SIZE, precision=precision, input_contract="image", output_contract="logits")
        made = export_engine(learned, target, tmp_path, dataset=streets("train"), settings=settings)
        assert made.sizes == sizes
        assert [str(port) for port in (*made.inputs, *made.outputs)] == ["input uint8 1x?x?x3", "logits float32 1x19x?x?"]
        assert made.parity.images == 6 + 2  # one at the least and one at the largest size
        content = (tmp_path / made.file).read_bytes()
        assert checked_onnx(content, folder=None, tensorrt=False).metadata_props
        for size in ((32, 48), (77, 101), (96, 128)):
            target = cpu_target(*size, precision=precision, input_contract="image", output_contract="logits")
            session = open_session(content, target, sha256=made.sha256)
            assert session.run(engine_input(image, "image", *size)).shape == (1, 19, *size)


def test_an_engine_of_another_precision_is_not_opened(learned, streets, tmp_path):
    made = export_engine(learned, cpu_target(*SIZE, precision="fp16"), tmp_path, dataset=streets("train"))
    with pytest.raises(InputError, match="of precision 'fp16'; the target's is 'fp32'"):
        open_session(tmp_path / made.file, cpu_target(*SIZE))


def test_the_change_of_miou_is_counted_as_the_official_score_is(learned, streets, settings, tmp_path):
    made = export_engine(learned, cpu_target(*SIZE, precision="int8"), tmp_path, dataset=streets("train"), settings=settings)
    single = export_engine(learned, cpu_target(*SIZE), tmp_path, dataset=streets("train"))
    dataset, scores = streets("train"), []
    for engine in (single, made):
        session, matrix = open_session(tmp_path / engine.file, engine.target), ConfusionMatrix(streets("train").labels)
        for index in range(len(dataset)):
            image, ids = dataset.read(index)
            matrix.add(ids, dataset.labels.ids(session.run(engine_input(image, "normalised", *SIZE))[0]))
        scores.append(matrix.miou)
    assert made.parity.miou_change == pytest.approx(scores[1] - scores[0], abs=1e-12)
    assert single.parity.miou_change == pytest.approx(0.0, abs=1e-3)


def test_an_output_size_is_proven_too(learned, streets, tmp_path):
    made = export_engine(learned, cpu_target(*SIZE), tmp_path, dataset=streets("train"), settings=ExportSettings(output_size=(128, 192)))
    assert str(made.outputs[0]) == "labels uint8 1x128x192"
    assert made.parity.argmax_agreement > 0.9999


def test_images_are_spread_and_truths_go_with_them(streets):
    assert [spread(10, n) for n in (1, 2, 3, 10, 99)] == [[0], [0, 9], [0, 4, 9], list(range(10)), list(range(10))]
    trial = trial_images(streets("train"), cpu_target(*SIZE), count=2, sizes=Sizes((32, 48), SIZE, (96, 128)))
    assert [image.shape[2:] for image in trial.images] == [SIZE, SIZE, (32, 48), (96, 128)]
    assert np.array_equal(trial.truths.ids[1], streets("train").read(5)[1])
    assert trial.truths.ids[2:] == [None, None]


@pytest.fixture
def files(learned, tmp_path) -> Path:
    """The network as files."""
    write_noun(tmp_path / "arch.json", learned.architecture)
    save_weights(tmp_path / "weights.safetensors", learned.state_dict(), learned.architecture, "none")
    return tmp_path


def test_the_command_line_takes_it_all(files, streets):
    words = ["export", "--arch", files / "arch.json", "--weights", files / "weights.safetensors", "--size", "64x96", "--threads", 1]
    words += ["--split", "train", "--calibration-split", "val"]
    words += ["--data-root", streets("train").root, "--out", files / "out", "--precision", "int8", "--calibration", 3, "--min-agreement", 0.5]
    words += ["--input", "image", "--output", "logits", "--dynamic", "32x48:96x128", "--for", "tensorrt", "--name", "small", "--parity-images", 2]
    ended = CliRunner().invoke(segnas, [str(word) for word in [*words, "--json"]])
    assert ended.exit_code == 0, ended.output
    made = json.loads(ended.stdout)
    assert (made["file"], made["target"]["precision"], made["target"]["input_contract"]) == ("small.onnx", "int8", "image")
    assert (made["sizes"]["least"], len(made["calibrated"]["images"]), made["parity"]["images"]) == ([32, 48], 3, 4)
    checked_onnx((files / "out/small.onnx").read_bytes(), folder=None)
    said = CliRunner().invoke(segnas, [str(word) for word in words])
    assert "multiply-accumulates by the file: " in said.output
    assert "% int8" in said.output


def test_a_gate_that_fails_keeps_what_failed(learned, streets, tmp_path):
    settings = ExportSettings(calibration=streets("val"), min_agreement=1.0)
    with pytest.raises(VerificationError, match=r"100\.0000 % are required.*mIoU") as caught:
        export_engine(learned, cpu_target(*SIZE, precision="int8"), tmp_path, dataset=streets("train"), settings=settings)
    assert caught.value.exit_code == 5
    assert [path.name for path in tmp_path.iterdir()] == ["model.int8.onnx.rejected"]

"""Engines on disk: whole or absent, checked when read."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.errors import IncompatibleError, InputError, RequirementError, VerificationError
from segnas.export.manifest import read_engine, versions, write_engine
from segnas.kinds import kind
from segnas.network import weights_digest
from segnas.report import Engine, Parity, PrecisionProof, TypeShare
from segnas.target import Target

ARCHITECTURE = Architecture((Node(kind("image"), (), 3), Node(kind("classifier"), (0,), 2)))
TARGET = Target("a CPU", "onnxruntime", "1.31.1", "fp32", 8, 16)
GOOD = Parity("torch", 2, 1e-6, 1e-7, 1.0, 0, 1.0, 0.9999, True)
BAD = Parity("torch", 2, 1.0, 0.1, 0.9, 0, 0.5, 0.9999, False)


def write(folder: Path, content: bytes = b"engine bytes", parity: Parity | None = GOOD, file: str = "model.onnx", kind: str = "onnx") -> Engine:
    return write_engine(folder, content, Engine(file, kind, "", 0, TARGET, ARCHITECTURE.digest, "0" * 64, ("a", "b"), parity, versions()))


def test_what_was_written_is_read(tmp_path):
    engine = write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]
    assert engine.sha256 == hashlib.sha256(b"engine bytes").hexdigest()
    assert engine.architecture == ARCHITECTURE.digest
    for path in (tmp_path / "model.onnx", tmp_path / "model.onnx.json"):
        assert read_engine(path) == (engine, tmp_path / "model.onnx")
    assert str(tmp_path) not in (tmp_path / "model.onnx.json").read_text()


def test_other_names_and_kinds(tmp_path):
    write(tmp_path, file="small.engine", kind="tensorrt")
    assert (tmp_path / "small.engine.json").exists()
    with pytest.raises(InputError, match=r"a \.onnx file is needed"):
        write(tmp_path, file="../model.onnx")
    with pytest.raises(InputError, match="allowed: onnx"):
        write(tmp_path, kind="pickle")


@pytest.mark.parametrize("edit", [lambda b: b[:-1] + b"x", lambda b: b[:-1], lambda b: b + b"\n", lambda b: b""])
def test_an_edited_engine_is_refused(tmp_path, edit):
    write(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(IncompatibleError, match=r"was .* when it was built, .* was found.*segnas export") as caught:
        read_engine(path)
    assert caught.value.exit_code == 6


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"model\.onnx does not exist"):
        read_engine(tmp_path / "model.onnx")
    write(tmp_path)
    (tmp_path / "model.onnx.json").rename(tmp_path / "kept.json")
    with pytest.raises(InputError, match="its export did not end"):
        read_engine(tmp_path / "model.onnx")
    (tmp_path / "kept.json").rename(tmp_path / "model.onnx.json")
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(InputError, match="but its manifest does"):
        read_engine(tmp_path / "model.onnx")


def test_a_manifest_cannot_point_elsewhere(tmp_path):
    write(tmp_path)
    path = tmp_path / "model.onnx.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "file": "../model.onnx"}))
    with pytest.raises(InputError, match="beside the manifest"):
        read_engine(path)
    path.write_text("{")
    with pytest.raises(InputError, match="no complete JSON"):
        read_engine(path)


def test_an_engine_without_parity_is_kept_apart(tmp_path):
    good = write(tmp_path)
    with pytest.raises(VerificationError, match=r"50\.0000 %"):
        write(tmp_path, b"worse", BAD)
    assert (tmp_path / "model.onnx.rejected").read_bytes() == b"worse"
    assert read_engine(tmp_path / "model.onnx")[0] == good


def test_an_engine_that_is_not_what_was_asked_for_is_kept_apart(tmp_path):
    proof = PrecisionProof("the inspector", (TypeShare("fp32", 9, 100, 900), TypeShare("fp16", 1, 10, 100)))
    half = dataclasses.replace(TARGET, precision="fp16")
    engine = Engine("model.engine", "tensorrt", "", 0, half, ARCHITECTURE.digest, "0" * 64, ("a", "b"), GOOD, versions(), precision=(proof,))
    with pytest.raises(VerificationError, match=r"the inspector has 10\.0 % of its multiply-accumulates in it.*90\.0 % fp32"):
        write_engine(tmp_path, b"all single", engine)
    assert [path.name for path in tmp_path.iterdir()] == ["model.engine.rejected"]


def test_writing_again_replaces_both(tmp_path):
    write(tmp_path)
    second = write(tmp_path, b"other bytes", None)
    assert read_engine(tmp_path / "model.onnx") == (second, tmp_path / "model.onnx")
    assert second.parity is None


def test_a_folder_that_cannot_be_is_a_requirement(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequirementError, match="could not be written"):
        write(tmp_path / "file" / "run")


def test_weights_have_one_digest():
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3)}
    digest = weights_digest(state)
    assert len(digest) == 64
    assert weights_digest({"a": torch.tensor(3), "b": torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(2, 3)}) == digest
    assert weights_digest({**state, "b": state["b"].reshape(3, 2)}) != digest
    assert weights_digest({**state, "a": torch.tensor(4)}) != digest
    assert weights_digest({"c": state["b"], "a": state["a"]}) != digest
    assert weights_digest({"a": torch.ones(2, dtype=torch.bfloat16)}) != weights_digest({"a": torch.ones(2)})


def test_versions_are_sorted_pairs():
    names = [name for name, _ in versions()]
    assert names == sorted(names)
    assert {"python", "segnas", "torch", "onnx", "onnxruntime"} <= set(names)

"""Evaluations of real engines on disk: killed and resumed, in parts and merged, with any number of workers and any batch, one and the same matrix."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from segnas.arch import Architecture
from segnas.changes import MOST_CHANGED, changed_pixels
from segnas.data import Dataset, normalise, open_dataset
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.evaluating import JOURNAL_NAME, RESULT_NAME, Part, engine_evaluation, evaluate_engine, merged, official_text, read_part
from segnas.export.graph import onnx_from_network
from segnas.export.manifest import read_engine, write_engine
from segnas.files import noun_text, read_noun, write_noun
from segnas.labels import CITYSCAPES
from segnas.metrics import ConfusionMatrix
from segnas.network import initialised
from segnas.official import instance_counts, official_json
from segnas.report import Engine, Evaluation, Port, ScoringProtocol
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.score_lines import evaluation_lines
from segnas.search.spaces import space


@pytest.fixture
def streets(street_engines) -> Dataset:
    return open_dataset("cityscapes", street_engines.streets, "val")


def matrix_of(found: Evaluation) -> np.ndarray:
    return np.array(found.accuracy.matrix)


def by_hand(path: Path, dataset: Dataset) -> np.ndarray:
    """The matrix by ONNX Runtime alone, one pixel pair after the other."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    counts = np.zeros((34, 34), np.int64)
    for sample in dataset.samples:
        image = cv2.cvtColor(cv2.imread(str(sample.image)), cv2.COLOR_BGR2RGB)
        labels = session.run(None, {"input": normalise(np.asarray(image, np.uint8)[None])})[0][0]
        ids = np.array([label.id for label in CITYSCAPES.classes])[labels]
        np.add.at(counts, (cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED).ravel(), ids.ravel()), 1)
    return counts


def test_the_matrix_is_that_of_the_bytes(street_engines, streets: Dataset, tmp_path: Path) -> None:
    found = engine_evaluation(street_engines.labels, streets, out=tmp_path)
    assert np.array_equal(matrix_of(found), by_hand(street_engines.labels, streets))
    assert found.engine_sha256 == read_engine(street_engines.labels)[0].sha256
    assert (found.accuracy.images, found.available, found.spans) == (6, 6, ((0, 6),))
    assert found.protocol == ScoringProtocol((64, 128), "none", False, False, (1.0,))
    assert found.instances is None
    assert found.instance_classes.mean is None
    assert read_noun(tmp_path / RESULT_NAME, Evaluation) == found
    assert evaluate_engine(street_engines.labels, streets) == found.accuracy
    assert official_text(found) == official_json(ConfusionMatrix(CITYSCAPES, matrix_of(found)))
    lines = evaluation_lines(found)
    assert len(lines) >= 1 + 19 + 1 + 1 + 1 + 1 + 2
    assert f"mIoU {100 * found.accuracy.miou:.2f} %" in lines[-2]
    assert "all 6 images, whole image, single scale, no flip" in lines[-1]


def test_neither_workers_nor_order_change_it(street_engines, streets: Dataset) -> None:
    alone = engine_evaluation(street_engines.labels, streets, workers=1)
    assert all(engine_evaluation(street_engines.labels, streets, workers=workers) == alone for workers in (2, 5))
    backwards = replace(streets, samples=streets.samples[::-1])
    assert np.array_equal(matrix_of(engine_evaluation(street_engines.labels, backwards)), matrix_of(alone))


def test_labels_smaller_than_the_truth_need_a_word_and_cost_something(street_engines) -> None:
    large = open_dataset("cityscapes", street_engines.large, "val")
    with pytest.raises(InputError, match=r"labels at 64x128, and 128x256 is needed.*--upsample nearest"):
        engine_evaluation(street_engines.labels, large)
    nearest = engine_evaluation(street_engines.labels, large, protocol=ScoringProtocol(upsample="nearest"))
    bilinear = engine_evaluation(street_engines.logits, large)
    corners = engine_evaluation(street_engines.logits, large, protocol=ScoringProtocol(align_corners=True))
    assert len({matrix.accuracy.matrix for matrix in (nearest, bilinear, corners)}) == 3
    assert "nearest-neighbour" in nearest.accuracy.protocol
    assert "half-pixel centres" in bilinear.accuracy.protocol
    assert "corners aligned" in corners.accuracy.protocol
    mirrored = engine_evaluation(street_engines.logits, large, protocol=ScoringProtocol(flip=True))
    assert "with flip" in mirrored.accuracy.protocol
    with pytest.raises(InputError, match="need a dynamic engine"):
        engine_evaluation(street_engines.logits, large, protocol=ScoringProtocol(scales=(0.75, 1.0)))


def test_parts_merge_exactly_in_any_order(street_engines, streets: Dataset) -> None:
    whole = engine_evaluation(street_engines.labels, streets)
    parts = [(str(k), engine_evaluation(street_engines.labels, streets, part=Part(None, k, 3))) for k in (1, 2, 3)]
    assert [part.spans for _, part in parts] == [((0, 2),), ((2, 4),), ((4, 6),)]
    assert merged(parts) == whole
    assert merged(parts[::-1]) == whole
    two = merged([parts[2], parts[0]])
    assert two.spans == ((0, 2), (4, 6))
    assert "4 of 6 images" in two.accuracy.protocol
    assert merged([("two", two), parts[1]]) == whole


def test_what_does_not_belong_together_is_not_merged(street_engines, streets: Dataset) -> None:
    first, second = (engine_evaluation(street_engines.labels, streets, part=Part(None, k, 2)) for k in (1, 2))
    for other, image in ((first, 0), (replace(first, spans=((1, 2),)), 1), (replace(second, spans=((5, 6), (2, 4))), 2)):
        with pytest.raises(InputError, match=f"image {image} is in A and in B"):
            merged([("A", first), ("B", other)])
    with pytest.raises(InputError, match="image 3 is in B and in C"):
        merged([("A", first), ("B", second), ("C", second)])
    assert first.protocol is not None
    for other, message in (
        (replace(second, engine_sha256="0" * 64), "engine_sha256 is .* in A, 000"),
        (replace(second, images_sha256="0" * 64), "images_sha256 is"),
        (replace(second, protocol=replace(first.protocol, flip=True)), "protocol.flip is False in A, True in B"),
        (replace(second, protocol=None), "protocol is {.*} in A, None in B"),
        (replace(second, accuracy=replace(second.accuracy, split="train")), "split is val in A, train in B"),
        (replace(second, instances=()), "instances is False in A, True in B"),
    ):
        with pytest.raises(IncompatibleError, match=f"B cannot be merged with A: .*{message}"):
            merged([("A", first), ("B", other)])
    with pytest.raises(InputError, match="34x34 counts"):
        merged([("A", first), ("B", replace(second, accuracy=replace(second.accuracy, matrix=((1,),))))])
    with pytest.raises(InputError, match="no evaluation"):
        merged([])


def test_parts_that_are_none() -> None:
    assert [list(Part(5, k, 2).indices(9)) for k in (1, 2)] == [[0, 1], [2, 3, 4]]
    assert list(Part().indices(3)) == [0, 1, 2]
    assert read_part("2/3", 7) == Part(7, 2, 3)
    assert read_part(None, None) == Part()
    for part in (Part(None, 0, 2), Part(None, 3, 2), Part(2, 1, 3)):
        with pytest.raises(InputError, match="parts are written 1/3"):
            part.indices(5)
    for text in ("1", "a/b", "1/", "-1/2", ""):
        with pytest.raises(UsageError, match="written K/N"):
            read_part(text, None) if text else read_part("/", None)


def test_a_journal_serves_whatever_part_is_asked_for(street_engines, streets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call, of all images, reads only those that the first did not; the third none."""
    read: list[int] = []
    decode = Dataset.decode
    monkeypatch.setattr(Dataset, "decode", lambda self, index, **words: (read.append(index), decode(self, index, **words))[1])
    half = engine_evaluation(street_engines.labels, streets, part=Part(None, 2, 2), out=tmp_path)
    whole = engine_evaluation(street_engines.labels, streets, out=tmp_path)
    again = engine_evaluation(street_engines.labels, streets, out=tmp_path)
    assert sorted(read) == [0, 1, 2, 3, 4, 5]
    assert again == whole == engine_evaluation(street_engines.labels, streets)
    assert engine_evaluation(street_engines.labels, streets, part=Part(None, 2, 2), out=tmp_path) == half
    with pytest.raises(IncompatibleError, match="engine_sha256: the folder has"):
        engine_evaluation(street_engines.logits, streets, out=tmp_path)
    with pytest.raises(IncompatibleError, match=r"protocol.upsample: the folder has none, asked for is nearest"):
        engine_evaluation(street_engines.labels, streets, protocol=ScoringProtocol(upsample="nearest"), out=tmp_path)
    with pytest.raises(IncompatibleError, match="images_sha256"):
        engine_evaluation(street_engines.labels, replace(streets, samples=streets.samples[1:]), out=tmp_path)


def test_what_was_counted_is_kept_where_a_file_cannot_be_read(street_engines, streets: Dataset, tmp_path: Path) -> None:
    whole, bad = engine_evaluation(street_engines.labels, streets), streets.samples[2]
    image = tmp_path / bad.image.name
    image.write_bytes(bytes(bad.image.stat().st_size))
    broken = replace(streets, samples=(*streets.samples[:2], replace(bad, image=image), *streets.samples[3:]))
    with pytest.raises(InputError, match=rf"^{image}: damaged.*5 other images were scored and are kept in .*the same command continues"):
        engine_evaluation(street_engines.labels, broken, out=tmp_path / "out")
    assert len((tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()) == 1 + 5
    assert not (tmp_path / "out" / RESULT_NAME).exists()
    image.write_bytes(bad.image.read_bytes())
    assert engine_evaluation(street_engines.labels, broken, out=tmp_path / "out") == whole


def test_only_what_has_truth_can_be_scored(street_engines, streets: Dataset, tmp_path: Path) -> None:
    test = replace(streets, split="test", samples=tuple(replace(sample, label=None) for sample in streets.samples))
    with pytest.raises(InputError, match=r"synthetic-streets test under .* has no ground truth.*only `segnas predict` is possible"):
        engine_evaluation(street_engines.labels, test)
    camvid = tmp_path / "camvid" / "val"
    for folder, suffix in (("images", "jpg"), ("labels", "png")):
        (camvid / folder).mkdir(parents=True)
        (camvid / folder / f"a.{suffix}").write_bytes(b"")
    with pytest.raises(IncompatibleError, match="camvid has sky, building"):
        engine_evaluation(street_engines.labels, open_dataset("camvid", tmp_path / "camvid", "val"))


def test_instances_are_counted_where_every_image_has_them(street_engines, tmp_path: Path) -> None:
    """With instances of our own drawing, in two parts and from a journal, against the counts of the whole by hand."""
    from segnas.streets import write_streets

    root = write_streets(tmp_path / "streets", counts={"val": 4}, height=64, width=128, seed=5)
    drawn = open_dataset("cityscapes", root, "val")
    assert not drawn.has_instances
    for sample in drawn.samples:
        ids = cv2.imread(str(sample.label), cv2.IMREAD_UNCHANGED).astype(np.uint16)
        marked = np.where(ids >= 24, ids * 1000 + np.arange(128, dtype=np.uint16) // 30, ids).astype(np.uint16)
        assert cv2.imwrite(str(sample.label).replace("labelIds", "instanceIds"), marked)
    assert drawn.has_instances
    found = engine_evaluation(street_engines.labels, drawn, workers=3)
    assert found.instances
    session = onnxruntime.InferenceSession(street_engines.labels.read_bytes(), providers=["CPUExecutionProvider"])
    expected: list[Any] = []
    for index in range(4):
        decoded = drawn.decode(index, instances=True)
        assert decoded.instances is not None
        ids = CITYSCAPES.ids(session.run(None, {"input": normalise(decoded.image[None])})[0][0])
        expected += instance_counts(index, decoded.instances, ids, CITYSCAPES)
    assert found.instances == tuple(expected)
    parts = [(str(k), engine_evaluation(street_engines.labels, drawn, part=Part(None, k, 2), out=tmp_path / "out")) for k in (2, 1)]
    assert merged(parts) == found == engine_evaluation(street_engines.labels, drawn, out=tmp_path / "out")
    write_noun(tmp_path / "e.json", found)
    assert read_noun(tmp_path / "e.json", Evaluation) == found
    assert any("iIoU" in line for line in evaluation_lines(found))
    (tmp_path / "streets/gtFine/val/synval" / f"{drawn.samples[0].name}_gtFine_instanceIds.png").unlink()
    assert not drawn.has_instances


KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path

    import segnas.counts_journal as journals
    from segnas.data import open_dataset
    from segnas.evaluating import engine_evaluation

    engine, streets, out, moments = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    dataset = open_dataset(sys.argv[5], streets, sys.argv[6])
    write = journals.CountsJournal._write


    def dying(after, part):
        '''Write so many lines, then that part of the next, and be killed by the system.'''
        left = after

        def dies(self, entry):
            nonlocal left
            if left == 0:
                line = journals.canonical_json(entry).encode() + b"\\n"
                self._stream.write(line[: round(part * len(line))])
                self._stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            write(self, entry)

        return dies


    kills = 0
    for moment in range(moments):
        child = os.fork()
        if child == 0:  # nothing has started a thread yet
            rng = random.Random(moment)
            journals.CountsJournal._write = dying(rng.randint(0, 2), rng.choice((0.0, 0.3, 0.999, 1.0)))
            engine_evaluation(engine, dataset, out=out, workers=rng.randint(1, 3))
            os._exit(0)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    engine_evaluation(engine, dataset, out=out)
    print(kills)
"""


def killed(engine: Path, dataset: Dataset, out: Path, moments: int) -> int:
    """Evaluate in processes that are killed between lines and within them, then to the end; how many were killed."""
    words = (engine, dataset.root, out, moments, dataset.name, dataset.split)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kills_at_any_moment_leave_no_trace(street_engines, streets: Dataset, tmp_path: Path) -> None:
    engine_evaluation(street_engines.labels, streets, out=tmp_path / "whole")
    assert killed(street_engines.labels, streets, tmp_path / "killed", 6) >= 3
    assert (tmp_path / "killed" / RESULT_NAME).read_bytes() == (tmp_path / "whole" / RESULT_NAME).read_bytes()
    lines = [sorted((tmp_path / name / JOURNAL_NAME).read_bytes().splitlines()) for name in ("whole", "killed")]
    assert lines[0] == lines[1]


def engine_of(content: bytes, folder: Path, *, size: tuple[int, int], batch: int, classes: tuple[str, ...], weights: str = "w") -> Path:
    """A labels engine of that batch on disk, without a parity check."""
    target = cpu_target(*size, batch=batch)
    ports = {"inputs": (Port("input", "float32", (batch, 3, *size)),), "outputs": (Port("labels", "uint8", (batch, *size)),)}
    write_engine(folder, content, Engine("model.onnx", "onnx", "", 0, target, "a", weights, classes, None, (), **ports))
    return folder / "model.onnx"


def small_graph(batch: int, classes: int, seed: int) -> bytes:
    """A 3x3 convolution and an argmax as ONNX, 64x128."""
    weights = np.random.default_rng(seed).standard_normal((classes, 3, 3, 3)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["input", "w"], ["logits"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("ArgMax", ["logits"], ["largest"], axis=1, keepdims=0),
        onnx.helper.make_node("Cast", ["largest"], ["labels"], to=onnx.TensorProto.UINT8),
    ]
    ports = [
        onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [batch, 3, 64, 128]),
        onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, [batch, 64, 128]),
    ]
    graph = onnx.helper.make_graph(nodes, "small", ports[:1], ports[1:], [onnx.numpy_helper.from_array(weights, "w")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def test_engines_of_other_batches_agree(street_engines, streets: Dataset, tmp_path: Path) -> None:
    """Six images fill batches of four once and a half; what fills the other half is not counted."""
    names = tuple(label.name for label in CITYSCAPES.classes)

    def made(batch: int, seed: int = 0, **words: str) -> Path:
        return engine_of(small_graph(batch, 19, seed), tmp_path / f"{batch}-{seed}", size=(64, 128), batch=batch, classes=names, **words)

    engines = [made(batch) for batch in (1, 2, 4)]
    found = [engine_evaluation(engine, streets, workers=2) for engine in engines]
    assert [each.accuracy.images for each in found] == [6, 6, 6]
    assert np.array_equal(matrix_of(found[0]), by_hand(engines[0], streets))
    changes = changed_pixels(engines, streets)
    assert [(change.batch, change.pixels) for change in changes] == [(2, 6 * 64 * 128), (4, 6 * 64 * 128)]
    for change, each in zip(changes, found[1:], strict=True):
        assert change.share < MOST_CHANGED
        assert np.abs(matrix_of(each) - matrix_of(found[0])).sum() <= 2 * change.changed
    apart = changed_pixels([engines[0], engines[0], made(1, seed=1)], streets, limit=1)
    assert (apart[0].changed, apart[0].pixels) == (0, 64 * 128)
    assert apart[1].share > 0.1
    with pytest.raises(IncompatibleError, match="engines of one network"):
        changed_pixels([engines[0], made(1, seed=2, weights="other")], streets)


@pytest.mark.slow
def test_camvid_scores_the_same_with_any_workers_batch_order_and_after_kills(camvid_root: Path, tmp_path: Path) -> None:
    """An engine of random weights, or of the folder SEGNAS_CAMVID_RUN (arch.json and weights.safetensors), at 360x480."""
    from segnas.steps import load_network

    dataset, run = open_dataset("camvid", camvid_root, "test"), os.environ.get("SEGNAS_CAMVID_RUN")
    tiny = space("cas-tiny", 11)
    network = initialised(tiny.decode(next(tiny.genotypes())).architecture, 0).eval()
    if run:
        network, _ = load_network(read_noun(Path(run) / "arch.json", Architecture), Path(run) / "weights.safetensors")
    names = tuple(label.name for label in dataset.labels.classes)
    torch.set_num_threads(1)
    engines = [
        engine_of(onnx_from_network(network, cpu_target(360, 480, batch=n)), tmp_path / str(n), size=(360, 480), batch=n, classes=names)
        for n in (1, 2, 4)
    ]
    whole = engine_evaluation(engines[0], dataset, workers=1, out=tmp_path / "whole")
    backwards = replace(dataset, samples=dataset.samples[::-1])
    assert killed(engines[0], dataset, tmp_path / "killed", 5) >= 4
    assert (tmp_path / "killed" / RESULT_NAME).read_text() == noun_text(whole)
    for other in (engine_evaluation(engines[0], dataset, workers=4), engine_evaluation(engines[0], backwards, workers=2)):
        assert abs(other.accuracy.miou - whole.accuracy.miou) < 1e-12
        assert other.accuracy.matrix == whole.accuracy.matrix
    for change in changed_pixels(engines, dataset):
        assert change.share < MOST_CHANGED

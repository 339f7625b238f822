"""Training: that it learns, that an interruption leaves no trace, what is refused, and two processes that stay one."""

import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segnas.arch import Architecture, Node
from segnas.data import Dataset, class_shares, open_dataset
from segnas.errors import IncompatibleError, InputError, UsageError, VerificationError
from segnas.files import write_noun
from segnas.kinds import kind
from segnas.network import Network, initialised
from segnas.search.checkpoint import load_tensors
from segnas.search.train import AuxiliaryNetwork, Trained, TrainSettings, auxiliary_node, class_weights, learning_rate, nearest_labels, train
from segnas.streets import write_streets

SETTINGS = TrainSettings(steps=10, batch=4, crop=(48, 64), warmup=2, learning_rate=0.1, checkpoint_s=0.0)
"""Of 12 images: 3 steps an epoch. A checkpoint after every step."""


def tiny(classes: int = 19) -> Architecture:
    """Down to 1/16 with every kind of tensor that training carries: statistics, a residual, a gate, a biased classifier."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 12, 4),
        Node(kind("separable"), (1,), 16, 2),
        Node(kind("inverted_residual", expansion=2, squeeze=4), (2,), 16),
        Node(kind("conv"), (3,), 24, 2),
        Node(kind("resize"), (4,), 24, up=2),
        Node(kind("concat"), (5, 3), 40),
        Node(kind("classifier"), (6,), classes),
        Node(kind("resize"), (7,), classes, up=8),
    )
    return Architecture(nodes)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 12}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


def bytes_of(weights: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def undisturbed(streets: Dataset, tmp_path_factory) -> Trained:
    return train(tiny(), streets, SETTINGS, seed=5, checkpoint=tmp_path_factory.mktemp("whole") / "c.safetensors")


def test_the_loss_falls_and_progress_counts(streets: Dataset, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    settings = replace(SETTINGS, steps=60, scale=(0.75, 1.25), checkpoint_s=1e9, ohem_threshold=0.999, auxiliary=0.0)
    trained = train(tiny(), streets, settings, seed=0, checkpoint=tmp_path / "c", progress=lambda *at: seen.append(at))
    assert [step for step, _, _ in seen] == list(range(1, 61))
    assert {total for _, total, _ in seen} == {60}
    assert all(text.startswith("loss ") for _, _, text in seen)
    curve = trained.curves[0]
    assert curve.name == "train/loss"
    assert curve.steps == tuple(range(1, 61))
    assert len(curve.values) == 60
    assert curve.values[0] == pytest.approx(math.log(19), abs=0.1)  # a quiet classifier knows nothing yet
    assert curve.values[-1] < 0.8 * curve.values[0]


def test_the_averaged_weights_fit_the_network_and_no_more(undisturbed: Trained) -> None:
    network = Network(tiny())
    network.load_state_dict(undisturbed.weights)
    assert not [name for name in undisturbed.weights if "head" in name]
    assert all(torch.isfinite(tensor).all() for tensor in undisturbed.weights.values())
    start = initialised(tiny(), 5).state_dict()
    moved = [name for name, tensor in undisturbed.weights.items() if not torch.equal(tensor, start[name])]
    assert moved == list(start)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7, 10])
def test_an_interrupted_training_ends_in_the_same_bytes(streets: Dataset, tmp_path: Path, undisturbed: Trained, at: int, stopping) -> None:
    """Before the first checkpoint, within an epoch, at its end, and when the last step is done but not written."""
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), streets, SETTINGS, seed=5, checkpoint=checkpoint, progress=stopping(at))
    assert checkpoint.is_file() == (at > 1)
    torch.manual_seed(at)  # what the process did before has no say
    steps: list[int] = []
    resumed = train(tiny(), streets, SETTINGS, seed=5, checkpoint=checkpoint, progress=lambda step, *_: steps.append(step))
    assert steps == list(range(at, 11))
    assert bytes_of(resumed.weights) == bytes_of(undisturbed.weights)
    assert resumed.curves == undisturbed.curves


def test_adamw_with_class_weights_resumes_to_the_same_bytes(streets: Dataset, tmp_path: Path, undisturbed: Trained, stopping) -> None:
    settings = replace(SETTINGS, optimiser="adamw", learning_rate=0.003, class_weights=1.02)
    whole = train(tiny(), streets, settings, seed=5, checkpoint=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), streets, settings, seed=5, checkpoint=tmp_path / "c", progress=stopping(5))
    resumed = train(tiny(), streets, settings, seed=5, checkpoint=tmp_path / "c")
    assert bytes_of(resumed.weights) == bytes_of(whole.weights) != bytes_of(undisturbed.weights)


def test_class_weights_are_those_of_the_formula(streets: Dataset) -> None:
    shares = class_shares(streets)
    ids = [streets.labels.train_ids(streets.read(i)[1]) for i in range(len(streets))]
    for index, share in enumerate(shares):
        assert share == pytest.approx(sum(int((i == index).sum()) for i in ids) / sum(int((i != 255).sum()) for i in ids))
    assert class_weights((0.0, 0.5), 1.02).tolist() == pytest.approx([1 / math.log(1.02), 1 / math.log(1.52)], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"optimiser": "adam"}, "allowed: sgd, adamw"), ({"class_weights": 0.5}, "a number above 1"), ({"class_weights": -1.0}, "0 ")],
)
def test_a_schedule_that_makes_no_sense_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(SETTINGS, **changed)


def test_a_finished_training_is_not_trained_again(streets: Dataset, tmp_path: Path, undisturbed: Trained, stopping) -> None:
    checkpoint = tmp_path / "c.safetensors"
    train(tiny(), streets, SETTINGS, seed=5, checkpoint=checkpoint)
    again = train(tiny(), streets, SETTINGS, seed=5, checkpoint=checkpoint, progress=stopping(11))
    assert bytes_of(again.weights) == bytes_of(undisturbed.weights)
    assert again.curves == undisturbed.curves


def test_workers_and_the_time_of_checkpoints_change_nothing(streets: Dataset, tmp_path: Path, undisturbed: Trained) -> None:
    other = train(tiny(), streets, replace(SETTINGS, checkpoint_s=1e9), seed=5, checkpoint=tmp_path / "c", workers=0)
    assert bytes_of(other.weights) == bytes_of(undisturbed.weights)
    seeded = train(tiny(), streets, SETTINGS, seed=6, checkpoint=tmp_path / "d")
    assert bytes_of(seeded.weights) != bytes_of(undisturbed.weights)


def test_training_leaves_the_global_randomness_alone(streets: Dataset, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(tiny(), streets, replace(SETTINGS, steps=1), seed=5, checkpoint=tmp_path / "c")
    assert torch.equal(torch.get_rng_state(), before)


# ---- what is refused


@pytest.fixture(scope="module")
def stopped(streets: Dataset, tmp_path_factory, stopping) -> Path:
    checkpoint = tmp_path_factory.mktemp("stopped") / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), streets, SETTINGS, seed=5, checkpoint=checkpoint, progress=stopping(3))
    return checkpoint


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(streets: Dataset, stopped: Path, tmp_path: Path) -> None:
    before = stopped.read_bytes()
    with pytest.raises(IncompatibleError, match=r"c\.safetensors is a checkpoint of another run: its seed is 5, not 6"):
        train(tiny(), streets, SETTINGS, seed=6, checkpoint=stopped)
    wider = replace(tiny(), nodes=(*tiny().nodes[:4], replace(tiny().nodes[4], kind=kind("conv", kernel=5)), *tiny().nodes[5:]))
    with pytest.raises(IncompatibleError, match=rf"its architecture is {tiny().digest}, not {wider.digest}"):
        train(wider, streets, SETTINGS, seed=5, checkpoint=stopped)
    with pytest.raises(IncompatibleError, match=r"its settings is .*'steps': 10"):
        train(tiny(), streets, replace(SETTINGS, steps=11), seed=5, checkpoint=stopped)
    fewer = replace(streets, samples=streets.samples[:11])
    with pytest.raises(IncompatibleError, match="its data is synthetic-streets train, 12 samples, not synthetic-streets train, 11 samples"):
        train(tiny(), fewer, SETTINGS, seed=5, checkpoint=stopped)
    assert stopped.read_bytes() == before


def test_a_damaged_checkpoint_is_refused(streets: Dataset, stopped: Path, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(stopped.read_bytes()[:-100])
    with pytest.raises(InputError, match="is no complete safetensors file"):
        train(tiny(), streets, SETTINGS, seed=5, checkpoint=tmp_path / "c")


def test_a_network_of_another_number_of_classes_is_refused(streets: Dataset, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="the architecture has 11 classes, synthetic-streets has 19"):
        train(tiny(11), streets, SETTINGS, seed=5, checkpoint=tmp_path / "c")


def test_a_divergence_is_said_and_keeps_the_checkpoint(streets: Dataset, tmp_path: Path) -> None:
    checkpoint, done = tmp_path / "c", list[int]()
    with pytest.raises(
        VerificationError, match=r"training diverged at step \d+: the loss is (nan|inf)\..*train\.learning_rate below 1e\+30"
    ) as caught:
        train(tiny(), streets, replace(SETTINGS, learning_rate=1e30), seed=5, checkpoint=checkpoint, progress=lambda step, *_: done.append(step))
    assert caught.value.exit_code == 5
    assert done
    assert load_tensors(checkpoint)[1]["step"] == done[-1]


# ---- parts


def test_starting_weights_replace_the_drawn_ones_by_name(streets: Dataset, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, learning_rate=1e-30, warmup=0, weight_decay=0.0)
    start = {"nodes.2.layers.0.0.weight": torch.full((12, 1, 3, 3), 0.25)}
    weights = train(tiny(), streets, settings, seed=5, checkpoint=tmp_path / "c", start=start).weights
    drawn = initialised(tiny(), 5).state_dict()
    assert torch.equal(weights["nodes.2.layers.0.0.weight"], start["nodes.2.layers.0.0.weight"])
    assert torch.equal(weights["nodes.4.layers.0.0.weight"], drawn["nodes.4.layers.0.0.weight"])
    with pytest.raises(InputError, match=r"the starting weights hold nodes\.99\.weight, which this architecture has not"):
        train(tiny(), streets, settings, seed=5, checkpoint=tmp_path / "d", start={"nodes.99.weight": torch.ones(1)})


def test_the_schedule_in_closed_form() -> None:
    settings = TrainSettings(steps=100, learning_rate=0.5, power=0.9, warmup=10)
    assert learning_rate(settings, 0) == pytest.approx(0.5 * 0.1)
    assert learning_rate(settings, 4) == pytest.approx(0.5 * 0.5 * 0.96**0.9)
    assert learning_rate(settings, 9) == pytest.approx(0.5 * 0.91**0.9)
    assert learning_rate(settings, 50) == pytest.approx(0.5 * 0.5**0.9)
    assert learning_rate(settings, 99) == pytest.approx(0.5 * 0.01**0.9)
    assert learning_rate(replace(settings, warmup=0), 0) == 0.5
    later = [learning_rate(settings, step) for step in range(9, 100)]
    assert later == sorted(later, reverse=True)


def test_the_average_in_closed_form(streets: Dataset, tmp_path: Path) -> None:
    """After one step the decay is (1 + 1) / (10 + 1), not 0.99: the average follows quickly at first."""
    settings = replace(SETTINGS, steps=1, warmup=0)
    trained = train(tiny(), streets, settings, seed=5, checkpoint=tmp_path / "c")
    tensors, _ = load_tensors(tmp_path / "c")
    start = initialised(tiny(), 5).state_dict()
    for name, tensor in trained.weights.items():
        if tensor.is_floating_point():
            expected = start[name] * 2 / 11 + tensors[f"model.network.{name}"] * 9 / 11
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(tensor, tensors[f"model.network.{name}"])


def test_the_auxiliary_head_sits_a_stage_before_the_end(every_op: Architecture) -> None:
    assert auxiliary_node(tiny()) == 3  # the last node at 1/8 before the first at 1/16
    assert every_op.levels[auxiliary_node(every_op)] == 4
    flat = Architecture((Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8), Node(kind("classifier"), (1,), 19)))
    assert auxiliary_node(flat) == 0
    model = AuxiliaryNetwork(initialised(tiny(), 0)).train()
    logits, auxiliary = model(torch.randn(2, 3, 48, 64))
    assert logits.shape == (2, 19, 48, 64)
    assert auxiliary.shape == (2, 19, 6, 8)


def test_labels_shrink_to_their_nearest_neighbours() -> None:
    labels = torch.arange(4 * 6).reshape(1, 4, 6)
    labels[0, 3, 4] = 255
    # pixel centres: rows 0.5 and 2.5 of 2 lie nearest to rows 1 and 3 (halves round up), columns of 3 to 1, 3 and 5
    assert nearest_labels(labels, (2, 3)).tolist() == [[[7, 9, 11], [19, 21, 23]]]
    assert nearest_labels(labels, (4, 6)).equal(labels)
    assert set(nearest_labels(torch.tensor([[[3, 255], [255, 3]]]), (3, 3)).flatten().tolist()) <= {3, 255}


# ---- two processes

WORKER = """
    import sys
    from dataclasses import replace
    from pathlib import Path
    import torch
    from segnas.data import open_dataset
    from segnas.files import read_noun
    from segnas.arch import Architecture
    from segnas.search.checkpoint import save_tensors
    from segnas.search.train import TrainSettings, train

    rank, folder, streets, auxiliary = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    settings = TrainSettings(steps=4, batch=4, crop=(48, 64), warmup=2, learning_rate=0.1, checkpoint_s=1e9, auxiliary=auxiliary)
    dataset = open_dataset("cityscapes", streets, "train")
    trained = train(read_noun(folder / "a.json", Architecture), dataset, settings, seed=5, checkpoint=folder / "c.safetensors")
    save_tensors(folder / f"{rank}.safetensors", trained.weights)
    torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.parametrize("auxiliary", [0.4, 0.0])
def test_two_processes_end_with_the_same_weights(streets: Dataset, tmp_path: Path, auxiliary: float) -> None:
    write_noun(tmp_path / "a.json", tiny())
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path), str(streets.root), str(auxiliary)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        messages = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], messages
    first, second = (load_tensors(tmp_path / f"{rank}.safetensors")[0] for rank in range(2))
    assert bytes_of(first) == bytes_of(second)
    assert load_tensors(tmp_path / "c.safetensors")[1]["step"] == 4
    start = initialised(tiny(), 5).state_dict()
    assert not any(torch.equal(first[name], start[name]) for name in first)

"""The search: who may change what, what the latency term does, that an interruption leaves no trace, and what is refused."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segnas.augment import Batch
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, UsageError, VerificationError
from segnas.latency import Calibration, LatencyTable
from segnas.search import loop
from segnas.search.checkpoint import load_tensors
from segnas.search.derive import mode
from segnas.search.loop import Searched, SearchSettings, search
from segnas.search.settings import METHODS
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.streets import write_streets

SETTINGS = SearchSettings(steps=6, warmup=2, batch=4, crop=(64, 64), decision_rate=0.05, checkpoint_s=0.0)
"""Of 8 + 8 images: 2 steps an epoch. A checkpoint after every step."""

BUDGET_MS = 5.0
"""Less than the toy's networks take by the made-up table, so that the latency term has a say."""

MODES: dict[str, SearchSettings] = {
    "softmax": SETTINGS,
    "gumbel": replace(SETTINGS, sampler="gumbel"),
    "hard": replace(SETTINGS, sampler="hard"),
    "paths": replace(SETTINGS, sampler="paths", regularise=(0.01, 0.01, 0.1)),
    "guided": replace(SETTINGS, guidance="chained", price_every=2),
    "darts": replace(SETTINGS, method="darts", order=2),
    "gas": replace(SETTINGS, method="gas", **METHODS["gas"].settings),
}
IN_TURN = [name for name in MODES if name != "gas"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 16}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


@pytest.fixture(scope="module")
def space(toy_cells: Callable[[int], Space]) -> Space:
    return toy_cells(19)


@pytest.fixture(scope="module")
def table(space: Space, made_up_table: Callable[[Space], LatencyTable]) -> LatencyTable:
    return made_up_table(space)


@pytest.fixture
def searched(space: Space, table: LatencyTable, streets: Dataset, tmp_path: Path) -> Callable[..., Searched]:
    """A search with what is given, else the usual; its checkpoint is `c.safetensors` in the test's folder."""

    def run(settings: SearchSettings = SETTINGS, **given) -> Searched:
        usual = {"budget_ms": BUDGET_MS, "seed": 3, "checkpoint": tmp_path / "c.safetensors"}
        arguments = {"space": space, "table": table, "dataset": streets, **usual, **given}
        return search(arguments.pop("space"), arguments.pop("table"), arguments.pop("dataset"), settings, **arguments)

    return run


def digest(parameters) -> str:
    whole = hashlib.sha256()
    for parameter in parameters:
        whole.update(parameter.detach().contiguous().numpy().tobytes())
    return whole.hexdigest()


def curve(found: Searched, name: str) -> tuple[float, ...]:
    return next(curve.values for curve in found.curves if curve.name == f"search/{name}")


def supernet_of(checkpoint: Path) -> dict[str, bytes]:
    tensors = load_tensors(checkpoint)[0]
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# ---- two halves


@pytest.mark.parametrize("mode_name", IN_TURN)
def test_each_half_moves_its_own_parameters_only(searched, monkeypatch: pytest.MonkeyPatch, mode_name: str) -> None:
    seen: dict[str, set[int]] = {"_learn": set(), "_decide": set()}
    moved: dict[str, list[tuple[bool, bool]]] = {"_learn": [], "_decide": []}

    def spied(name: str):
        original = getattr(loop._Run, name)

        def half(self, batch: Batch, *others, **given):
            before = digest(self.supernet.parameters()), digest(self.decisions.values())
            result = original(self, batch, *others, **given)
            after = digest(self.supernet.parameters()), digest(self.decisions.values())
            seen[name].update(batch.indices)
            moved[name].append((before[0] != after[0], before[1] != after[1]))
            return result

        return half

    for name in seen:
        monkeypatch.setattr(loop._Run, name, spied(name))
    searched(replace(MODES[mode_name], checkpoint_s=1e9))
    assert moved["_learn"] == [(True, False)] * SETTINGS.steps
    assert moved["_decide"] == [(False, True)] * (SETTINGS.steps - SETTINGS.warmup)
    assert not seen["_learn"] & seen["_decide"]
    assert seen["_learn"] | seen["_decide"] == set(range(16))


@pytest.mark.parametrize("given", [{}, {"order": 2}, {"teacher": True}], ids=["first-order", "second-order", "taught"])
def test_a_step_of_the_decisions_leaves_weights_momentum_and_statistics_to_the_bit(searched, monkeypatch, tmp_path: Path, given) -> None:
    """So each normalisation has counted the batches of the weights' steps alone, a teacher's beside them."""
    original = loop._Run._decide
    seen: list[tuple[str, int]] = []

    def spied(self, *batches: Batch) -> None:
        def held() -> tuple[str, int]:
            momenta = [memory["momentum_buffer"] for memory in self.weight_optimiser.state.values()]
            return digest([*self.supernet.state_dict().values(), *momenta]), len(momenta)

        before, decided = held(), digest(self.decisions.values())
        original(self, *batches)
        assert held() == before
        assert digest(self.decisions.values()) != decided
        seen.append(before)

    monkeypatch.setattr(loop._Run, "_decide", spied)
    settings = replace(SETTINGS, steps=4, checkpoint_s=1e9, **given)
    searched(settings)
    assert len(set(seen)) == 2  # between the two the weights' steps moved them
    assert all(momenta for _, momenta in seen)
    counted = {int(tensor) for name, tensor in load_tensors(tmp_path / "c.safetensors")[0].items() if name.endswith("num_batches_tracked")}
    assert counted == {settings.steps * (1 + settings.teacher)}


def test_one_pass_fills_every_gradient_and_the_optimisers_share_nothing(searched, monkeypatch: pytest.MonkeyPatch) -> None:
    """GAS: one backward pass for weights, decisions and guidance; each parameter has one optimiser."""
    original = loop._Run._learn
    seen: list[int] = []

    def spied(self, batch: Batch, *, decides: bool):
        passes, backward = [0], torch.Tensor.backward

        def counted(tensor, *given, **named):
            passes[0] += 1
            return backward(tensor, *given, **named)

        monkeypatch.setattr(torch.Tensor, "backward", counted)
        result = original(self, batch, decides=decides)
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        assert decides
        assert passes == [1]
        held = [
            [id(p) for group in optimiser.param_groups for p in group["params"]] for optimiser in (self.weight_optimiser, self.decision_optimiser)
        ]
        assert not set(held[0]) & set(held[1])
        everything = [p for p in self.supernet.parameters() if p.requires_grad] + [p for _, p in self.relaxation.named_parameters()]
        assert sorted(held[0] + held[1]) == sorted(map(id, everything))
        assert all(p.grad is not None for p in everything)
        moving = [name for name, p in self.relaxation.named_parameters() if p.grad.abs().sum() > 0]
        assert set(self.relaxation.raw) <= set(moving)
        assert any(name.startswith("guidance/") for name in moving)
        seen.extend(batch.indices)
        return result

    monkeypatch.setattr(loop._Run, "_learn", spied)
    searched(replace(MODES["gas"], checkpoint_s=1e9))
    assert set(seen) == set(range(16))  # the whole training set


def test_in_one_pass_the_decisions_gradient_has_no_part_in_the_weights_clip(searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GAS: a million times the decisions' gradient leaves the weights' step the same to the bit; what is clipped has the norm of the clip."""
    settings, begin = replace(MODES["gas"], steps=1, warmup=0, clip=0.01, weight_decay=0.0), loop._Run.__init__
    learned, norms = [], []
    for times in (1.0, 1e6):

        def begun(self, *given, times: float = times) -> None:
            begin(self, *given)
            for parameter in self.decisions.values():
                parameter.register_hook(lambda gradient: times * gradient)

        monkeypatch.setattr(loop._Run, "__init__", begun)
        found = searched(settings, checkpoint=tmp_path / f"{times}")
        norms.append(curve(found, "gradient of the loss to the decisions, norm")[0])
        tensors = load_tensors(tmp_path / f"{times}")[0]
        learned.append({name: tensor for name, tensor in tensors.items() if name.startswith(("supernet.", "weights."))})
    assert norms[1] == pytest.approx(1e6 * norms[0], rel=0.01)
    assert norms[1] > 1e3 * settings.clip
    assert all(torch.equal(tensor, learned[1][name]) for name, tensor in learned[0].items())
    momenta = [tensor for name, tensor in learned[0].items() if name.endswith("momentum_buffer")]
    assert float(torch.cat([momentum.flatten() for momentum in momenta]).norm()) == pytest.approx(settings.clip, rel=1e-4)


def test_with_two_phases_the_multi_scale_cell_is_searched_last(searched, made_up_table, streets: Dataset, tmp_path: Path, stopping) -> None:
    whole = SPACES["cas"](19)
    settings = replace(SETTINGS, steps=5, warmup=1, batch=2, phases=2, sampler="hard", decision_rate=0.3)
    with pytest.raises(KeyboardInterrupt):
        searched(settings, space=whole, table=made_up_table(whole), budget_ms=1e3, progress=stopping(3))
    before = {name: tuple(values.tolist()) for name, values in load_tensors(tmp_path / "c.safetensors")[0].items() if name.startswith("decision.")}
    found = searched(settings, space=whole, table=made_up_table(whole), budget_ms=1e3)
    after = {name: tuple(values.tolist()) for name, values in load_tensors(tmp_path / "c.safetensors")[0].items() if name.startswith("decision.")}
    assert before != after
    for name, p in found.probabilities.items():
        assert (max(p) == 1.0) == (not name.startswith("multi_scale."))
    with pytest.raises(UsageError, match="no multi-scale cell"):
        searched(replace(SETTINGS, phases=2), checkpoint=tmp_path / "other")


def test_scale_and_shift_of_normalisations_stay_fixed(searched, tmp_path: Path) -> None:
    searched(replace(SETTINGS, steps=3, warmup=1, checkpoint_s=1e9))
    tensors = load_tensors(tmp_path / "c.safetensors")[0]
    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
    assert norms
    for name in norms:
        assert (tensors[f"{name}weight"] == 1).all()
        assert (tensors[f"{name}bias"] == 0).all()


# ---- the latency term


def test_a_low_budget_draws_the_decoded_network_down_and_a_high_one_says_nothing(searched, space: Space, table: LatencyTable, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=14, warmup=1, batch=2, decision_rate=0.1, rho=20.0, multiplier_rate=1.0, checkpoint_s=1e9)
    low = searched(settings, budget_ms=5.0, checkpoint=tmp_path / "low")
    high = searched(settings, budget_ms=1e4, checkpoint=tmp_path / "high")
    silent = replace(settings, rho=0.0, multiplier_rate=0.0)
    alone = searched(silent, budget_ms=5.0, checkpoint=tmp_path / "alone")
    assert high.probabilities == alone.probabilities  # to the last bit: cross-entropy is all there is
    assert set(curve(high, "multiplier of latency, ms")) == {0.0}
    multipliers = curve(low, "multiplier of latency, ms")
    assert list(multipliers) == sorted(multipliers)
    assert multipliers[0] > 0
    assert decoded(space, table, low) < 0.97 * decoded(space, table, high)
    assert curve(low, "expected latency, ms")[-1] < curve(high, "expected latency, ms")[-1]
    assert curve(low, "decoded latency, ms")[-1] == pytest.approx(decoded(space, table, low), rel=1e-6)


def decoded(space: Space, table: LatencyTable, found: Searched) -> float:
    return table.additive_ms(space.decode(mode(space, found.probabilities)).architecture)


# ---- what comes back


@pytest.mark.parametrize("mode_name", IN_TURN)
def test_every_sampler_ends_in_probabilities_and_curves(searched, space: Space, mode_name: str) -> None:
    texts: list[str] = []
    found = searched(MODES[mode_name], progress=lambda step, steps, text: texts.append(f"{step}/{steps} {text}"))
    assert {name: len(options) for name, options in found.probabilities.items()} == space.decisions
    for options in found.probabilities.values():
        assert math.fsum(options) == pytest.approx(1)
        assert len(set(options)) > 1
    steps = {curve.name.removeprefix("search/"): curve.steps for curve in found.curves}
    assert steps.pop("loss on weights' half") == tuple(range(6))
    late = [name for name in steps if name.startswith(("expected", "gradient of prices")) and mode_name == "guided"] + ["regularisers"]
    assert {values for name, values in steps.items() if name not in late} == {(2, 3, 4, 5)}
    assert all(steps[name] in [(2, 4), (3, 4, 5)] for name in late if name in steps)
    assert len(steps) == 8 + (mode_name == "gumbel") + (mode_name == "paths")
    assert len(texts) == 6
    assert texts[0].startswith("1/6 loss ")
    assert "decoded" not in texts[1]
    assert "decoded" in texts[2]


def test_searching_leaves_the_global_randomness_alone(searched) -> None:
    before = torch.get_rng_state()
    searched(replace(SETTINGS, steps=2, warmup=1))
    assert torch.equal(torch.get_rng_state(), before)


# ---- interruptions


@pytest.mark.parametrize(
    ("mode_name", "at"),
    [("softmax", 1), ("softmax", 3), ("softmax", 6), ("gumbel", 4), ("hard", 5), ("paths", 4), ("guided", 3), ("gas", 2), ("darts", 3)],
)
def test_an_interrupted_search_ends_in_the_same_bits(searched, tmp_path: Path, mode_name: str, at: int, stopping) -> None:
    """Before the first checkpoint, in the warm-up and behind it, within an epoch and at its end, and with the last step done but not written."""
    settings, whole = MODES[mode_name], tmp_path / "whole.safetensors"
    undisturbed = searched(settings, checkpoint=whole)
    with pytest.raises(KeyboardInterrupt):
        searched(settings, progress=stopping(at))
    assert (tmp_path / "c.safetensors").is_file() == (at > 1)
    torch.manual_seed(at)  # what the process did before has no say
    steps: list[int] = []
    resumed = searched(settings, progress=lambda step, *_: steps.append(step))
    assert steps == list(range(at, 7))
    assert resumed.probabilities == undisturbed.probabilities
    assert resumed.curves == undisturbed.curves
    assert supernet_of(tmp_path / "c.safetensors") == supernet_of(whole)
    assert searched(settings, progress=stopping(7)) == resumed  # finished: nothing is searched again


# ---- what is refused


@pytest.fixture(scope="module")
def stopped(space: Space, table: LatencyTable, streets: Dataset, tmp_path_factory, stopping) -> Path:
    checkpoint = tmp_path_factory.mktemp("stopped") / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        search(space, table, streets, SETTINGS, budget_ms=BUDGET_MS, seed=3, checkpoint=checkpoint, progress=stopping(2))
    return checkpoint


def test_a_checkpoint_of_another_search_is_refused_by_what_differs(searched, stopped: Path, table: LatencyTable, streets: Dataset) -> None:
    before = stopped.read_bytes()
    with pytest.raises(IncompatibleError, match=r"c\.safetensors is a checkpoint of another search: its seed is 3, not 4"):
        searched(seed=4, checkpoint=stopped)
    with pytest.raises(IncompatibleError, match=r"its budget_ms is 5\.0, not 31\.0"):
        searched(budget_ms=31.0, checkpoint=stopped)
    with pytest.raises(IncompatibleError, match=r"its settings is .*'steps': 6.*, not .*'steps': 7"):
        searched(replace(SETTINGS, steps=7), checkpoint=stopped)
    with pytest.raises(IncompatibleError, match=r"its data is .*16 samples, not .*15 samples"):
        searched(dataset=replace(streets, samples=streets.samples[:15]), checkpoint=stopped)
    one = replace(table.entries[0], median_ms=table.entries[0].median_ms * 1.001)
    for other in (
        replace(table, entries=(one, *table.entries[1:])),
        replace(table, overhead_ms=0.31),
        replace(table, calibration=Calibration(scale=0.8)),
        replace(table, target=replace(table.target, threads=2)),
    ):
        with pytest.raises(IncompatibleError, match=r"its table is .*, not "):
            searched(table=other, checkpoint=stopped)
    assert stopped.read_bytes() == before


def test_the_time_of_checkpoints_and_the_order_of_entries_are_no_difference(searched, stopped: Path, table: LatencyTable, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(stopped.read_bytes())
    steps: list[int] = []
    turned = replace(table, entries=table.entries[::-1])
    searched(replace(SETTINGS, checkpoint_s=1e9), table=turned, checkpoint=copy, progress=lambda step, *_: steps.append(step))
    assert steps == [2, 3, 4, 5, 6]


def test_an_unknown_sampler_is_refused(searched, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"search\.sampler was given 'random'; allowed: softmax, gumbel, hard, paths"):
        searched(replace(SETTINGS, sampler="random"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode_name", MODES)
def test_a_divergence_is_said_and_keeps_the_checkpoint(searched, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode_name: str) -> None:
    """The loss is NaN from the fourth step's images on."""
    original, count = loop._Run._learn, [0]

    def poisoned(self, batch: Batch, **given):
        count[0] += 1
        return original(self, replace(batch, images=batch.images * np.nan) if count[0] == 4 else batch, **given)

    monkeypatch.setattr(loop._Run, "_learn", poisoned)
    where = "(loss|loss on weights' half|gradient of the loss to the decisions, norm)"
    message = rf"the search diverged at step 3: {where} is nan\. The last checkpoint is kept; .*search\.learning_rate.* 0\.0[25]"
    with pytest.raises(VerificationError, match=message) as caught:
        searched(MODES[mode_name])
    assert caught.value.exit_code == 5
    tensors, state = load_tensors(tmp_path / "c.safetensors")
    assert state["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())

"""The controller and its PPO against closed forms and enumeration (reference 4.7, points 2, 3, 4, 5 and 10)."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from optuna.storages import InMemoryStorage
from torch import nn

from segnas.errors import UsageError
from segnas.latency import LatencyTable
from segnas.search.controlled import ControlledProposer
from segnas.search.controlled_settings import ControllerSettings
from segnas.search.controller import Controller, Decision, Learner, decisions_of, latency_factor, ppo_loss
from segnas.search.proposals import Allowed
from segnas.search.sampled import Noted, Scoring, sample
from segnas.search.settings import SearchSettings
from segnas.search.space import Genotype, Space
from segnas.search.spaces import space
from segnas.search.spaces.fastnas import order
from segnas.search.trials import SampledTrial

TOY = (Decision("a", "a", (0, 1, 2)), Decision("b", "b", (0, 1)), Decision("c", "a", (1, 2)))
SMALL = ControllerSettings(hidden=8, layers=1, learning_rate=0.01)


def toy(*, conditioned: bool = False, seed: int = 0) -> Controller:
    return Controller(TOY, hidden=8, conditioned=conditioned, seed=seed)


def everything() -> list[dict[str, int]]:
    return [dict(zip("abc", options, strict=True)) for options in itertools.product(range(3), range(2), range(2))]


def weights(controller: Controller) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in controller.parameters()]


# ---- the policy


@pytest.mark.parametrize("conditioned", [False, True])
def test_probabilities_of_all_genotypes_sum_to_one_and_are_the_frequencies_of_samples(conditioned: bool) -> None:
    controller = toy(conditioned=conditioned)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(8)  # far from uniform
        chances = {tuple(g.values()): float(controller.log_prob(g).exp()) for g in everything()}
    assert math.fsum(chances.values()) == pytest.approx(1, abs=1e-6)
    assert max(chances.values()) > 3 * min(chances.values())
    drawn = [tuple(controller.sample(seed).values()) for seed in range(500)]
    squares = sum((drawn.count(g) - 500 * p) ** 2 / (500 * p) for g, p in chances.items())
    assert squares < 11 + 5 * math.sqrt(22)


def test_as_released_decisions_do_not_depend_on_each_other_and_conditioned_they_do() -> None:
    def spread(controller: Controller) -> float:
        with torch.no_grad():
            for parameter in controller.parameters():
                parameter.mul_(8)
            logs = {tuple(g.values()): float(controller.log_prob(g)) for g in everything()}
        return max(abs(logs[a, 0, c] - logs[a, 1, c] - logs[0, 0, 0] + logs[0, 1, 0]) for a in range(3) for c in range(2))

    assert spread(toy()) < 1e-5
    assert spread(toy(conditioned=True)) > 1e-3


def test_probabilities_are_those_of_log_prob() -> None:
    controller = toy()
    found = controller.probabilities()
    for genotype in everything():
        assert math.prod(found[n][o] for n, o in genotype.items()) == pytest.approx(float(controller.log_prob(genotype).exp().detach()), rel=1e-5)


def test_log_probability_of_a_sampled_decoder_is_that_of_evaluating_it() -> None:
    """By hand: the same walk with torch's own LSTM and plain indexing."""
    made = space("fast-nas", 19)
    controller = Controller(decisions_of(made, order(made)))
    reference = nn.LSTM(100, 100, 2)
    for layer, cell in enumerate(controller.cells):
        for name, tensor in cell.state_dict().items():
            getattr(reference, f"{name}_l{layer}").data.copy_(tensor)
    genotype = controller.sample(7)
    with torch.no_grad():
        feature, state, total = controller.start[None, None], None, 0.0
        for _ in range(4):
            feature, state = reference(feature, state)
        for decision in controller.decisions:
            feature, state = reference(feature, state)
            logits = controller.heads[controller._places[decision.head]](feature[0, 0])  # pyright: ignore[reportPrivateUsage]
            total += float(logits[list(decision.outputs)].log_softmax(0)[genotype[decision.name]])
    assert float(controller.log_prob(genotype).detach()) == pytest.approx(total, abs=1e-4)


def test_the_controller_of_fast_nas_takes_connections_first_and_shares_the_head_of_operations() -> None:
    made = space("fast-nas", 19)
    decisions = decisions_of(made, order(made))
    assert [d.name for d in decisions[:6]] == [f"block.{b}.{s}" for b in range(3) for s in range(2)]
    assert [d.name for d in decisions[6:11]] == ["cell.op.0", "cell.pos.1.0", "cell.pos.1.1", "cell.op.1.0", "cell.op.1.1"]
    assert {d.head for d in decisions if ".op." in d.name} == {"operation"}
    controller = Controller(decisions)
    sizes = [head.out_features for head in controller.heads.values() if isinstance(head, nn.Linear)]
    assert sizes == [4, 4, 5, 5, 6, 6, 11, 2, 2, 5, 5, 8, 8]  # the newest entry of a cell can be chosen: 2, 5, 8 and not 1, 4, 7
    assert all(len(d.outputs) == made.decisions[d.name] for d in decisions)
    assert max(p.detach().abs().max() for p in controller.parameters()) <= 0.1


# ---- PPO


def test_with_the_policy_that_drew_the_gradient_is_that_of_reinforce() -> None:
    controller, genotype, advantage = toy(), {"a": 1, "b": 0, "c": 1}, -0.7
    log_prob = controller.log_prob(genotype)
    ppo = torch.autograd.grad(ppo_loss(log_prob, float(log_prob.detach()), advantage, 0.1), list(controller.parameters()))
    plain = torch.autograd.grad(-advantage * controller.log_prob(genotype), list(controller.parameters()))
    for one, other in zip(ppo, plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"), [(1.05, 1.0, -1.05), (1.2, 1.0, 0.0), (1.2, -1.0, 1.2), (0.8, -1.0, 0.0), (0.8, 1.0, -0.8), (0.95, -1.0, 0.95)]
)
def test_outside_the_clip_there_is_no_gradient_where_it_would_lead_further_out(ratio: float, advantage: float, slope: float) -> None:
    log_prob = torch.tensor(-1.0, requires_grad=True)
    ppo_loss(log_prob, -1.0 - math.log(ratio), advantage, 0.1).backward()
    assert log_prob.grad is not None
    assert float(log_prob.grad) == pytest.approx(slope, abs=1e-6)


def test_one_sample_makes_one_step_and_an_empty_buffer_none() -> None:
    """The released buffer of 100 places, filled with zeros, steps Adam a hundred times for each sample."""
    learner, twin = Learner(toy(), ControllerSettings(), 0), toy()
    assert learner.learn({"a": 0, "b": 0, "c": 0}, 0.5) == 1
    for one, other in zip(weights(learner.controller), weights(twin), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)  # the first reward is its own baseline: no advantage, no gradient
    assert learner.learn({"a": 1, "b": 1, "c": 0}, 0.9) == 2
    assert [learner.learn({"a": 0, "b": 0, "c": 1}, 0.1) for _ in range(3)] == [3, 4, 5]


def test_the_second_sample_is_learned_as_two_steps_of_adam_by_hand() -> None:
    first, second = {"a": 0, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}
    learner, twin = Learner(toy(), ControllerSettings(learning_rate=0.01), 3), toy()
    learner.learn(first, 0.5)
    learner.learn(second, 0.9)
    baseline = 0.95 * 0.5 + 0.05 * 0.9
    assert learner.baseline == pytest.approx(baseline)
    found = []
    for sequence in ((0, 1), (1, 0)):
        twin = toy()
        old = [float(twin.log_prob(g).detach()) for g in (first, second)]
        adam = torch.optim.Adam(twin.parameters(), lr=0.01)
        for step in range(1 + len(sequence)):  # the first sample's own step has no gradient, and counts in Adam's correction
            place = 0 if step == 0 else sequence[step - 1]
            adam.zero_grad()
            advantage = 0.0 if step == 0 else (0.5, 0.9)[place] - baseline
            ppo_loss(twin.log_prob((first, second)[place]), old[place], advantage, 0.1).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 2.0)
            adam.step()
        found.append(max(float((a - b).abs().max()) for a, b in zip(weights(twin), weights(learner.controller), strict=True)))
    assert min(found) < 1e-6


def test_a_reward_that_does_not_enter_the_baseline_leaves_it() -> None:
    learner = Learner(toy(), ControllerSettings(), 0)
    assert learner.learn({"a": 0, "b": 0, "c": 0}, 0.2, in_baseline=False) == 0
    assert learner.baseline is None
    learner.learn({"a": 1, "b": 0, "c": 0}, 0.6)
    learner.learn({"a": 2, "b": 0, "c": 0}, 0.1, in_baseline=False)
    assert learner.baseline == 0.6


def test_old_samples_leave_the_buffer() -> None:
    learner = Learner(toy(), ControllerSettings(buffer=2), 0)
    assert [learner.learn({"a": 0, "b": 0, "c": 0}, reward) for reward in (0.1, 0.2, 0.3)] == [1, 2, 2]
    assert [experience.reward for experience in learner.buffer] == [0.2, 0.3]


def test_on_a_bandit_the_policy_converges() -> None:
    """The reward is 1 where the second decision takes its option 1, else 0."""
    learner = Learner(toy(), ControllerSettings(hidden=8, learning_rate=0.03, buffer=4), 0)
    for seed in range(40):
        genotype = learner.controller.sample(seed)
        learner.learn(genotype, float(genotype["b"]))
    assert learner.controller.probabilities()["b"][1] > 0.95


@pytest.mark.parametrize("steps", [1, 3])
def test_state_is_restored_to_the_bit(steps: int) -> None:
    one, other = Learner(toy(), ControllerSettings(), 5), Learner(toy(seed=1), ControllerSettings(), 5)
    rng = Random(0)
    for _ in range(steps):
        one.learn(one.controller.sample(rng.getrandbits(60)), rng.random())
    other.restore(one.tensors, one.state)
    for learner in (one, other):
        learner.learn({"a": 2, "b": 1, "c": 1}, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(weights(one.controller), weights(other.controller), strict=True))
    assert one.state == other.state


# ---- the factor


def test_latency_factors_are_mnasnets() -> None:
    assert latency_factor("none", 3.0, 2.0) == 1
    assert latency_factor("mnasnet", 4.0, 2.0) == pytest.approx(2**-0.07)  # twice the latency for 5 % more accuracy
    assert latency_factor("mnasnet", 1.0, 2.0) == pytest.approx(2**0.07)
    assert latency_factor("mnasnet-hard", 4.0, 2.0) == pytest.approx(0.5)
    assert latency_factor("mnasnet-hard", 1.9, 2.0) == 1


# ---- as a proposer of a study


@pytest.fixture(scope="module")
def small() -> Space:
    return space("fast-nas-small", 7)


def proposer(small: Space, file: Path | None = None, budget_ms: float = 1e9, settings: ControllerSettings = SMALL) -> ControlledProposer:
    return ControlledProposer(small, settings, order=order(small), budget_ms=budget_ms, seed=0, file=file)


def trial(number: int, small: Space, **given: object) -> SampledTrial:
    return SampledTrial(**{"number": number, "state": "complete", "genotype": small.random(Random(number)), "score": 0.4, **given})  # pyright: ignore[reportArgumentType]


def test_a_failure_is_no_reward(small: Space) -> None:
    """Out of memory or a loss that is not finite: nothing is learned, and the baseline stays."""
    one, other = proposer(small), proposer(small)
    done = [trial(0, small, score=0.3), trial(1, small, score=0.5)]
    one.attend(done)
    other.attend([done[0], trial(2, small, state="failed", score=None, reason="MemoryError: no"), done[1]])
    assert one.learner.baseline == other.learner.baseline
    assert one.learner.state == other.learner.state


def test_a_truncated_reward_is_learned_and_does_not_enter_the_baseline(small: Space) -> None:
    one = proposer(small)
    one.attend([trial(0, small, score=0.3), trial(1, small, score=0.1, notes={"truncated": 1.0, "stage0": 0.1})])
    assert one.learner.baseline == 0.3
    assert [e.reward for e in one.learner.buffer] == [0.3, 0.1]


def test_rewards_are_multiplied_by_the_factor(small: Space) -> None:
    settings = ControllerSettings(hidden=8, layers=1, factor="mnasnet")
    one = proposer(small, budget_ms=2.0, settings=settings)
    assert one.reward(trial(0, small, score=0.5, price_ms=1.0)) == pytest.approx(0.5 * 2**0.07)


def test_only_what_is_allowed_and_unknown_is_proposed(small: Space, made_up_table: Callable[[Space], LatencyTable]) -> None:
    from segnas.search.expected import ExpectedLatency

    price = ExpectedLatency(small, made_up_table(small)).exact
    prices = sorted(price(small.random(Random(seed))) for seed in range(60))
    allowed = Allowed(small, price, prices[15])
    one = proposer(small, budget_ms=prices[15])
    taken: set[tuple[int, ...]] = set()
    for number in range(8):
        genotype = one.propose(allowed, [], taken, Random(number))
        assert allowed.holds(genotype)
        assert allowed.key(genotype) not in taken
        taken.add(allowed.key(genotype))


@pytest.mark.parametrize("kept", [True, False])
def test_a_study_that_was_cut_is_the_study_that_was_not(
    kept: bool, small: Space, made_up_table: Callable[[Space], LatencyTable], tmp_path: Path
) -> None:
    """With the controller's file, and without it: then the trials are learned anew."""
    table = made_up_table(small)

    def score(genotype: Genotype) -> float:
        value = genotype["block.0.0"] / 4 + genotype["cell.pos.2.0"] / 100
        return Noted(value, stage0=value, truncated=1.0) if genotype["block.0.1"] > 0 else Noted(value, stage0=value)

    storages = {"whole": InMemoryStorage(), "cut": InMemoryStorage()}

    def run(name: str, trials: int, file: Path) -> list[SampledTrial]:
        by, scoring = proposer(small, file, budget_ms=200.0), Scoring(score, {"toy": 1})
        found = sample(small, table, by, scoring, budget_ms=200.0, trials=trials, storage=storages[name], name="s", seed=1)
        return list(found.trials)

    whole = run("whole", 5, tmp_path / "w.safetensors")
    run("cut", 3, tmp_path / "c.safetensors")
    if not kept:
        (tmp_path / "c.safetensors").unlink()
    cut = run("cut", 5, tmp_path / "c.safetensors")
    assert [(t.genotype, t.score, t.notes) for t in cut] == [(t.genotype, t.score, t.notes) for t in whole]
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    assert any(t.truncated for t in whole)


def test_a_file_of_another_study_is_not_believed(small: Space, tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    proposer(small, file).attend([trial(0, small, score=0.9)])
    other, fresh = proposer(small, file), proposer(small)
    for one in (other, fresh):
        one.attend([trial(0, small, score=0.3), trial(1, small, score=0.2)])
    assert other.learner.state == fresh.learner.state


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden": 0}, r"controller\.hidden 0"),
        ({"baseline_decay": 1.0}, r"baseline_decay 1\.0"),
        ({"clip": 0.0}, r"clip 0\.0 was given; more than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ControllerSettings(**given)  # pyright: ignore[reportArgumentType]


def test_the_method_names_its_family() -> None:
    assert SearchSettings(method="fast-nas").controller == ControllerSettings()

from random import Random

import pytest
import torch

from segnas.errors import InputError
from segnas.search.sampling import check_logits, clamp, gumbel, hard, one_hot, paths, probabilities_of, softmax, zero_logits


def logits_of(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator, requires_grad=True) for name, size in space.decisions.items()}


def test_softmax_weights_every_option(any_space):
    logits = logits_of(any_space)
    sample = softmax(any_space, logits)
    assert sample.active == {name: tuple(range(size)) for name, size in any_space.decisions.items()}
    for name, weights in sample.weights.items():
        torch.testing.assert_close(weights, logits[name].exp() / logits[name].exp().sum())


def test_zero_logits_are_uniform(toy):
    for name, p in probabilities_of(zero_logits(toy)).items():
        assert p.tolist() == pytest.approx([1 / toy.decisions[name]] * toy.decisions[name])


def test_hard_draws_one_genotype_that_obeys_the_rules(any_space):
    rng = Random(0)
    for _ in range(10):
        logits = logits_of(any_space)
        sample = hard(any_space, logits, rng=rng)
        genotype = {name: active[0] for name, active in sample.active.items()}
        any_space.check(genotype)
        for name, weights in sample.weights.items():
            assert weights.tolist() == one_hot(any_space, genotype).weights[name].tolist()


def test_straight_through_has_the_gradient_of_the_softmax(toy_named):
    space = toy_named("cells")
    logits, again = logits_of(space), logits_of(space)
    slopes = {name: torch.randn(size) for name, size in space.decisions.items()}
    torch.stack([(slopes[n] * w).sum() for n, w in hard(space, logits, rng=Random(0)).weights.items()]).sum().backward()
    torch.stack([(slopes[n] * w).sum() for n, w in softmax(space, again).weights.items()]).sum().backward()
    for name in space.decisions:
        torch.testing.assert_close(logits[name].grad, again[name].grad)


def test_hard_draws_follow_the_probabilities(toy_named):
    space, rng = toy_named("from-trellis"), Random(0)
    logits = {name: torch.tensor([0.0, 2.0][:size]) for name, size in space.decisions.items()}
    ones = sum(hard(space, logits, rng=rng).active["op.1.1"] == (1,) for _ in range(3000))
    assert ones / 3000 == pytest.approx(0.8808, abs=0.02)  # the logistic function of 2


def test_gumbel_is_a_function_of_its_generator_and_sharpens(toy_named):
    space = toy_named("cells")
    logits = logits_of(space)

    def draw(tau, hard=False):
        return gumbel(space, logits, tau=tau, generator=torch.Generator().manual_seed(3), hard=hard)

    assert all(torch.equal(a, b) for a, b in zip(draw(1.0).weights.values(), draw(1.0).weights.values(), strict=True))
    sharp = draw(0.01)
    assert min(float(w.detach().max()) for w in sharp.weights.values()) > 0.99
    assert draw(1.0, True).active == {name: (int(w.argmax()),) for name, w in sharp.weights.items()}


def test_gumbel_maxima_are_distributed_as_the_softmax(toy_named):
    space, generator = toy_named("cells"), torch.Generator().manual_seed(0)
    logits = {name: torch.tensor([0.0, 1.0, 2.0]) for name in space.decisions}
    draws = [gumbel(space, logits, tau=1.0, generator=generator, hard=True).active["cell.0.0"][0] for _ in range(3000)]
    shares = [draws.count(option) / 3000 for option in range(3)]
    assert shares == pytest.approx(torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0).tolist(), abs=0.03)


def test_a_generator_state_resumes_the_draws_exactly(toy_named):
    space = toy_named("dense")
    logits, generator = logits_of(space), torch.Generator().manual_seed(0)
    paths(space, logits, n=1, generator=generator)
    state = generator.get_state()
    first = paths(space, logits, n=1, generator=generator)
    generator.set_state(state)
    second = paths(space, logits, n=1, generator=generator)
    assert first.active == second.active


def test_paths_draw_n_of_each_rule_with_shares_that_sum_to_one(toy_named):
    space, generator = toy_named("dense"), torch.Generator().manual_seed(0)
    for _ in range(20):
        sample = paths(space, logits_of(space), n=2, generator=generator)
        for rule in space.rules:
            on = [name for name in rule.decisions if sample.active[name] == (1,)]
            assert len(on) == min(2, len(rule.decisions))
            assert sum(float(sample.weights[name][1].detach()) for name in on) == pytest.approx(1)
            assert all(sample.active[name] == (0,) for name in rule.decisions if name not in on)


def test_clamp_cuts_gates_and_leaves_other_decisions(toy_named):
    space = toy_named("dense")
    logits = {name: torch.tensor([9.0, (-0.5, 0.75, 2.5)[i % 3]]) for i, name in enumerate(space.decisions)}
    gates = [name for name in space.decisions if name.startswith("link")]
    assert list(space.gates) == gates
    found, soft = clamp(space, logits).weights, softmax(space, logits).weights
    for name, values in logits.items():
        if name in gates:
            assert found[name].tolist() == [2 - min(2, max(0, values[1])), min(2, max(0, values[1]))]
        else:
            assert torch.equal(found[name], soft[name])
    cells, even = toy_named("cells"), zero_logits(toy_named("cells"))
    assert cells.gates == ()
    assert all(torch.equal(a, b) for a, b in zip(clamp(cells, even).weights.values(), softmax(cells, even).weights.values(), strict=True))


def test_one_hot_refuses_what_the_rules_forbid(toy_named):
    space = toy_named("cells")
    with pytest.raises(InputError, match="breaks a rule"):
        one_hot(space, dict.fromkeys(space.decisions, 0))


def test_logits_of_another_space_are_refused(toy_named):
    logits = logits_of(toy_named("cells"))
    check_logits(toy_named("cells"), logits)
    with pytest.raises(InputError, match=r"'cell0\.0\.0'"):
        check_logits(toy_named("own-cells"), logits)

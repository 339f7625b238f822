"""The example of docs/adding-a-space.md is built, priced, decoded and searched over, as it stands there."""

import re
from pathlib import Path
from random import Random

import pytest
import torch

from segnas.errors import InputError, UsageError
from segnas.network import Network
from segnas.search.expected import ExpectedLatency
from segnas.search.sampling import one_hot, softmax, zero_logits
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.supernet import Supernet, inherit

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-space.md"
EXAMPLE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    assert EXAMPLE is not None
    path = tmp_path / "ladder.py"
    path.write_text(EXAMPLE[1])
    return path


@pytest.fixture
def ladder(file: Path) -> Space:
    return space(f"{file}:ladder", 11)


def test_the_example_is_short_and_has_as_many_networks_as_it_says(ladder: Space) -> None:
    assert EXAMPLE is not None
    assert len(EXAMPLE[1].splitlines()) < 100
    assert ladder.count() == 5**6 * 3  # six blocks of five, and one skip, the other or both


def test_its_networks_are_priced_decoded_and_inherited_exactly(ladder: Space, made_up_table) -> None:
    table, rng = made_up_table(ladder), Random(0)
    expected = ExpectedLatency(ladder, table)
    supernet = Supernet(ladder).eval()
    image = torch.randn(1, 3, 64, 96)
    for _ in range(5):
        genotype = ladder.random(rng)
        derived = ladder.decode(genotype)
        assert expected.exact(genotype) == pytest.approx(table.additive_ms(derived.architecture), rel=1e-9)
        network = Network(derived.architecture).eval()
        inherit(network, supernet, derived)
        with torch.no_grad():
            assert torch.allclose(network(image), supernet(image, one_hot(ladder, genotype)), atol=1e-5)
    logits = zero_logits(ladder)
    sample = softmax(ladder, logits)
    (supernet.train()(torch.randn(2, 3, 64, 96), sample).pow(2).mean() + expected(sample.weights)).backward()
    assert all(values.grad is not None and values.grad.abs().sum() > 0 for values in logits.values())


def test_it_is_found_again_by_its_name(ladder: Space, file: Path) -> None:
    assert ladder.name == f"{file}:ladder"
    assert space(ladder.name, 11) == ladder


def test_a_file_without_a_space_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        space(f"{tmp_path / 'no.py'}:ladder", 11)
    with pytest.raises(InputError, match="has no function 'stairs'"):
        space(f"{file}:stairs", 11)
    other = tmp_path / "other.py"
    other.write_text("def five(classes):\n    return 5\n")
    with pytest.raises(InputError, match="made a int; a Space is needed"):
        space(f"{other}:five", 11)
    with pytest.raises(UsageError, match=r"no search space is called 'ladder'; .* or FILE\.py:FUNCTION"):
        space("ladder", 11)

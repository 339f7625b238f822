"""Distillation: the losses against loops and closed forms, who learns and who does not, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from segnas.arch import Architecture
from segnas.cli import segnas
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, UsageError
from segnas.files import write_noun
from segnas.network import Network, initialised
from segnas.search.distil import distillation, kl, mse
from segnas.search.settings import TrainSettings
from segnas.search.spaces import space
from segnas.search.train import train
from segnas.steps import save_weights
from segnas.streets import write_streets

SETTINGS = TrainSettings(steps=3, batch=2, crop=(64, 64), warmup=0, auxiliary=0.0, distil="kl", checkpoint_s=1e9)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 4}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


def architecture(classes: int = 19) -> Architecture:
    made = space("cas-tiny", classes)
    return made.decode(next(made.genotypes())).architecture


def test_kl_is_the_sum_over_classes_and_the_mean_over_pixels_times_the_square_of_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for temperature in (1.0, 3.0):
        total = 0.0
        for n in range(2):
            for y in range(3):
                for x in range(4):
                    q, p = (v[n, :, y, x] / temperature for v in (student, teacher))
                    q, p = (v.exp() / v.exp().sum() for v in (q, p))
                    total += sum(float(b) * math.log(float(b) / float(a)) for a, b in zip(q, p, strict=True))
        assert float(kl(student, teacher, temperature=temperature)) == pytest.approx(temperature**2 * total / 24, rel=1e-9)
    assert float(kl(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    assert float(mse(student, teacher)) == pytest.approx(float((student - teacher).pow(2).sum()) / 120)
    assert float(mse(torch.ones(1, 5, 8, 8), torch.zeros(1, 5, 4, 4))) == 1.0


def test_the_gradient_of_kl_does_not_shrink_with_the_temperature() -> None:
    """At a high temperature it tends to the difference of the centred logits over classes and pixels (Hinton et al., equation 4)."""
    student, teacher = torch.randn(2, 1, 6, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student.requires_grad_()
    kl(student, teacher, temperature=1e3).backward()
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (centred / 6 / 4).detach(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("how", ["kl", "mse"])
def test_the_student_learns_from_the_teacher_and_the_teacher_from_nobody(how: str, streets: Dataset, tmp_path: Path) -> None:
    teacher = initialised(architecture(), 7)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    settings = replace(SETTINGS, distil=how)
    told = train(architecture(), streets, settings, seed=0, checkpoint=tmp_path / "a", teacher=teacher)
    alone = train(architecture(), streets, replace(SETTINGS, distil="none"), seed=0, checkpoint=tmp_path / "b")
    assert any(not torch.equal(told.weights[name], value) for name, value in alone.weights.items())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert told.curves[0].values[0] > alone.curves[0].values[0]
    nothing = train(architecture(), streets, replace(settings, distil_weight=0.0), seed=0, checkpoint=tmp_path / "c", teacher=teacher)
    assert all(torch.equal(nothing.weights[name], value) for name, value in alone.weights.items())


def test_a_checkpoint_belongs_to_its_teacher(streets: Dataset, tmp_path: Path) -> None:
    train(architecture(), streets, SETTINGS, seed=0, checkpoint=tmp_path / "a", teacher=initialised(architecture(), 7))
    with pytest.raises(IncompatibleError, match="teacher"):
        train(architecture(), streets, SETTINGS, seed=0, checkpoint=tmp_path / "a", teacher=initialised(architecture(), 8))


def test_what_is_refused() -> None:
    cpu, teacher = torch.device("cpu"), Network(architecture())
    with pytest.raises(UsageError, match="'kl' was given without a teacher: give --teacher"):
        distillation(SETTINGS, None, 19, cpu)
    with pytest.raises(UsageError, match="'none' was given with a teacher"):
        distillation(replace(SETTINGS, distil="none"), teacher, 19, cpu)
    with pytest.raises(IncompatibleError, match="the teacher has 19 classes, the student 11"):
        distillation(SETTINGS, teacher, 11, cpu)
    with pytest.raises(UsageError, match=r"'cosine'.*allowed: none, kl, mse"):
        replace(SETTINGS, distil="cosine")


def test_train_takes_a_teacher_from_files(streets: Dataset, tmp_path: Path) -> None:
    teacher = initialised(architecture(), 7)
    write_noun(tmp_path / "arch.json", architecture())
    save_weights(tmp_path / "teacher.safetensors", teacher.state_dict(), architecture(), "none")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\nspace = "cas-tiny"\nbudget = "p50"\n[train]\nsteps = 2\nbatch = 2\ncrop = [64, 64]\ndistil = "mse"\nteacher = "mobilenet-v2"\n',
        encoding="utf-8",
    )
    common = ["train", "--arch", str(tmp_path / "arch.json"), "--data", "cityscapes", "--data-root", str(tmp_path), "--recipe", str(recipe)]
    given = ["--teacher", str(tmp_path / "arch.json"), "--teacher-weights", str(tmp_path / "teacher.safetensors")]
    write_streets(tmp_path, counts={"train": 2}, height=64, width=128, seed=0)
    found = CliRunner().invoke(segnas, [*common, "--out", str(tmp_path / "w.safetensors"), "--json", *given])
    assert found.exit_code == 0, found.output
    refused = CliRunner().invoke(segnas, [*common, "--out", str(tmp_path / "v.safetensors"), *given[:2]])
    assert isinstance(refused.exception, UsageError)
    assert "--teacher and --teacher-weights belong together" in str(refused.exception)

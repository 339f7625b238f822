"""Distillation: a student also learns from a teacher's logits, pixel by pixel, labelled or not."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segnas.errors import IncompatibleError, UsageError
from segnas.network import Network
from segnas.search.settings import DISTILLATIONS, TrainSettings


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 times the Kullback-Leibler divergence of the student's softmax from the teacher's, both at temperature T: logits (N, classes, H, W).

    The sum over the classes, the mean over the pixels (Hinton, Vinyals and Dean, 2015, section 2, for T^2). FasterSeg's released code takes the mean
    over the classes too, which makes it as many times smaller.
    """
    logs = F.log_softmax(student / temperature, 1)
    divergence = F.kl_div(logs, F.log_softmax(teacher / temperature, 1), reduction="none", log_target=True)
    return temperature**2 * divergence.sum(1).mean()


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the logits, over pixels and classes, at the teacher's size (Fast-NAS, section 3.3)."""
    if student.shape[-2:] != teacher.shape[-2:]:
        student = F.interpolate(student, size=(int(teacher.shape[-2]), int(teacher.shape[-1])), mode="bilinear", align_corners=False)
    return F.mse_loss(student, teacher)


@dataclass(frozen=True)
class Distillation:
    """What a student is told by a trained teacher, by the settings of its training."""

    teacher: nn.Module
    kind: str
    weight: float
    temperature: float

    def __call__(self, images: Tensor, logits: Tensor) -> Tensor:
        """The weighted loss of the student's logits for these images, (N, 3, H, W); the teacher learns nothing."""
        with torch.no_grad():
            taught = self.teacher(images).float()
        return self.weight * (mse(logits, taught) if self.kind == "mse" else kl(logits, taught, temperature=self.temperature))


def distillation(settings: TrainSettings, teacher: Network | None, classes: int, device: torch.device) -> Distillation | None:
    """The distillation that the settings ask for; None for none.

    UsageError where a teacher is missing or has nothing to do, IncompatibleError for one of other classes.
    """
    if (settings.distil == "none") != (teacher is None):
        raise UsageError(
            f"train.distil {settings.distil!r} was given {'without' if teacher is None else 'with'} a teacher: give --teacher and --teacher-weights "
            f"with train.distil {' or '.join(DISTILLATIONS[1:])} in the recipe, or neither"
        )
    if teacher is None:
        return None
    if teacher.architecture.classes != classes:
        raise IncompatibleError(f"the teacher has {teacher.architecture.classes} classes, the student {classes}")
    frozen = teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # pyright: ignore[reportCallIssue]
    return Distillation(frozen, settings.distil, settings.distil_weight, settings.distil_temperature)

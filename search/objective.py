"""The segmentation losses that are minimised."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels: logits (N, classes, H, W), labels (N, H, W) with 255 left out; 0 where none is."""
    labelled = (labels != IGNORE).sum().clamp(min=1)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / labelled


def ohem_cross_entropy(logits: Tensor, labels: Tensor, *, threshold: float = 0.7, least: float = 1 / 16, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the hard pixels: those whose true class has a probability under `threshold`, at least the share `least` of the labelled.

    Online hard example mining; 0.7 and 1/16 are the values that BiSeNet's and DDRNet's released trainings use (recalled). With `weights` (classes),
    which do not change what is hard, the mean is the weighted one.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").flatten()  # (N * H * W,)
    fewest = max(1, int(least * int((labels != IGNORE).sum())))
    hard = ~(losses <= -math.log(threshold))  # what is no number is hard, so that it shows
    chosen = hard.nonzero()[:, 0] if int(hard.sum()) >= fewest else losses.detach().topk(fewest).indices
    if weights is None:
        return losses[chosen].mean()
    known = labels.flatten()[chosen]
    shares = torch.where(known == IGNORE, 0, weights[known.clamp(max=len(weights) - 1)])
    return (losses[chosen] * shares).sum() / shares.sum().clamp(min=1e-12)

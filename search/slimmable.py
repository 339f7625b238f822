"""Slimmable: one operation at every width of a slot, on shared weights (FasterSeg, section 3.2; slimmable networks, Yu et al., ICLR 2019).

The weights of the widest are held, and narrower ones are their first channels. Each width of a feature has a batch normalisation of its own, since
the statistics of a sum over more channels are others. What is computed at a pair of widths is the very module that a network of those widths builds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]

from segnas.kinds import Kind, kind
from segnas.ops import Size, build

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Template:
    """The module of one pair of widths, without memory: its convolutions by name with the shapes of their weights, its normalisations with widths."""

    module: nn.Module
    convolutions: dict[str, tuple[int, ...]]
    normalisations: dict[str, int]

    @classmethod
    def of(cls, kind_: Kind, inputs: int, outputs: int, stride: int) -> "Template":
        """That of an operation at these widths."""
        with torch.device("meta"):
            module = build(kind_, (inputs,), outputs, stride)
        layers = dict(module.named_modules())
        shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
        return cls(module, shapes, {name: layer.num_features for name, layer in layers.items() if isinstance(layer, nn.BatchNorm2d)})


class Slimmable(nn.Module):
    """An operation of one input whose convolutions have no bias, for each of `inputs` and of `outputs` channels; its weights are those of the widest.

    A shortcut that keeps the size is the identity where the width stays. Where the width of the input isn't certain, it is the mean of the identity
    and the 1x1 unit, by the chance that the width stays (ours, for mixtures of widths).
    """

    def __init__(self, kind_: Kind, inputs: Sequence[int], outputs: Sequence[int], stride: int) -> None:
        super().__init__()
        self.kind, self.stride = kind_, stride
        self.fits = kind_.op == "shortcut" and stride == 1
        self.templates: dict[tuple[int, int, bool], Template] = {}
        self.convolutions, self.normalisations = nn.ModuleDict(), nn.ModuleDict()
        for width in sorted(outputs):
            template = self._at(max(inputs), width, fitted=self.fits)
            for name, shape in template.convolutions.items():
                self.convolutions[_plain(name)] = nn.Conv2d(shape[1], shape[0], (shape[2], shape[3]), bias=False)
            for name, channels in template.normalisations.items():
                self.normalisations[f"{_plain(name)}-{channels}"] = nn.BatchNorm2d(channels)

    def forward(self, features: Sequence[Tensor], size: Size, outputs: int, stays: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, outputs, *size); `stays` is the chance that the input's width is the output's, None where that is certain."""
        feature, given = features[0], int(features[0].shape[1])
        if stays is None or not self.fits:
            return self._call(self._at(given, outputs), features, size)
        fitted = self._call(self._at(given, outputs, fitted=True), [feature], size)
        return stays * feature[:, :outputs] + (1 - stays) * fitted if given >= outputs else fitted

    def tensors(self, inputs: int, outputs: int) -> dict[str, Tensor]:
        """Weights and statistics at a pair of widths, by their names in the module that a network builds; views of what is held."""
        return self._tensors(self._at(inputs, outputs))

    def _at(self, inputs: int, outputs: int, *, fitted: bool = False) -> Template:
        """The template of a pair of widths; `fitted` asks for a shortcut's 1x1 unit, for equal widths too."""
        key = (inputs, outputs, fitted)
        if key not in self.templates:
            made = kind("conv", kernel=1, activation=self.kind.text("activation")) if fitted else self.kind
            self.templates[key] = Template.of(made, inputs, outputs, self.stride)
        return self.templates[key]

    def _call(self, template: Template, features: Sequence[Tensor], size: Size) -> Tensor:
        template.module.train(self.training)
        return cast(Tensor, functional_call(template.module, cast(dict[str, Any], self._tensors(template)), (features, size)))

    def _tensors(self, template: Template) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, shape in template.convolutions.items():
            found[f"{name}.weight"] = cast(nn.Conv2d, self.convolutions[_plain(name)]).weight[: shape[0], : shape[1]]
        for name, channels in template.normalisations.items():
            norm = self.normalisations[f"{_plain(name)}-{channels}"]
            found |= {f"{name}.{part}": cast(Tensor, getattr(norm, part)) for part in ("weight", "bias", *STATISTICS)}
        return found


def _plain(name: str) -> str:
    """A module's path as a name that a ModuleDict takes."""
    return name.replace(".", "-")

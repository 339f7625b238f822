"""Families of decisions: operations (alpha), ways (beta), widths (gamma); and prices in which one family is learned while the others stand still."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from segnas.search.sampling import Sample, one_hot_of
from segnas.search.slots import Choice, Link, Widths
from segnas.search.space import Space

FAMILIES = ("operations", "ways", "widths")


def families(space: Space) -> dict[str, tuple[str, ...]]:
    """The decisions of each family that a space has: those that choose an operation, those that switch inputs only, and those that choose a width."""
    found: dict[str, dict[str, None]] = {name: {} for name in FAMILIES}
    for slot in space.slots:
        for place in (slot.kind, slot.channels):
            if isinstance(place, Choice | Widths):
                found["widths" if isinstance(place, Widths) else "operations"][place.decision] = None
    chosen = {name for family in found.values() for name in family}
    for slot in space.slots:
        found["ways"] |= dict.fromkeys(e.decision for e in slot.inputs if isinstance(e, Link) and e.decision and e.decision not in chosen)
    return {name: tuple(decisions) for name, decisions in found.items() if decisions}


def widest(space: Space) -> dict[str, int]:
    """For each width decision the option of most channels."""
    return _extreme(space, max)


def narrowest(space: Space) -> dict[str, int]:
    """For each width decision the option of fewest channels."""
    return _extreme(space, min)


def at_widths(sample: Sample, space: Space, widths: Mapping[str, int]) -> Sample:
    """The sample with these widths, and nothing of what drew them."""
    fixed = {name: one_hot_of(option, space.decisions[name], torch.float32) for name, option in widths.items()}
    return Sample({**sample.weights, **fixed}, {**sample.active, **{name: (option,) for name, option in widths.items()}})


def still(space: Space, probabilities: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The probabilities with those of the other families replaced: operations and ways even, widths at their widest (FasterSeg's released code)."""
    found = {name: p if name in families(space).get(family, ()) else torch.full_like(p, 1 / len(p)).detach() for name, p in probabilities.items()}
    if family != "widths":
        found |= {name: one_hot_of(option, space.decisions[name], probabilities[name].dtype) for name, option in widest(space).items()}
    return found


def decoupled(space: Space, probabilities: Mapping[str, Tensor], shares: Sequence[float], price: Callable[[Mapping[str, Tensor]], Tensor]) -> Tensor:
    """The mean of the prices in which one family is learned, the others standing `still`, by these shares of operations, ways and widths.

    FasterSeg, section 3.3, decouples its latency so, lest the family that moves it most decides alone. A family that the space lacks has no share.
    """
    held = {family: share for family, share in zip(FAMILIES, shares, strict=True) if family in families(space) and share}
    parts = [share * price(still(space, probabilities, family)) for family, share in held.items()]
    return torch.stack(parts).sum() / sum(held.values())


def _extreme(space: Space, of: Callable[[Sequence[int]], int]) -> dict[str, int]:
    widths = {slot.channels.decision: slot.channels.options for slot in space.slots if isinstance(slot.channels, Widths)}
    return {name: options.index(of(options)) for name, options in widths.items()}

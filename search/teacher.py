"""The network of a teacher that was searched beside a student: the widest, whatever it costs (FasterSeg, section 3.4)."""

from collections.abc import Mapping, Sequence

from segnas.search.derive import likeliest
from segnas.search.families import widest
from segnas.search.slots import Choice
from segnas.search.space import Space
from segnas.search.trellis import trellis_of

SKIPS = ("skip", "shortcut")


def teacher_genotype(space: Space, probabilities: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """The likeliest teacher: at the widest, without skips where there is anything else to choose (FasterSeg's released code ignores them too).

    The probabilities are not changed.
    """
    found = {name: list(p) for name, p in probabilities.items()}
    for slot in space.slots:
        if isinstance(slot.kind, Choice) and not slot.may_be_absent:
            skips = [i for i, made in enumerate(slot.kinds) if made.op in SKIPS]
            if len(skips) < len(slot.kinds):
                for option in skips:
                    found[slot.kind.decision][option] = 0.0
    for name, option in widest(space).items():
        found[name] = [float(i == option) for i in range(space.decisions[name])]
    return likeliest(space, found, "strength", trellis_of(space))

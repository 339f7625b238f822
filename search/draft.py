"""Draft: the appender that search spaces are written with."""

from collections.abc import Sequence

from segnas.kinds import SCHEMAS, Kind, kind
from segnas.search.slots import Choice, Join, Keep, Link, Slot, Widths, slot_levels
from segnas.search.space import Space


class Draft:
    """Slots and rules in the making; slot 0, the colour image, is there from the start. Checks nothing: `space`
    does.
    """

    def __init__(self, name: str, channels: int = 3) -> None:
        self.name = name
        self.slots: list[Slot] = [Slot(kind("image"), (), channels, label="image")]
        self.rules: list[Keep] = []

    def node(
        self, kind_: Kind | Choice | Join, *inputs: int | Link, channels: int | Widths | None = None, stride: int = 1, up: int = 1, label: str = ""
    ) -> int:
        """Append a slot and return its index. Without `channels` it has those of its first input, a concatenation the
        sum.
        """
        slot = Slot(kind_, inputs, 1, stride, up, label)
        if channels is None:
            widths = [self.slots[source].channels for source in slot.sources]
            total = isinstance(kind_, Kind) and SCHEMAS[kind_.op].channels == "sum"
            channels = sum(w for w in widths if isinstance(w, int)) if total else widths[0]
        self.slots.append(Slot(kind_, inputs, channels, stride, up, label))
        return len(self.slots) - 1

    def resize(self, source: int, like: int, label: str = "") -> int:
        """Append a bilinear resize of `source` to the level of `like`; `source` itself where the level is the same."""
        levels = slot_levels(self.slots)
        deeper = levels[source] - levels[like]
        if deeper == 0:
            return source
        stride, up = (1, 2**deeper) if deeper > 0 else (2**-deeper, 1)
        return self.node(kind("resize"), source, stride=stride, up=up, label=label)

    def keep(self, decisions: Sequence[str], low: int, high: int) -> None:
        """Append the rule that `low` to `high` of the decisions are on; once for decisions that several cells share."""
        rule = Keep(tuple(decisions), low, high)
        if rule not in self.rules:
            self.rules.append(rule)

    def width(self, index: int) -> int:
        """Channels of a slot; TypeError where they are open (a bug in the space, not a user error)."""
        channels = self.slots[index].channels
        if not isinstance(channels, int):
            raise TypeError(f"slot {index} of {self.name} has an open width")
        return channels

    def level(self, index: int) -> int:
        """Level of a slot: its feature is 1/2^level of the image."""
        return slot_levels(self.slots)[index]

    def space(self) -> Space:
        """The finished space; InputError where it is none."""
        return Space(self.name, tuple(self.slots), tuple(self.rules))

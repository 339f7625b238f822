"""The parts that a search space is written with: slots with open places, links that a decision switches, rules; and the
check of a whole.

A decision is named, and its options are numbered from 0. Equal names share the decision (the cells of CAS), distinct
names do not (GAS).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from segnas.arch import DEEPEST_LEVEL
from segnas.errors import InputError
from segnas.kinds import SCHEMAS, Kind

Join = Literal["add", "select"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A slot's operation is `options[genotype[decision]]`; option 0 may be `none`, which makes the slot absent."""

    decision: str
    options: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class Widths:
    """A slot's number of channels is `options[genotype[decision]]`."""

    decision: str
    options: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """An input that is there iff `decision` takes `option`; with no decision: iff its source lives, and then it is
    never a reason to live.
    """

    source: int
    decision: str | None = None
    option: int = 1


def source_of(entry: int | Link) -> int:
    """Index of the slot that an input reads."""
    return entry if isinstance(entry, int) else entry.source


@dataclass(frozen=True, slots=True)
class Slot:
    """A node whose fields may be open.

    `kind` "add" is the sum of those inputs that live (decodes to binary additions), "select" is the one that lives
    (decodes to nothing); each other kind needs all its inputs, so `kind("add")` is a sum that is there iff both are.
    """

    kind: Kind | Choice | Join
    inputs: tuple[int | Link, ...]
    channels: int | Widths
    stride: int = 1
    up: int = 1
    label: str = field(default="", compare=False)

    @property
    def join(self) -> Join | None:
        """`add` or `select`, None for an operation."""
        return None if isinstance(self.kind, Kind | Choice) else self.kind

    @property
    def decision(self) -> str | None:
        """Name of the decision that chooses the operation, if one does."""
        return self.kind.decision if isinstance(self.kind, Choice) else None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every operation that may stand here, in the order of the options; none for a join."""
        if isinstance(self.kind, Choice):
            return self.kind.options
        return (self.kind,) if isinstance(self.kind, Kind) else ()

    @property
    def may_be_absent(self) -> bool:
        """Whether `none` is among its operations."""
        return any(kind.op == "none" for kind in self.kinds)

    @property
    def sources(self) -> tuple[int, ...]:
        """Indices of the slots that it may read."""
        return tuple(map(source_of, self.inputs))

    def width(self, genotype: Mapping[str, int]) -> int:
        """Channels under a genotype."""
        return self.channels if isinstance(self.channels, int) else self.channels.options[genotype[self.channels.decision]]


@dataclass(frozen=True, slots=True)
class Keep:
    """Between `low` and `high` of these decisions leave option 0, which means none or off."""

    decisions: tuple[str, ...]
    low: int
    high: int


def slot_name(slots: Sequence[Slot], index: int) -> str:
    """How messages name a slot: its index, its label, what stands in it."""
    slot = slots[index]
    label = f" {slot.label!r}" if slot.label else ""
    return f"slot {index}{label} ({slot.join or '|'.join(kind.op for kind in slot.kinds)})"


def decision_sizes(slots: Sequence[Slot]) -> dict[str, int]:
    """Number of options of each decision, in order of first appearance. InputError where two places disagree."""
    fixed: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for index, slot in enumerate(slots):
        for choice in (slot.kind, slot.channels):
            if isinstance(choice, Choice | Widths):
                size, other = len(choice.options), fixed.setdefault(choice.decision, len(choice.options))
                if size != other:
                    raise InputError(f"{slot_name(slots, index)}: decision {choice.decision!r} has {size} options here, {other} elsewhere")
                sizes.setdefault(choice.decision, size)
        for entry in slot.inputs:
            if isinstance(entry, Link) and entry.decision is not None:
                sizes[entry.decision] = max(sizes.get(entry.decision, 0), entry.option + 1)
    for name, size in fixed.items():
        if sizes[name] > size:
            raise InputError(f"a link asks for option {sizes[name] - 1} of decision {name!r}; options 0 to {size - 1} exist")
    return sizes


def slot_levels(slots: Sequence[Slot]) -> tuple[int, ...]:
    """Level of each slot: its feature is 1/2^level of the image."""
    levels: list[int] = []
    for slot in slots:
        above = levels[slot.sources[0]] if slot.inputs else 0
        levels.append(above + slot.stride.bit_length() - slot.up.bit_length())
    return tuple(levels)


def check_slots(slots: Sequence[Slot]) -> None:
    """Refuse slots that could not become nodes: InputError says which slot, what was given and what is allowed."""
    if len(slots) < 2:
        raise InputError(f"a search space needs an image and at least one more slot; {len(slots)} were given")
    for index, slot in enumerate(slots):

        def refuse(message: str, index: int = index) -> InputError:
            return InputError(f"{slot_name(slots, index)}: {message}")

        _check_inputs(refuse, index, slot)
        if slot.join is None:
            _check_operation(refuse, index, slot)
            _check_options(refuse, slot)
        _check_channels(refuse, slot, [slots[source].channels for source in slot.sources])
    levels = slot_levels(slots)
    for index, slot in enumerate(slots):
        scales = [levels[source] for source in slot.sources]
        if len(set(scales)) > 1:
            raise InputError(f"{slot_name(slots, index)}: its inputs lie at levels {scales}; they must lie at the same level: resize first")
        if not 0 <= levels[index] <= DEEPEST_LEVEL:
            raise InputError(f"{slot_name(slots, index)}: its feature would be at level {levels[index]}; levels 0 to {DEEPEST_LEVEL} are allowed")


def check_rules(rules: Sequence[Keep], sizes: Mapping[str, int], slots: Sequence[Slot]) -> None:
    """Refuse rules that overlap, ask for the impossible, or hold a decision whose option 0 is something."""
    seen: set[str] = set()
    for rule in rules:
        name = f"Keep({', '.join(rule.decisions)})"
        unknown = [d for d in rule.decisions if d not in sizes]
        if unknown:
            raise InputError(f"{name}: no slot mentions decision {unknown[0]!r}")
        if len(set(rule.decisions)) != len(rule.decisions) or seen & set(rule.decisions):
            raise InputError(f"{name}: a decision stands under two rules or twice under one; rules may not overlap")
        if not 0 <= rule.low <= rule.high <= len(rule.decisions) or not rule.high:
            raise InputError(
                f"{name}: {rule.low} to {rule.high} of {len(rule.decisions)} were asked for; 0 <= low <= high <= {len(rule.decisions)} is allowed"
            )
        seen |= set(rule.decisions)
    for index, slot in enumerate(slots):
        if isinstance(slot.kind, Choice) and slot.kind.decision in seen and slot.kind.options[0].op != "none":
            raise InputError(f"{slot_name(slots, index)}: decision {slot.kind.decision!r} stands under a rule, so its option 0 must be none")
        if isinstance(slot.channels, Widths) and slot.channels.decision in seen:
            raise InputError(f"{slot_name(slots, index)}: the width decision {slot.channels.decision!r} cannot stand under a rule")
        for entry in slot.inputs:
            if isinstance(entry, Link) and entry.decision in seen and entry.option == 0:
                raise InputError(f"{slot_name(slots, index)}: decision {entry.decision!r} stands under a rule, so its option 0 can switch no link on")


Refuse = Callable[[str], InputError]


def _check_inputs(refuse: Refuse, index: int, slot: Slot) -> None:
    if any(not 0 <= source < index for source in slot.sources):
        raise refuse(f"inputs {slot.sources} were given; only earlier slots, 0 to {index - 1}, are allowed")
    if index and not slot.inputs:
        raise refuse("no input was given; at least 1 is needed")
    for entry in slot.inputs:
        if isinstance(entry, int):
            continue
        if entry.decision is not None and slot.join is None:
            raise refuse(
                f"the link from slot {entry.source} has decision {entry.decision!r}; a link may only be switched where it enters an add or a select"
            )
        if entry.decision is None and slot.join != "add":
            raise refuse(f"the link from slot {entry.source} has no decision; such a link may only enter an add")
        if entry.option < 0:
            raise refuse(f"the link from slot {entry.source} has option {entry.option}; options are numbered from 0")
    if slot.join and (slot.stride != 1 or slot.up != 1):
        raise refuse(f"stride {slot.stride} and enlargement {slot.up} were given; a join keeps the size")


def _check_options(refuse: Refuse, slot: Slot) -> None:
    for options in (
        (slot.kind.options if isinstance(slot.kind, Choice) else ()),
        (slot.channels.options if isinstance(slot.channels, Widths) else ()),
    ):
        if len(set(options)) != len(options):
            raise refuse("two options are equal; each may be given once")
    if isinstance(slot.kind, Choice) and not slot.kind.options:
        raise refuse(f"decision {slot.kind.decision!r} has no options")
    if any(kind.op == "none" for kind in slot.kinds[1:]):
        raise refuse("none must be option 0")


def _check_operation(refuse: Refuse, index: int, slot: Slot) -> None:
    for kind in slot.kinds:
        schema = SCHEMAS[kind.op]
        alone = not isinstance(slot.kind, Choice) and kind.op == "none"
        if alone or kind.op == "argmax" or (kind.op == "image") != (index == 0):
            raise refuse(f"{kind.op} cannot stand here")
        most = schema.most_inputs
        if len(slot.inputs) < schema.least_inputs or (most is not None and len(slot.inputs) > most):
            raise refuse(
                f"{len(slot.inputs)} inputs were given; {kind.op} takes {schema.least_inputs}{'' if most == schema.least_inputs else ' or more'}"
            )
        if slot.stride not in schema.strides:
            raise refuse(f"stride {slot.stride} was given; {kind.op} allows {', '.join(map(str, schema.strides))}")
        if slot.up != 1 and (not schema.resizes or slot.up not in (2, 4, 8, 16, 32, 64, 128) or slot.stride != 1):
            raise refuse(f"enlargement {slot.up} was given; only a resize of stride 1 enlarges, by a power of two")


def _check_channels(refuse: Refuse, slot: Slot, widths: Sequence[int | Widths]) -> None:
    for width in (slot.channels,) if isinstance(slot.channels, int) else slot.channels.options:
        if width < 1:
            raise refuse(f"{width} channels were given; at least 1 is needed")
    rules = {"same"} if slot.join else {SCHEMAS[kind.op].channels for kind in slot.kinds}
    if "same" in rules and any(width != slot.channels for width in widths):
        raise refuse(f"{slot.channels} channels were given for inputs of {list(widths)}; all must be equal")
    if "sum" in rules:
        given = [width for width in widths if isinstance(width, int)]
        if len(given) != len(widths) or sum(given) != slot.channels:
            raise refuse(
                f"{slot.channels} channels were given for inputs of {list(widths)}; the output has their sum, and open widths cannot be concatenated"
            )
    for kind in slot.kinds:
        groups = kind.integer("groups") if kind.op == "conv" else 1
        options = [option for width in (*widths, slot.channels) for option in ((width,) if isinstance(width, int) else width.options)]
        if any(option % groups for option in options):
            raise refuse(f"{groups} groups do not divide all of {options}")

"""Incoming: spaces whose joins each choose one of their inputs (FasterSeg's beta), walked backwards from the output.

Where a feature comes from is one decision of the state that reads it, so a genotype is a walk from the output to the image, and branches that meet go
on together. Which slots are wanted next, given the choices so far, is a small set at any time. Its probabilities follow from those of the decisions
exactly, and so does the number of different networks, without a list of either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from segnas.search.slots import Choice, Link, Slot, Widths, source_of
from segnas.search.space import Space

MOST = 4096
"""Sets of wanted slots at one time; a space with more is left to approximations."""

Held = tuple[tuple[str, int], ...]
Key = tuple[frozenset[int], Held]
"""The slots that are wanted and not yet walked, and the options taken of decisions that are still to be met again."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One choice: the chance of set `sources[i]`, times that of option `options[i]` of the decision (1 where None), goes to set `targets[i]`."""

    decision: str
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    options: tuple[int | None, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """The choices from the output to the image; and for each slot after how many of them it is known to be wanted, and in which of the sets."""

    stages: tuple[Stage, ...]
    wanted: tuple[tuple[int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, space: Space) -> "Incoming | None":
        """The walk through a space; None where a join is no such choice, an operation may be absent, a rule holds, or too many sets arise."""
        try:
            return _walked(space) if _looks_so(space) else None
        except _Undecided:
            return None


class _Undecided(Exception):
    """A select is reached whose decision is still open, and has no way for one of its options."""


def suits(space: Space) -> bool:
    """Whether every select chooses among its inputs by one decision of its own kind, a way for each option that may be, and nothing else is open."""
    if not _looks_so(space):
        return False
    try:
        _walked(space)
    except _Undecided:
        return False
    return True


def _looks_so(space: Space) -> bool:
    selects = [slot for slot in space.slots if slot.join == "select"]
    plain = all(isinstance(entry, int) for slot in space.slots if slot.join != "select" for entry in slot.inputs)
    others = {place.decision for slot in space.slots for place in (slot.kind, slot.channels) if isinstance(place, Choice | Widths)}
    chosen = [_choice(slot) for slot in selects]
    return (
        bool(selects)
        and plain
        and not space.rules
        and not any(s.may_be_absent for s in space.slots)
        and None not in chosen
        and not others & {*chosen}
    )


def networks(space: Space) -> int:
    """Number of different networks of a space that `suits`: of assignments to the decisions that the network meets, walked backwards."""
    last, counts = _last_mentions(space), {(frozenset({len(space.slots) - 1}), ()): 1}
    for index in reversed(range(len(space.slots))):
        found: dict[Key, int] = {}
        for key, count in counts.items():
            for after, ways in _counted(space, index, key, last):
                found[after] = found.get(after, 0) + count * ways
        counts = found
    return sum(counts.values())


def _choice(slot: Slot) -> str | None:
    """The decision by which a select chooses among all its inputs, if there is one, each input under an option of its own."""
    links = [entry for entry in slot.inputs if isinstance(entry, Link)]
    names = {link.decision for link in links}
    one = len(names) == 1 and len(links) == len(slot.inputs) == len({link.option for link in links})
    return next(iter(names)) if one else None


def _walked(space: Space) -> Incoming | None:
    last = _last_mentions(space)
    stages: list[Stage] = []
    wanted: list[tuple[int, tuple[int, ...]]] = [(0, ())] * len(space.slots)
    sets: dict[Key, list[int]] = {(frozenset({len(space.slots) - 1}), ()): [0]}
    for index in reversed(range(len(space.slots))):
        wanted[index] = (len(stages), tuple(i for (slots, _), places in sets.items() if index in slots for i in places))
        slot = space.slots[index]
        decision = _choice(slot) if slot.join == "select" else None
        found: dict[Key, list[int]] = {}
        moves: list[tuple[int, Key, int | None]] = []
        for key, places in sets.items():
            for option, after in _steps(space, index, key, decision, last):
                found.setdefault(after, []).extend(places)
                moves += [(place, after, option) for place in places]
        if any(option is not None for _, _, option in moves):
            assert decision is not None
            number = {key: i for i, key in enumerate(found)}
            sources, targets, options = zip(*((place, number[after], option) for place, after, option in moves), strict=True)
            stages.append(Stage(decision, sources, targets, options, len(number)))
            found = {key: [i] for key, i in number.items()}
        sets = found
        if len(sets) > MOST:
            return None
    return Incoming(tuple(stages), tuple(wanted))


def _steps(space: Space, index: int, key: Key, decision: str | None, last: dict[str, int]) -> Iterator[tuple[int | None, Key]]:
    """The sets that follow when slot `index` is walked, each with the option that is taken there, None where nothing is chosen."""
    slots, held = key
    if index not in slots:
        yield None, (slots, _kept(held, index, last))
        return
    rest, slot = slots - {index}, space.slots[index]
    if decision is None:
        yield None, (rest | set(slot.sources), _kept(held, index, last))
        return
    known, options = dict(held).get(decision), [entry.option for entry in slot.inputs if isinstance(entry, Link)]
    if known not in options if known is not None else len(options) < space.decisions[decision]:
        raise _Undecided
    for entry in slot.inputs:
        assert isinstance(entry, Link)
        if known in (None, entry.option):
            taken = held if known is not None else (*held, (decision, entry.option))
            yield (entry.option if known is None else None), (rest | {source_of(entry)}, _kept(taken, index, last))


def _counted(space: Space, index: int, key: Key, last: dict[str, int]) -> Iterator[tuple[Key, int]]:
    """As `_steps`, with the number of ways to decide what is met there for the first time: operation and width."""
    slots, held = key
    slot, ways = space.slots[index], 1
    if index in slots:
        met = {place.decision: len(place.options) for place in (slot.kind, slot.channels) if isinstance(place, Choice | Widths)}
        for name, size in met.items():
            if name not in dict(held):
                ways, held = ways * size, (*held, (name, 0))
    decision = _choice(slot) if slot.join == "select" else None
    for _, after in _steps(space, index, (slots, held), decision, last):
        yield after, ways


def _kept(held: Held, index: int, last: dict[str, int]) -> Held:
    """What of the options taken is still to be met, below slot `index`."""
    return tuple(sorted(pair for pair in held if last[pair[0]] < index))


def _last_mentions(space: Space) -> dict[str, int]:
    """For each decision the first slot that mentions it: the last one on the walk backwards."""
    last: dict[str, int] = {}
    for index, slot in enumerate(space.slots):
        names = [place.decision for place in (slot.kind, slot.channels) if isinstance(place, Choice | Widths)]
        names += [entry.decision for entry in slot.inputs if isinstance(entry, Link) and entry.decision is not None]
        for name in names:
            last.setdefault(name, index)
    return last

"""Where the boxes and edges of a network's drawing stand: columns by depth, bands by resolution, lanes for what is read further right.

A feature that is read further right runs along a lane of its own through the columns between (after Sugiyama, Tagawa and Toda,
1981): boxes and lanes of a column are stacked, so nothing is drawn over text. A node stands as far right as its readers allow,
which keeps cells together. Units are inches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from segnas.arch import Architecture

BOX, LANE, GAP, PAD = 0.40, 0.17, 0.34, 0.12
SWEEPS, SETTLING = 10, 14

Place = tuple[int, int]
"""(node, column): the node's box where the column is its own, else the lane of its feature."""


@dataclass(frozen=True)
class Layout:
    """Where everything stands: columns, lanes and heights; heights are inside a band, downwards."""

    architecture: Architecture
    names: tuple[tuple[str, str], ...]

    @cached_property
    def owners(self) -> tuple[str, ...]:
        """Each node's group: what stands before the first dot of its label, or nothing."""
        return tuple(node.label.partition(".")[0] if "." in node.label else "" for node in self.architecture.nodes)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The longest way from the image, then as far right as readers allow.

        A group stands wholly to the right of the groups that it reads from, unless that is impossible.
        """
        try:
            graph = self._constraints(grouped=True)
            order = tuple(TopologicalSorter(graph).static_order())
        except CycleError:
            graph = self._constraints(grouped=False)
            order = tuple(TopologicalSorter(graph).static_order())
        depth: dict[int | str, int] = {}
        for key in order:
            depth[key] = max((depth[other] + apart for other, apart in graph.get(key, {}).items()), default=0)
        column = dict.fromkeys(order, max(depth.values()))
        for key in reversed(order):
            for other, apart in graph.get(key, {}).items():
                column[other] = min(column[other], column[key] - apart)
        return tuple(column[index] for index in range(len(self.architecture.nodes)))

    def _constraints(self, *, grouped: bool) -> dict[int | str, dict[int | str, int]]:
        """What stands right of what, by how many columns at least: nodes by index, a group's sides as `<name` and `>name`."""
        graph: dict[int | str, dict[int | str, int]] = {}
        for index, node in enumerate(self.architecture.nodes):
            graph[index] = dict.fromkeys(node.inputs, 1)
            for source in node.inputs if grouped else ():
                name, other = self.owners[index], self.owners[source]
                if name and other and name != other:
                    graph.setdefault(f"<{name}", {})[f">{other}"] = 0
        for index, name in enumerate(self.owners if grouped else ()):
            if name:
                graph.setdefault(f">{name}", {})[index] = 0
                graph[index] |= {f"<{name}": 1} if f"<{name}" in graph else {}
        return graph

    @cached_property
    def segments(self) -> tuple[tuple[Place, Place], ...]:
        """Every piece of an edge, from one column to the next."""
        pieces: dict[tuple[Place, Place], None] = {}
        for index, node in enumerate(self.architecture.nodes):
            for source in dict.fromkeys(node.inputs):
                before = range(self.columns[source], self.columns[index])
                for column in before[:-1]:
                    pieces[(source, column), (source, column + 1)] = None
                pieces[(source, before[-1]), (index, self.columns[index])] = None
        return tuple(pieces)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every box, then every lane."""
        return tuple(dict.fromkeys([*((i, c) for i, c in enumerate(self.columns)), *(p for piece in self.segments for p in piece)]))

    def is_box(self, place: Place) -> bool:
        """Whether the node itself stands there, not the lane of its feature."""
        return self.columns[place[0]] == place[1]

    def tall(self, place: Place) -> float:
        """Height of a place, with the space around it."""
        return BOX + 0.10 if self.is_box(place) else LANE

    def wide(self, node: int) -> float:
        """Width of a node's box: room for its two lines of text."""
        name, detail = self.names[node]
        return max(0.36, 0.070 * len(name) + 0.12, 0.060 * len(detail) + 0.12)

    @cached_property
    def lefts(self) -> tuple[float, ...]:
        """Left side of each column, and at the end where the next would start."""
        result = [0.0]
        for column in range(max(self.columns) + 1):
            result.append(result[-1] + GAP + max(self.wide(i) for i, c in enumerate(self.columns) if c == column))
        return tuple(result)

    def sides(self, column: int) -> tuple[float, float]:
        """Left and right side of a column."""
        return self.lefts[column], self.lefts[column + 1] - GAP

    @cached_property
    def heights(self) -> dict[Place, float]:
        """Middle of each place inside its band, by sweeps that pull it towards its neighbours."""
        cells: dict[tuple[int, int], list[Place]] = {}
        for place in sorted(self.places, key=lambda p: (p[1], p[0])):
            cells.setdefault((place[1], self.level(place)), []).append(place)
        room = {level: max(sum(map(self.tall, cell)) for (_, at), cell in cells.items() if at == level) for _, level in cells}
        start = {level: sum(room[other] + 2 * PAD for other in room if other < level) for level in room}
        middle = {place: start[self.level(place)] + room[self.level(place)] / 2 for place in self.places}
        lanes = {source: [p for p in self.places if p[0] == source and not self.is_box(p)] for source in range(len(self.columns))}
        near: tuple[dict[Place, list[Place]], dict[Place, list[Place]]] = ({}, {})
        for one, other in self.segments:
            near[0].setdefault(other, []).append(one)
            near[1].setdefault(one, []).append(other)
        for sweep in range(SWEEPS + SETTLING):
            sides = (near[sweep % 2],) if sweep < SWEEPS else near
            for column, level in sorted(cells, reverse=bool(sweep % 2)):
                cell = cells[column, level]
                wish = {p: _mean([middle[q] for side in sides for q in side.get(p, ())], middle[p]) for p in cell}
                if sweep >= SWEEPS:  # a lane runs straight: all of it wishes for its own mean
                    wish |= {p: _mean([middle[q] for q in lanes[p[0]]]) for p in cell if not self.is_box(p)}
                cell.sort(key=lambda p: wish[p])
                limits = (start[level], start[level] + room[level])
                middle.update(zip(cell, stacked([wish[p] for p in cell], [self.tall(p) for p in cell], *limits), strict=True))
        return {place: y - start[self.level(place)] for place, y in middle.items()}

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Level of each node."""
        return self.architecture.levels

    def level(self, place: Place) -> int:
        """The band that a place stands in: a feature stays in its own."""
        return self.levels[place[0]]

    @cached_property
    def groups(self) -> tuple[tuple[str, int, int, bool, int], ...]:
        """(name, first column, last column, whether no other node stands in them, title's row) of each prefix of labels such as `cell3.`."""
        owner = self.owners
        spans = [(name, [c for c, o in zip(self.columns, owner, strict=True) if o == name]) for name in dict.fromkeys(owner) if name]
        result, ends = list[tuple[str, int, int, bool, int]](), list[float]()
        for name, columns in sorted(spans, key=lambda span: (min(span[1]), max(span[1]))):
            first, last = min(columns), max(columns)
            alone = all(o == name for c, o in zip(self.columns, owner, strict=True) if first <= c <= last)
            start, end = self.lefts[first], max(self.lefts[last + 1], self.lefts[first] + 0.075 * len(name) + 0.2)
            row = next((i for i, taken in enumerate(ends) if taken <= start + 1e-9), len(ends))
            ends[row : row + 1] = [end]
            result.append((name, first, last, alone, row))
        return tuple(result)


def rows_of(layout: Layout, room: float | None) -> list[range]:
    """Columns of each row: as many as fit, broken between two groups where that wastes less than half of the row."""
    lefts, count = layout.lefts, len(layout.lefts) - 1
    if room is None:
        return [range(count)]
    ends = {last for _, _, last, alone, _ in layout.groups if alone} | {first - 1 for _, first, _, alone, _ in layout.groups if alone}
    first, ranges = 0, list[range]()
    while first < count:
        fitting = [c for c in range(first, count) if c == first or lefts[c + 1] - lefts[first] <= room]
        tidy = [c for c in fitting if c in ends and lefts[c + 1] - lefts[first] > room / 2]
        last = fitting[-1] if fitting[-1] == count - 1 or not tidy else tidy[-1]
        ranges.append(range(first, last + 1))
        first = last + 1
    return ranges


def stacked(wishes: Sequence[float], tall: Sequence[float], low: float, high: float) -> list[float]:
    """Middles nearest to the wishes (least squares), in the given order, without overlap, between low and high: isotonic regression by pooling."""
    offsets = [0.0]
    for above, below in pairwise(tall):
        offsets.append(offsets[-1] + (above + below) / 2)
    pools: list[list[float]] = []
    for wish, offset in zip(wishes, offsets, strict=True):
        pools.append([wish - offset])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    least, most = low + tall[0] / 2, high - tall[-1] / 2 - offsets[-1]
    settled = [min(max(_mean(pool), least), most) for pool in pools for _ in pool]
    return [base + offset for base, offset in zip(settled, offsets, strict=True)]


def _mean(values: Sequence[float], default: float = 0.0) -> float:
    return sum(values) / len(values) if values else default

"""What a search has come to, while it runs or when it has ended: the network that its probabilities stand for, as text and as a picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from segnas.arch import Architecture
from segnas.architecture_picture import architecture_picture
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.figures import Form
from segnas.files import plain, read_json, unplain
from segnas.latency import LatencyTable
from segnas.latency_tables.store import load_table
from segnas.search.derive import Ranking, likeliest
from segnas.search.settings import CHOICES
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.search.trace import TRACE_NAME, History, Probabilities, read_trace
from segnas.search.trellis import trellis_of
from segnas.search_figures import option_names

PICTURE_INCHES = 11.4


@dataclass(frozen=True)
class SearchView:
    """The probabilities of a search, and what else its folder tells: its trace, its table."""

    source: Path
    space: Space
    probabilities: Probabilities
    history: History | None
    table: LatencyTable | None
    ranking: Ranking = "odds"

    @property
    def is_finished(self) -> bool:
        """Whether the search has come to its end, and has said so in `search.json`."""
        return self.source.suffix == ".json"

    @property
    def step(self) -> int | None:
        """The step that the probabilities are of; None where no trace tells."""
        if self.history is None:
            return None
        return self.history.header.steps if self.is_finished else self.history.kept[-1][0]

    @cached_property
    def genotype(self) -> dict[str, int]:
        """The best option of each decision, under the rules of the space, as the search ranks them; of a trellis the best path."""
        return likeliest(self.space, self.probabilities, self.ranking, trellis_of(self.space))

    @cached_property
    def architecture(self) -> Architecture:
        """The network of that genotype."""
        return self.space.decode(self.genotype).architecture

    @cached_property
    def entropy(self) -> float:
        """Mean entropy of the decisions, as a share of the most that they could have: 1 where nothing is decided, 0 where everything is."""
        shares = [math.fsum(-p * math.log(p) for p in ps if p > 0) / math.log(len(ps)) for ps in self.probabilities.values() if len(ps) > 1]
        return math.fsum(shares) / max(1, len(shares))

    @property
    def decoded_ms(self) -> float | None:
        """What the table says of that network."""
        return None if self.table is None else self.table.estimate(self.architecture).total_ms

    @cached_property
    def expected_ms(self) -> float | None:
        """What the table says of a network that is drawn by the probabilities, in the mean."""
        if self.table is None:
            return None
        import torch

        from segnas.search.expected import ExpectedLatency

        probabilities = {name: torch.tensor(options, dtype=torch.float64) for name, options in self.probabilities.items()}
        return float(ExpectedLatency(self.space, self.table)(probabilities))

    @cached_property
    def budget_ms(self) -> float | None:
        """The budget of the search, as its trace or `budget.json` has it."""
        if self.history is not None and self.history.header.budget_ms is not None:
            return self.history.header.budget_ms
        path = self.source.with_name("budget.json")
        return cast(float, unplain(float, read_json(path).get("budget_ms"), f"{path}: budget_ms")) if path.is_file() else None

    def lines(self) -> list[str]:
        """A few lines about the search, then one a decision."""
        names, width = option_names(self.space), max(map(len, self.genotype))
        last = [f"  {curve.values[-1]:<10.4g} {curve.name}" for curve in self.history.curves] if self.history else []
        return [
            f"search of {self.space.name}, {self.space.classes} classes: {self._progress()} ({self.source.name})",
            f"latency: {self._latency()}",
            f"entropy of the decisions: {self.entropy:.3f} of the most",
            *(["traced last:", *last] if last else []),
            "the most probable network: decision, probability, option",
            *(f"  {name:<{width}}  {self.probabilities[name][option]:.3f}  {names[name][option]}" for name, option in self.genotype.items()),
        ]

    def values(self) -> dict[str, Any]:
        """The same and the network, as JSON values."""
        return {
            "source": str(self.source),
            "space": self.space.name,
            "classes": self.space.classes,
            "finished": self.is_finished,
            "step": self.step,
            "steps": self.history.header.steps if self.history else None,
            "entropy": self.entropy,
            "budget_ms": self.budget_ms,
            "expected_ms": self.expected_ms,
            "decoded_ms": self.decoded_ms,
            "genotype": self.genotype,
            "probabilities": plain(self.probabilities),
            "architecture": plain(self.architecture),
        }

    def picture(self, form: Form) -> bytes:
        """The network, drawn with the table's prices where there is one."""
        return network_picture(self.architecture, self.table, form)

    def _progress(self) -> str:
        if self.is_finished or self.history is None:
            return "finished" + ("" if self.history is None else f", {self.history.header.steps} steps")
        done = self.history.steps[-1].step
        return f"step {done} of {self.history.header.steps}" + ("" if done == self.step else f", its decisions as of step {self.step}")

    def _latency(self) -> str:
        budget = "" if self.budget_ms is None else f"the budget is {self.budget_ms:.3f} ms"
        if self.table is None:
            return "; ".join(["not known without a table.json in its folder", *([budget] if budget else [])])
        return "; ".join(
            [f"expected {self.expected_ms:.3f} ms, decoded {self.decoded_ms:.3f} ms", *([budget] if budget else []), str(self.table.target)]
        )


def view_of(path: Path, classes: int | None = None) -> SearchView:
    """The search in that folder, or in that `search.json` or trace; `search.json` counts where a folder has both.

    `classes` are the dataset's, where neither a trace nor a table beside it tells them. InputError where there is no search, or no probabilities yet.
    """
    source = _found_in(path) if path.is_dir() else path
    trace, table = source.with_name(TRACE_NAME) if source.suffix == ".json" else source, source.with_name("table.json")
    history = read_trace(trace) if trace == source or trace.is_file() else None
    prices = load_table(table) if table.is_file() else None
    content = {} if trace == source else read_json(source)
    name = history.header.space if history and not content else str(content.get("space"))
    for other, what in ((history.header.space if history else name, trace), (prices.space if prices else name, table)):
        if other != name:
            raise IncompatibleError(f"{source} is a search of {name!r}, {what} is of {other!r}: they do not belong together; remove one of them")
    space = named_space(name, _classes(source, classes, history, prices))
    if history:
        history.header.require(space.decisions)
    if content:
        probabilities = _probabilities(source, content)
    elif history and history.kept:
        probabilities = history.kept[-1][1]
    else:
        raise InputError(f"{source} holds no probabilities yet; look again when its search has gone on")
    if {decision: len(options) for decision, options in probabilities.items()} != space.decisions:
        raise InputError(f"{source} holds other decisions than those of {name!r}; run `segnas search {name}` again")
    return SearchView(source, space, probabilities, history, prices, _ranking(source, content, history))


def _ranking(source: Path, content: Mapping[str, Any], history: History | None) -> Ranking:
    """How the search ranks operations against `none`, as its settings say; InputError for a way that does not exist."""
    settings = {} if history is None else dict(history.header.identity.get("settings", {}))
    found = content.get("ranking", settings.get("ranking", "odds"))
    if found not in CHOICES["ranking"]:
        raise InputError(f"{source}: ranking is {found!r}; allowed: {', '.join(map(str, CHOICES['ranking']))}")
    return cast(Ranking, found)


def network_picture(architecture: Architecture, table: LatencyTable | None, form: Form) -> bytes:
    """The network at the table's input size with its prices in ms; without a table at 16 times its deepest stride and twice as wide."""
    if table is None:
        height = 16 * 2 ** max(architecture.levels)
        return architecture_picture(architecture, height, 2 * height, wrap_inches=PICTURE_INCHES, form=form)
    target, prices = table.target, dict(table.estimate(architecture).per_operation)
    return architecture_picture(architecture, target.height, target.width, prices, wrap_inches=PICTURE_INCHES, form=form)


def _found_in(folder: Path) -> Path:
    for name in ("search.json", TRACE_NAME):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{folder} holds no search: neither search.json nor {TRACE_NAME} is there; make one with `segnas search SPACE ... --out {folder}`, or give "
        "the folder of a run"
    )


def _classes(source: Path, asked: int | None, history: History | None, table: LatencyTable | None) -> int:
    """Classes of the dataset: the trace's, or the width of the table's classifiers; UsageError where others are asked for."""
    told = {history.header.classes} if history else set[int]()
    if table is not None:
        widths = {e.operation.output.channels for e in table.entries if e.operation.op == "classifier"}
        told = told or (widths if len(widths) == 1 else told)
    if not told:
        if asked is None:
            raise InputError(
                f"{source} does not say how many classes its dataset has, and neither a trace nor a table beside it does: give --classes"
            )
        return asked
    if asked is not None and told != {asked}:
        raise UsageError(f"--classes {asked} was given; {source} is a search for {min(told)} classes: leave it out")
    return min(told)


def _probabilities(source: Path, content: dict[str, Any]) -> Probabilities:
    """The probabilities in a `search.json`."""
    where = f"{source}: probabilities"
    given = cast(dict[str, object], unplain(dict, content.get("probabilities"), where))
    return {name: cast(tuple[float, ...], unplain(tuple[float, ...], options, f"{where}.{name}")) for name, options in given.items()}

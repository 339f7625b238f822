"""Supernet scores: networks drawn by a search and uniformly, and what its supernet says of each, kept in a journal."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from segnas.arch import Architecture, canonical_json
from segnas.errors import InputError
from segnas.files import read_json, sha256_of, unplain
from segnas.journals import Journal
from segnas.measuring import Progress
from segnas.search.checkpoint import CHECKPOINT_NAME
from segnas.search.draws import distinct
from segnas.search.scoring import Scorer, StatisticsBatches, load_supernet, spread_indices, supernet_score
from segnas.search.space import Space
from segnas.search.supernet import Supernet, untrained_supernet
from segnas.steps import read_probabilities
from segnas.trainings import Schedule

FROM_SEARCH, UNIFORM, COMPARED = "search", "uniform", "compared"


@dataclass(frozen=True)
class SearchedRun:
    """A search of the space: its checkpoint, and the probabilities of every decision's options that it ended at."""

    name: str
    checkpoint: Path
    probabilities: Mapping[str, Sequence[float]]

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits of the checkpoint's content."""
        return sha256_of(self.checkpoint)[:12]


@dataclass(frozen=True, slots=True)
class Scoring:
    """How supernets are asked: so many batches of training images for the normalisations' statistics, and at most `images` of the judged split
    to be scored, evenly spread (None: all).
    """

    batches: int
    batch: int
    images: int | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A network of the study: by which genotype, and whether by the search's probabilities, uniformly, or in a comparison."""

    drawn: str
    genotype: dict[str, int]
    architecture: Architecture

    @property
    def key(self) -> str:
        """12 hexadecimal digits of the genotype: which weights are inherited depends on it."""
        return hashlib.sha256(canonical_json(self.genotype).encode()).hexdigest()[:12]


def searched_run(space: Space, folder: Path) -> SearchedRun:
    """What `segnas search` left in a folder; refused where it is of another space or incomplete."""
    probabilities = read_probabilities(folder / "search.json", space)
    checkpoint = folder / CHECKPOINT_NAME
    load_supernet(space, checkpoint)
    return SearchedRun(folder.resolve().name, checkpoint, probabilities)


def compared_networks(space: Space, path: Path) -> tuple[Drawn, ...]:
    """The networks of a `compare.json` that are of the space, searched and random ones; InputError where it holds none, or another than it names."""
    found: dict[str, Drawn] = {}
    for i, network in enumerate(unplain(tuple[dict[str, object], ...], read_json(path).get("networks"), f"{path}: networks")):
        genotype = unplain(dict[str, int] | None, network.get("genotype"), f"{path}: networks[{i}].genotype")
        if genotype is None or set(genotype) != set(space.decisions):
            continue
        architecture = space.decode(genotype).architecture
        if architecture.digest != network.get("digest"):
            raise InputError(
                f"{path}: networks[{i}] is {network.get('digest')!r}, and its genotype is network {architecture.digest} of {space.name!r}"
            )
        found.setdefault(architecture.digest, Drawn(COMPARED, genotype, architecture))
    if not found:
        raise InputError(f"{path} holds no network of {space.name!r} with its genotype; run `segnas compare` with that space again")
    return tuple(found.values())


def draw(space: Space, probabilities: Mapping[str, Sequence[float]], count: int, seed: int, compared: Sequence[Drawn] = ()) -> tuple[Drawn, ...]:
    """So many distinct networks: those that were compared, then half of the others the search's; InputError where the space has fewer."""
    rng, found = Random(seed), list(compared)

    def others(drawn: str, probabilities: Mapping[str, Sequence[float]] | None, number: int) -> Iterator[Drawn]:
        taken = {network.architecture.digest for network in found}
        return islice((Drawn(drawn, g, a) for g, a in distinct(space, rng, probabilities) if a.digest not in taken), max(0, number))

    found += others(FROM_SEARCH, probabilities, -(-(count - len(found)) // 2))
    found += others(UNIFORM, None, count - len(found))
    if len(found) < count:
        raise InputError(f"{count} networks of {space.name!r} were asked for, and {len(found)} could be drawn; ask for fewer")
    return tuple(found)


def supernet_scores(
    space: Space,
    runs: Sequence[SearchedRun],
    drawn: Sequence[Drawn],
    schedule: Schedule,
    scoring: Scoring,
    *,
    path: Path,
    seed: int,
    progress: Progress,
) -> dict[str, list[float]]:
    """Every supernet's scores of every network, by the predictor's name; with statistics estimated anew, as inherited, and of an untrained supernet.

    A score that is in the journal at `path` is not computed again. InputError where the space's networks cannot inherit.
    """
    journal, on = _ScoreJournal(path), scored_on(schedule, scoring, seed)
    size = (schedule.target.height, schedule.target.width)
    scorer = Scorer(schedule.evaluation, spread_indices(len(schedule.evaluation), scoring.images), size)
    batches = StatisticsBatches(schedule.train, count=scoring.batches, batch=scoring.batch, size=size, seed=seed)

    def scores(name: str, identity: str, supernet: Supernet, statistics: bool) -> list[float]:
        found: list[float] = []
        for number, network in enumerate(drawn):
            progress(number, len(drawn), f"{name}: {network.architecture.digest}")
            key = {"supernet": identity, "genotype": network.key, "on": on, "statistics": statistics}
            asked = partial(supernet_score, supernet, network.genotype, scorer, batches if statistics else None)
            found.append(journal.score(key, asked))
        return found

    found: dict[str, list[float]] = {}
    for number, run in enumerate(runs, 1):
        name = f"supernet {number} ({run.name})" if len(runs) > 1 else "supernet"
        supernet = load_supernet(space, run.checkpoint)
        found[name] = scores(name, run.digest, supernet, True)
        found[f"{name}, not re-estimated"] = scores(name, run.digest, supernet, False)
    untrained = untrained_supernet(space, seed)
    return {**found, "untrained supernet": scores("untrained supernet", f"untrained {space.name} {seed}", untrained, True)}


def scored_on(schedule: Schedule, scoring: Scoring, seed: int) -> dict[str, Any]:
    """What a score depends on beside supernet and genotype, as JSON values."""
    identity = {name: schedule.identity[name] for name in ("learned", "judged", "size")}
    return {**identity, "batches": scoring.batches, "batch": scoring.batch, "images": scoring.images, "seed": seed}


class _ScoreJournal:
    """Scores by everything that they depend on; one that is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._known: dict[str, float] = {}
        for number, entry in enumerate(self._journal.entries, 1):
            miou, key = entry.get("miou"), {name: value for name, value in entry.items() if name != "miou"}
            if not isinstance(miou, float):
                raise self._journal.damaged(number)
            self._known[canonical_json(key)] = miou

    def score(self, key: Mapping[str, Any], by: Callable[[], float]) -> float:
        """The score under that key, from the journal or else by that."""
        text = canonical_json(dict(key))
        if text not in self._known:
            self._known[text] = by()
            self._journal.add({**key, "miou": self._known[text]})
        return self._known[text]

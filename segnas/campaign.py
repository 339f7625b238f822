"""Campaign: the networks of a comparison and their latencies, all measured in a row at one speed of the machine."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median

from segnas.arch import Architecture
from segnas.errors import IncompatibleError, InputError
from segnas.files import read_json, read_noun, unplain
from segnas.latency import LatencyTable, Prepare
from segnas.latency_tables.compose import PROTOCOL, PROTOCOL_KEY, SENTINEL_KEY
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.latency_tables.store import load_table, save_table
from segnas.measurements import MeasurementJournal
from segnas.measuring import Progress, Services, require_entries
from segnas.search.draws import between, distinct
from segnas.search.expected import ExpectedLatency
from segnas.search.references import REFERENCES, reference
from segnas.search.space import Space
from segnas.target import Target
from segnas.timing import percentile

SOURCES = SEARCHED, RANDOM, GIVEN = "searched", "random", "given"
ATTEMPTS = 8
"""So many random networks are measured for each that is wanted, until one lies in the window by the clock too; our choice."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One network of a source: searched, random or given; `genotype` as far as it is known."""

    source: str
    name: str
    architecture: Architecture
    genotype: Mapping[str, int] | None = None

    @property
    def digest(self) -> str:
        """The network's."""
        return self.architecture.digest


@dataclass(frozen=True, slots=True)
class RandomDraws:
    """So many random networks of a space."""

    space: Space
    count: int


def searched_candidate(path: Path) -> Candidate:
    """The network of a run's folder, or in a file, as a searched one."""
    if not path.is_dir():
        return Candidate(SEARCHED, path.stem, read_noun(path, Architecture))
    derived = path / "derive.json"
    genotype = unplain(dict[str, int], read_json(derived).get("genotype"), f"{derived}: genotype") if derived.is_file() else None
    return Candidate(SEARCHED, path.resolve().name, read_noun(path / "arch.json", Architecture), genotype)


def given_candidate(text: str, classes: int) -> Candidate:
    """A reference network by name, or the network in a .json file, as a given one."""
    if text in REFERENCES or not text.endswith(".json"):
        return Candidate(GIVEN, text, reference(text, classes))
    return Candidate(GIVEN, Path(text).stem, read_noun(Path(text), Architecture))


def merged(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates, a network that comes twice in one source once, under both names: two searches that end at it are no two trainings."""
    found: dict[tuple[str, str], Candidate] = {}
    for candidate in candidates:
        before = found.get((candidate.source, candidate.digest))
        found[candidate.source, candidate.digest] = replace(before, name=f"{before.name}, {candidate.name}") if before else candidate
    return tuple(found.values())


def campaign_table(target: Target, path: Path, prepare: Prepare) -> LatencyTable:
    """A table that prices nothing: it keeps the target and the machine's present speed, so that all networks of a folder are measured at one speed.

    IncompatibleError where the file at `path` keeps another target.
    """
    if path.is_file():
        table = load_table(path)
        if differing := table.differing(target):
            raise IncompatibleError(f"{path} was begun on another target ({differing}); choose another --out")
        return table
    with closing(prepare(sentinel_architecture(), sentinel_target(target))) as sentinel:
        sentinel.sample(3)
        reference = percentile(sentinel.sample(21), 50)
    table = LatencyTable("campaign", target, (), provenance=((PROTOCOL_KEY, PROTOCOL), (SENTINEL_KEY, f"{reference:.6f}")))
    save_table(path, table)
    return table


class Campaign:
    """Measures networks on a table's target; each once, whenever it is killed."""

    def __init__(self, table: LatencyTable, journal: Path, services: Services, progress: Progress) -> None:
        self.table, self._services, self._progress = table, services, progress
        self._journal = MeasurementJournal(journal, table.prices_digest)

    def ms(self, architecture: Architecture) -> float:
        """The network's latency in ms, normalised by the sentinel."""
        known = self._journal.known
        self._progress(len(known), 0, f"{architecture.digest}: measuring")
        return self._journal.measure(architecture, lambda network: self._services.measure(network, self.table)).median_ms

    def random(self, draws: RandomDraws, candidates: Sequence[Candidate], *, within: float, seed: int) -> Iterator[Candidate]:
        """Random networks, none of them a candidate and each once, dealt to the searched candidates in turn: each lies within that share of the
        measured latency of the one it is dealt to, by the table and by the clock.

        Uniform draws where the table prices nothing or no network was searched. InputError where a searched one gets none.
        """
        rng, taken = Random(seed), {candidate.digest for candidate in candidates}
        anchors = [candidate.architecture for candidate in candidates if candidate.source == SEARCHED]
        if not anchors or not self.table.entries:
            drawn = ((g, a) for g, a in distinct(draws.space, rng) if a.digest not in taken)
            yield from (Candidate(RANDOM, f"random {number}", a, g) for number, (g, a) in enumerate(islice(drawn, draws.count), 1))
            return
        require_entries(draws.space, self.table)
        price = ExpectedLatency(draws.space, self.table).exact
        ratios = [self._ratio(anchor) for anchor in anchors]
        streams: dict[str, tuple[float, Iterator[tuple[dict[str, int], Architecture]]]] = {}
        for number in range(draws.count):
            anchor = anchors[number % len(anchors)]
            middle, found = self.ms(anchor) / median(ratios), None
            at, near = streams.get(anchor.digest, (math.inf, iter(())))
            if abs(middle / at - 1) > within / 4:  # the ratio moved: look elsewhere
                near = between(draws.space, middle * (1 - within), middle * (1 + within), price, Random(rng.random()))
                streams[anchor.digest] = middle, near
            for genotype, tried in islice(((g, a) for g, a in near if a.digest not in taken), ATTEMPTS):
                ratios.append(self._ratio(tried))
                if abs(self.ms(tried) / self.ms(anchor) - 1) <= within:
                    found = Candidate(RANDOM, f"random {number + 1}", tried, genotype)
                    break
            if found is not None:
                taken.add(found.digest)
                yield found
            elif number < len(anchors):
                raise InputError(
                    f"no random network of {draws.space.name!r} was found within {100 * within:g} % of the {self.ms(anchor):.3f} ms that network "
                    f"{anchor.digest} takes, by table and clock (at most {ATTEMPTS} are measured); widen --within, or give the searched space"
                )

    def _ratio(self, architecture: Architecture) -> float:
        """What the clock says over what the table says: what all networks share of it is taken out of the table's word, what one has is not."""
        return self.ms(architecture) / self.table.estimate(architecture).total_ms


def by_digest(candidates: Sequence[Candidate]) -> Mapping[str, Architecture]:
    """Each network once."""
    return {candidate.digest: candidate.architecture for candidate in candidates}

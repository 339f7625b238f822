"""Random search on cached features, then a re-ranking of the best few by whole trainings: DPC's way of searching, for any space with a backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from segnas.data import Dataset, halves
from segnas.latency import LatencyTable
from segnas.report import Curve
from segnas.search.cached_score import CachedScore, without_auxiliary
from segnas.search.correlation import Interval, correlations
from segnas.search.frozen import frozen_backbone, require_steps
from segnas.search.proposals import Strategy
from segnas.search.ranked import Candidate, Progress, Ranked, Sought, Surroundings, in_order
from segnas.search.sampled import Sampled, sample, score_listed
from segnas.search.settings import SampledSettings, SearchSettings, TrainSettings
from segnas.search.space import Space
from segnas.search.study import open_storage
from segnas.search.trained_score import trained_score
from segnas.search.trials import SampledTrial


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well the proxy's order of networks told that of the re-ranking: rank correlations over `networks` of them with their 95 % intervals, and
    which place the best had by the proxy.
    """

    networks: int
    spearman: Interval
    kendall: Interval
    winner: int

    def __str__(self) -> str:
        return (
            f"re-ranking of {self.networks} networks: Spearman {self.spearman}, Kendall {self.kendall} (95 % intervals) between proxy and re-rank; "
            f"the best was number {self.winner} by the proxy"
        )


def cached_search(sought: Sought, around: Surroundings) -> Ranked:
    """The method "dpc": networks proposed within the budget, scored on cached features, the best few re-ranked. Resumes from `study.db`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings, sampled = sought.search, sought.search.sampled
    proxy = cached_score_of(
        sought.space, sought.dataset, sought.train, proxy_settings(settings), sampled, target_size(sought.table), around, pretrained=around.pretrained
    )
    with open_storage(f"sqlite:///{around.folder / 'study.db'}") as storage:
        found = sample(
            sought.space,
            sought.table,
            Strategy(sampled.strategy),
            proxy.scoring,
            budget_ms=sought.budget_ms,
            trials=sampled.trials,
            storage=storage,
            name="search",
            seed=around.seed,
            progress=around.progress,
        )
        candidates = reranked(
            sought.table, found, proxy, sought.train, sampled, budget_ms=sought.budget_ms, storage=storage, name="re-rank", progress=around.progress
        )
    agreed = agreement(candidates, around.seed)
    notes = [f"the backbone was frozen in the search: {proxy.backbone.origin}", *([str(agreed)] if agreed else [])]
    return Ranked(candidates, curves(found.trials), tuple(notes), {"trials": found.counts, "agreement": told(agreed), "schedule": proxy.schedule})


def require_backbone(settings: SampledSettings, *, has_weights: bool) -> None:
    """UsageError where the backbone would be frozen at random weights."""
    if not has_weights:
        require_steps(settings.backbone_steps)


def cached_score_of(
    space: Space,
    dataset: Dataset,
    train: TrainSettings,
    proxy: TrainSettings,
    sampled: SampledSettings,
    size: tuple[int, int],
    around: Surroundings,
    *,
    pretrained: Path | None,
) -> CachedScore:
    """The score on a frozen backbone, which is trained first, on the half that is learned from, where there are no pretrained weights."""
    learning = replace(dataset, samples=tuple(dataset.samples[index] for index in halves(len(dataset), around.seed)[0]))
    backbone = frozen_backbone(
        space,
        learning,
        train,
        steps=sampled.backbone_steps,
        pretrained=pretrained,
        folder=around.folder,
        seed=around.seed,
        device=around.device,
        progress=around.progress,
    )
    return CachedScore(backbone, dataset, proxy, sampled.crops, size, around.seed, around.folder, around.device)


def reranked(
    table: LatencyTable,
    found: Sampled,
    proxy: CachedScore,
    train: TrainSettings,
    sampled: SampledSettings,
    *,
    budget_ms: float,
    storage: BaseStorage,
    name: str,
    progress: Progress | None,
) -> tuple[Candidate, ...]:
    """All scored networks, the best first: the best few by the proxy are trained whole from its weights, backbone included, and ordered by that."""
    scored = sorted((t for t in found.trials if t.score is not None), key=lambda t: (-(t.score or 0.0), t.price_ms or 0.0, t.number))
    unique = {tuple((t.genotype or {}).items()): t for t in reversed(scored)}
    short = [t for t in scored if unique[tuple((t.genotype or {}).items())] is t][: sampled.rerank]
    again: dict[tuple[tuple[str, int], ...], float] = {}
    if len(short) > 1:
        space, (height, width) = proxy.backbone.space, proxy.size
        schedule = without_auxiliary(train, sampled.rerank_steps)
        scoring = trained_score(
            space,
            proxy.dataset,
            schedule,
            height=height,
            width=width,
            seed=proxy.seed,
            folder=proxy.folder / "training",
            device=proxy.device,
            start=proxy,
        )
        genotypes = [dict(t.genotype or {}) for t in short]
        trials = score_listed(space, table, genotypes, scoring, budget_ms=budget_ms, storage=storage, name=name, seed=proxy.seed, progress=progress)
        again = {tuple(t.genotype.items()): t.score for t in trials if t.genotype is not None and t.score is not None}
    return in_order(
        [
            Candidate(dict(key), trial.price_ms or 0.0, trial.score or 0.0, again.get(key))
            for key, trial in ((tuple((t.genotype or {}).items()), t) for t in scored)
            if unique[key] is trial
        ]
    )


def agreement(candidates: Sequence[Candidate], seed: int) -> Agreement | None:
    """Of the re-ranked candidates, in their order; None for fewer than two."""
    pairs = [(c.score, c.reranked) for c in candidates if c.reranked is not None]
    if len(pairs) < 2:
        return None
    found = correlations([score for score, _ in pairs], [again for _, again in pairs], seed)
    return Agreement(len(pairs), found["spearman"], found["kendall"], 1 + sum(score > pairs[0][0] for score, _ in pairs))


def told(agreed: Agreement | None) -> dict[str, object] | None:
    """The agreement as JSON values."""
    if agreed is None:
        return None
    values = {name: [found.value, found.low, found.high] for name, found in (("spearman", agreed.spearman), ("kendall", agreed.kendall))}
    return {"networks": agreed.networks, "winner": agreed.winner, **values}


def curves(trials: Sequence[SampledTrial]) -> tuple[Curve, ...]:
    """Score of each trial, and the best so far, over the number of trials."""
    scores = [t.score for t in trials if t.score is not None]
    steps = tuple(range(1, len(scores) + 1))
    best = tuple(max(scores[:step]) for step in steps)
    return Curve("search/score", steps, tuple(round(score, 6) for score in scores)), Curve("search/best score", steps, best)


def proxy_settings(settings: SearchSettings) -> TrainSettings:
    """One network's schedule on cached features, as the search's settings say it; no auxiliary head."""
    return TrainSettings(
        steps=settings.steps,
        batch=settings.batch,
        crop=settings.crop,
        scale=settings.scale,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        warmup=min(10, settings.steps // 4),
        auxiliary=0.0,
        ohem_threshold=1.0,
    )


def target_size(table: LatencyTable) -> tuple[int, int]:
    """(HEIGHT, WIDTH) of what is deployed."""
    return table.target.height, table.target.width

"""The verb of `segnas sample`: from space, table and images to the best of a study's trials, as files in one folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from optuna.storages import BaseStorage

from segnas.data import Dataset
from segnas.files import plain, require_writable, write_noun, write_text
from segnas.latency import MISMATCH_KEY, LatencyTable
from segnas.measuring import Progress, require_entries
from segnas.search.cached_score import without_auxiliary
from segnas.search.cached_search import agreement, cached_score_of, reranked, told
from segnas.search.checkpoint import CHECKPOINT_NAME
from segnas.search.inherited_score import inherited_score
from segnas.search.proposals import Proposer, Strategy
from segnas.search.ranked import Candidate, Surroundings
from segnas.search.sampled import Sampled, Scoring, sample, study_identity
from segnas.search.settings import SampledSettings, TrainSettings
from segnas.search.space import Space
from segnas.search.trained_score import trained_score
from segnas.steps import require_device


def sample_space(
    space: Space,
    table: LatencyTable,
    dataset: Dataset,
    strategy: Strategy | Proposer,
    settings: TrainSettings,
    *,
    budget: float,
    trials: int,
    storage: BaseStorage,
    name: str,
    out: Path,
    device: str,
    seed: int,
    progress: Progress,
    supernet: Path | None = None,
    cached: SampledSettings | None = None,
    pretrained: Path | None = None,
    scoring: Scoring | None = None,
) -> Sampled:
    """Work on a study until so many trials are done, and write `arch.json`, `sampled.json` and `trials.jsonl` into `out`.

    A network is scored by `scoring`, by the weights of the search in folder `supernet`, with `cached` by a training of what stands behind its frozen
    backbone, whose weights are `pretrained` or trained first (the best few are then re-ranked), else by a training of its own. `budget` is in ms, by
    the table; the network that is found was not measured. Several workers may write into one folder: they write the same.
    """
    require_device(device)
    require_entries(space, table)
    for file in ("arch.json", "sampled.json", "trials.jsonl"):
        require_writable(out / file)
    target, folder = table.target, out / "training"
    height, width = target.height, target.width
    proxy = None
    if cached is not None:
        around = Surroundings(out, pretrained, device, seed, progress)
        schedule = without_auxiliary(settings, settings.steps)
        proxy = cached_score_of(space, dataset, settings, schedule, cached, (height, width), around, pretrained=pretrained)
        scoring = proxy.scoring
    elif supernet is not None:
        scoring = inherited_score(space, supernet / CHECKPOINT_NAME, dataset, height=height, width=width, seed=seed)
    elif scoring is None:
        scoring = trained_score(space, dataset, settings, height=height, width=width, seed=seed, folder=folder, device=device)
    found = sample(space, table, strategy, scoring, budget_ms=budget, trials=trials, storage=storage, name=name, seed=seed, progress=progress)
    extra: dict[str, object] = {}
    if proxy is not None and cached is not None and cached.rerank:
        candidates = reranked(table, found, proxy, settings, cached, budget_ms=budget, storage=storage, name=f"{name}-re-rank", progress=progress)
        agreed = agreement(candidates, seed)
        extra = {"agreement": told(agreed), "note": str(agreed or ""), "candidates": [plain(c) for c in candidates if c.reranked is not None]}
        found = chosen(space, table, found, candidates[0])
    write_sampled(found, study_identity(space, table, strategy, budget, seed, scoring.schedule), name, out, table.allowed_mismatch, extra)
    return found


def chosen(space: Space, table: LatencyTable, found: Sampled, best: Candidate) -> Sampled:
    """What was found, with that candidate as the best; its score is that of the re-ranking where it was in one."""
    derived = space.decode(best.genotype)
    score = best.score if best.reranked is None else best.reranked
    return replace(found, genotype=best.genotype, derived=derived, estimate=table.estimate(derived.architecture), score=score)


def write_sampled(found: Sampled, identity: dict[str, object], name: str, out: Path, mismatch: str, extra: Mapping[str, object]) -> None:
    """All trials, what was asked and what was found, and the network; `arch.json` last: its presence says that the others are there."""
    estimate = found.estimate
    best = {"score": found.score, "genotype": found.genotype, "architecture": found.derived.architecture.digest}
    best["predicted_ms"], best["low_ms"], best["high_ms"] = estimate.total_ms, estimate.low_ms, estimate.high_ms
    lines = (json.dumps(plain(trial), allow_nan=False) for trial in found.trials)
    write_text(out / "trials.jsonl", "".join(line + "\n" for line in lines))
    content = {"study": name, "asked": identity, "trials": found.counts, "best": best, **extra, MISMATCH_KEY: mismatch}
    write_text(out / "sampled.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_noun(out / "arch.json", found.derived.architecture)

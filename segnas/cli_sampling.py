"""`segnas sample`: the sampling-based baselines, alone or on several machines."""

from pathlib import Path

import click

from segnas.cli_options import ALLOW, DATASET, DEVICE, FILE, JSON, ROOT, SEED, emit


@click.command()
@click.argument("space")
@click.option(
    "--strategy",
    type=click.Choice(["random", "evolution", "local", "controller"]),
    default="evolution",
    show_default=True,
    help="How networks are proposed.",
)
@click.option("--population", type=click.IntRange(1), default=20, show_default=True, help="Evolution: the newest networks that may be parents.")
@click.option(
    "--sample",
    "sample_size",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Evolution: how many of them compete; local: near how many of the best.",
)
@click.option("--table", type=FILE, required=True, help="The space's latency table on the target; each network is priced by it first.")
@ALLOW
@DATASET
@ROOT
@click.option("--split", default="train", show_default=True, help="Split that is learned from; one half of it scores.")
@click.option("--budget", required=True, help="Latency budget: 8ms, 120fps or p35.")
@click.option("--trials", type=click.IntRange(1), required=True, help="Networks to score, by all workers together.")
@click.option("--recipe", default="camvid-cpu", show_default=True, help="Recipe whose [train] section is the schedule.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps a network, in place of the recipe's.")
@click.option("--supernet", type=FILE, help="Folder of a search of SPACE: networks are scored with its weights, in seconds, in place of a training.")
@click.option("--crops", type=click.IntRange(1), help="Freeze the backbone, compute its features of so many crops once, and train the rest on them.")
@click.option("--two-stage", is_flag=True, help="Score by Fast-NAS's two stages, as the recipe's [search] says, in place of a training.")
@click.option("--pretrained", type=FILE, help="With --crops or --two-stage: the backbone's weights (safetensors).")
@click.option("--backbone-steps", type=click.IntRange(0), default=0, help="With --crops, without --pretrained: train the backbone first.")
@click.option("--rerank", type=click.IntRange(0), default=0, help="With --crops: train the best so many whole, backbone included, and order them.")
@click.option("--rerank-steps", type=click.IntRange(1), default=400, show_default=True, help="Steps of each of those trainings.")
@click.option("--storage", help="Where the study lies: sqlite:///FILE, journal:FILE, or a database's address.  [default: OUT/study.db]")
@click.option("--study", help="Name of the study in the storage.  [default: SPACE-STRATEGY]")
@click.option("--out", type=FILE, required=True, help="Folder for arch.json, sampled.json and trials.jsonl.")
@DEVICE
@SEED
@JSON
def sample(
    space: str,
    strategy: str,
    population: int,
    sample_size: int,
    table: Path,
    allow: tuple[str, ...],
    name: str,
    data_root: Path,
    split: str,
    budget: str,
    trials: int,
    recipe: str,
    steps: int | None,
    supernet: Path | None,
    crops: int | None,
    two_stage: bool,
    pretrained: Path | None,
    backbone_steps: int,
    rerank: int,
    rerank_steps: int,
    storage: str | None,
    study: str | None,
    out: Path,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Sample networks of SPACE within a budget, train each for a short while, keep the best; start it on as many machines as you like.

    Example: segnas sample cas-fast --table cas-fast.json --data camvid --data-root "$SEGNAS_CAMVID" --budget 8ms --trials 100 --out runs/aged
    """
    from dataclasses import replace

    import optuna

    from segnas.data import open_dataset
    from segnas.errors import UsageError
    from segnas.files import require_writable
    from segnas.latency_tables.store import load_table
    from segnas.measuring import for_this_machine
    from segnas.recipe import read_recipe
    from segnas.sampled_search import sample_space
    from segnas.screen import RichScreen
    from segnas.search.budget import budget_ms
    from segnas.search.cached_search import require_backbone
    from segnas.search.controlled_search import controlled_proposer, two_stage_score
    from segnas.search.proposals import Strategy
    from segnas.search.ranked import Surroundings
    from segnas.search.settings import SampledSettings
    from segnas.search.spaces import space as named_space
    from segnas.search.study import open_storage

    if crops is None and (backbone_steps or rerank):
        raise UsageError("--backbone-steps and --rerank belong to a frozen backbone with cached features: give --crops too")
    if crops is None and pretrained is not None and not two_stage:
        raise UsageError("--pretrained was given without --crops and --two-stage; other scores begin with random weights")
    if (crops is not None) + two_stage + (supernet is not None) > 1:
        raise UsageError("--crops, --two-stage and --supernet are three ways of scoring, and more than one was given; give one")
    cached = None if crops is None else SampledSettings(strategy, trials, crops, backbone_steps, rerank, rerank_steps)
    if cached is not None:
        require_backbone(cached, has_weights=pretrained is not None)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dataset, asked = open_dataset(name, data_root, split), read_recipe(recipe)
    settings = asked.train
    prices = for_this_machine(load_table(table), allow)
    settings = settings if steps is None else replace(settings, steps=steps)
    wanted = named_space(space, len(dataset.labels.classes))
    value = budget_ms(budget, wanted, prices, seed)
    require_writable(out / "study.db")
    with open_storage(storage or f"sqlite:///{out / 'study.db'}") as trials_kept, RichScreen().step(f"sampling {space} by {strategy}") as progress:
        around = Surroundings(out, pretrained, device, seed, progress)
        how = controlled_proposer(wanted, asked.search, value, around) if strategy == "controller" else Strategy(strategy, population, sample_size)
        size = (prices.target.height, prices.target.width)
        scoring = two_stage_score(wanted, dataset, asked.search, settings, size, around).scoring if two_stage else None
        found = sample_space(
            wanted,
            prices,
            dataset,
            how,
            settings,
            budget=value,
            trials=trials,
            storage=trials_kept,
            name=study or f"{space}-{strategy}",
            out=out,
            device=device,
            seed=seed,
            progress=progress,
            supernet=supernet,
            cached=cached,
            pretrained=pretrained,
            scoring=scoring,
        )
    digest, estimate = found.derived.architecture.digest, found.estimate
    values = {"architecture": digest, "score": found.score, "predicted_ms": estimate.total_ms, "budget_ms": value, "trials": found.counts}
    line = f"{out / 'arch.json'}: {digest}, score {found.score:.4f}, predicted {estimate.total_ms:.3f} ms of {value:.3f} ms; "
    emit(values, as_json, [line + ", ".join(f"{number} trials {state}" for state, number in found.counts.items())])

"""`segnas search`, `derive` and `train`: step by step what `segnas run` does at once, from a space and its latency table to a trained network."""

from pathlib import Path
from typing import Any

import click

from segnas.cli_options import ALLOW, CLASSES, DATASET, DEVICE, FILE, JSON, ROOT, SEED, emit, require_suffix
from segnas.errors import UsageError


@click.command()
@click.argument("space")
@click.option("--table", type=FILE, required=True, help="The space's latency table on the target.")
@ALLOW
@DATASET
@ROOT
@click.option("--split", default="train", show_default=True, help="Split that is learned from.")
@click.option("--budget", required=True, help="Latency budget: 8ms, 120fps or p35.")
@click.option("--recipe", default="camvid-cpu", show_default=True, help="Recipe whose [search] section is the schedule.")
@click.option("--method", help="How to search, in place of the recipe's, by name (see `segnas methods`).")
@click.option("--steps", type=click.IntRange(2), help="Steps of the search, in place of the recipe's; the warm-up shrinks with them.")
@click.option("--out", type=FILE, required=True, help="Folder of the run; an interrupted search continues from its checkpoint.")
@DEVICE
@SEED
@JSON
def search(
    space: str,
    table: Path,
    allow: tuple[str, ...],
    name: str,
    data_root: Path,
    split: str,
    budget: str,
    recipe: str,
    method: str | None,
    steps: int | None,
    out: Path,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Search SPACE under a latency budget.

    Example: segnas search cas-fast --table cas-fast.json --data camvid --data-root "$SEGNAS_CAMVID" --budget 8ms --out runs/mine
    """
    from segnas.data import open_dataset
    from segnas.latency_tables.store import load_table
    from segnas.measuring import for_this_machine, require_entries, require_live
    from segnas.recipe import read_recipe
    from segnas.screen import RichScreen
    from segnas.search.budget import budget_ms
    from segnas.search.settings import by_method, shortened
    from segnas.search.spaces import space as named_space
    from segnas.steps import search_space

    dataset, settings = open_dataset(name, data_root, split), read_recipe(recipe).search
    prices = for_this_machine(load_table(table), allow)
    settings = settings if method is None else by_method(settings, method)
    settings = settings if steps is None else shortened(settings, steps)
    wanted = named_space(space, len(dataset.labels.classes))
    value = budget_ms(budget, wanted, prices, seed)
    require_entries(wanted, prices)
    with RichScreen().step("measuring some entries of the table again") as progress:
        require_live(prices, progress)
    with RichScreen().step(f"searching {space}") as progress:
        search_space(wanted, prices, dataset, settings, budget=value, out=out / "search.json", device=device, seed=seed, progress=progress)
    emit({"search": str(out / "search.json"), "budget_ms": value}, as_json, [f"{out / 'search.json'}: {space} under {value:.3f} ms"])


@click.command()
@click.argument("run", type=FILE)
@click.option("--space", required=True, help="The space that was searched.")
@CLASSES
@click.option("--table", type=FILE, required=True, help="The space's latency table on this machine.")
@ALLOW
@click.option("--budget", required=True, help="Latency budget: 8ms, 120fps or p35; of several with commas each has a folder in RUN.")
@SEED
@JSON
def derive(run: Path, space: str, classes: int, table: Path, allow: tuple[str, ...], budget: str, seed: int, as_json: bool) -> None:
    """Derive the network of RUN that meets the budget when it is measured here.

    Example: segnas derive runs/mine --space cas-fast --classes 11 --table cas-fast.json --budget 8ms
    """
    from segnas.latency_tables.store import load_table
    from segnas.measuring import SERVICES, for_this_machine
    from segnas.screen import RichScreen
    from segnas.search.budget import budget_ms, budget_texts
    from segnas.search.spaces import space as named_space
    from segnas.steps import derive_network

    wanted, prices = named_space(space, classes), for_this_machine(load_table(table), allow)
    texts, found, lines = budget_texts(budget), list[dict[str, Any]](), list[str]()
    for text in texts:
        value, out = budget_ms(text, wanted, prices, seed), run / (text if len(texts) > 1 else ".") / "arch.json"
        with RichScreen().step(f"deriving the network for {text} and measuring it") as progress:
            met = derive_network(wanted, run / "search.json", prices, value, out=out, seed=seed, services=SERVICES, progress=progress)
        found.append({"architecture": met.derived.architecture.digest, "measured_ms": met.measured_ms, "budget_ms": value})
        lines.append(f"{out}: {found[-1]['architecture']}, measured {met.measured_ms:.3f} ms of {value:.3f} ms")
    emit(found[0] if len(found) == 1 else found, as_json, lines)


@click.command()
@click.option("--arch", type=FILE, required=True, help="Architecture, a JSON file.")
@DATASET
@ROOT
@click.option("--split", default="train", show_default=True, help="Split that is learned from.")
@click.option("--recipe", default="camvid-cpu", show_default=True, help="Recipe whose [train] section is the schedule.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps, in place of the recipe's.")
@click.option("--out", type=FILE, required=True, help="The weights, a .safetensors file; an interrupted training continues from its checkpoint.")
@click.option("--pretrained", type=FILE, help="Starting weights (safetensors).")
@click.option("--teacher", type=FILE, help="Architecture of a teacher, where the recipe's train.distil says how to learn from it.")
@click.option("--teacher-weights", type=FILE, help="The teacher's trained weights.")
@DEVICE
@SEED
@JSON
def train(
    arch: Path,
    name: str,
    data_root: Path,
    split: str,
    recipe: str,
    steps: int | None,
    out: Path,
    pretrained: Path | None,
    teacher: Path | None,
    teacher_weights: Path | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Train an architecture; under torchrun, on several processes.

    Example: segnas train --arch arch.json --data camvid --data-root "$SEGNAS_CAMVID" --out weights.safetensors
    """
    from dataclasses import replace

    from segnas.arch import Architecture
    from segnas.data import open_dataset
    from segnas.files import read_noun
    from segnas.recipe import read_recipe
    from segnas.screen import RichScreen
    from segnas.steps import load_network, train_network

    require_suffix(out, ".safetensors")
    if (teacher is None) != (teacher_weights is None):
        raise UsageError("--teacher and --teacher-weights belong together: give both or neither")
    taught = load_network(read_noun(teacher, Architecture), teacher_weights)[0] if teacher and teacher_weights else None
    architecture, settings = read_noun(arch, Architecture), read_recipe(recipe).train
    settings = settings if steps is None else replace(settings, steps=steps)
    data = open_dataset(name, data_root, split)
    with RichScreen().step("training the network") as progress:
        loss = train_network(
            architecture, data, settings, out=out, pretrained=pretrained, device=device, seed=seed, progress=progress, teacher=taught
        )
    emit(
        {"weights": str(out), "architecture": architecture.digest, "loss": loss},
        as_json,
        [f"{out}: architecture {architecture.digest}, loss {loss:.3f}"],
    )

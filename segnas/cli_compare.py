"""`segnas reference`, `segnas compare` and `segnas correlate`: searched networks beside others, and supernets beside what they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segnas.cli_options import ALLOW, CLASSES, DATASET, DEVICE, FILE, JSON, ROOT, SEED, emit, require_suffix
from segnas.errors import UsageError

if TYPE_CHECKING:
    from segnas.recipe import Recipe
    from segnas.target import Target
    from segnas.trainings import Schedule

SCHEDULE = (
    click.option("--size", metavar="HxW", help="Size of the engines' input, HEIGHTxWIDTH.  [default: the recipe's]"),
    DATASET,
    ROOT,
    click.option("--train-split", help="Split that is learned from.  [default: the recipe's]"),
    click.option("--eval-split", help="Split that networks are judged on.  [default: the recipe's]"),
    click.option("--recipe", default="camvid-cpu", show_default=True, help="Recipe whose [train] section is the schedule of all networks."),
    click.option("--steps", type=click.IntRange(1), help="Optimiser steps, in place of the recipe's."),
    DEVICE,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of the one schedule by which all networks are trained and judged."""

    size: str | None
    name: str
    data_root: Path
    train_split: str | None
    eval_split: str | None
    recipe: str
    steps: int | None
    device: str

    def read(self) -> Recipe:
        """The recipe that it is made of."""
        from segnas.recipe import read_recipe

        return read_recipe(self.recipe)

    def target(self) -> Target:
        """What engines are exported for: the recipe's size, or the one that was given, on this machine's CPU."""
        from segnas.runtime.onnxruntime_session import cpu_target
        from segnas.target import parse_size

        wanted = self.read().target
        height, width = (wanted.height, wanted.width) if self.size is None else parse_size(self.size)
        return cpu_target(height, width, threads=wanted.threads)

    def schedule(self, target: Target) -> Schedule:
        """The schedule, for engines on that target."""
        from dataclasses import replace

        from segnas.data import open_dataset
        from segnas.steps import require_device
        from segnas.trainings import Schedule

        require_device(self.device)
        recipe = self.read()
        settings = recipe.train if self.steps is None else replace(recipe.train, steps=self.steps)
        splits = self.train_split or recipe.data.train_split, self.eval_split or recipe.data.eval_split
        learned, judged = (open_dataset(self.name, self.data_root, split) for split in splits)
        return Schedule(settings, learned, judged, target, self.device)


def scheduled(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a schedule; it gets them as one argument, `asked`."""

    @wraps(command)
    def given(**options: Any) -> None:
        asked = Asked(**{field.name: options.pop(field.name) for field in fields(Asked)})
        command(asked=asked, **options)

    for option in reversed(SCHEDULE):
        given = option(given)
    return given


@click.command("references")
@CLASSES
@JSON
def references(classes: int, as_json: bool) -> None:
    """List the published networks: what they cost here, at 1024x2048 or where their paper counted, and what was published.

    Example: segnas references --classes 19
    """
    from segnas.cost import network_cost
    from segnas.search.references import PUBLISHED
    from segnas.search.references import references as all_references

    found, lines = list[dict[str, object]](), list[str]()
    for name, architecture in all_references(classes).items():
        told = PUBLISHED.get(name)
        height, width = (1024, 2048) if told is None else told.size
        cost = network_cost(architecture, height, width)
        found.append({"name": name, "architecture": architecture.digest, "size": [height, width], "parameters": cost.parameters, "macs": cost.macs})
        line = f"{name:<15} {cost.parameters / 1e6:>6.2f} M parameters, {cost.macs / 1e9:>7.2f} G multiply-accumulates at {height}x{width}"
        if told is not None:
            found[-1] |= {"published_parameters": told.parameters, "published_macs": told.macs, "source": told.source}
            line += f"; published {told.parameters / 1e6:.2f} M, {told.macs / 1e9:.2f} G ({told.source})"
        lines.append(line)
    emit(found, as_json, lines)


@click.command("reference")
@click.argument("name")
@CLASSES
@click.option("--out", type=FILE, required=True, help="The architecture, a .json file.")
@JSON
def reference(name: str, classes: int, out: Path, as_json: bool) -> None:
    """Write the published network NAME (`segnas references` lists them) as an architecture.

    Example: segnas reference fast-scnn --classes 11 --out fast-scnn.json
    """
    from segnas.cost import network_cost
    from segnas.files import write_noun
    from segnas.search.references import reference as named_reference

    require_suffix(out, ".json")
    architecture = named_reference(name, classes)
    write_noun(out, architecture)
    cost = network_cost(architecture, 1024, 2048)
    found = {"arch": str(out), "architecture": architecture.digest, "parameters": cost.parameters, "macs_at_1024x2048": cost.macs}
    line = (
        f"{out}: {name}, {architecture.digest}, {cost.parameters / 1e6:.2f} M parameters, {cost.macs / 1e9:.2f} G multiply-accumulates at 1024x2048"
    )
    emit(found, as_json, [line])


@click.command("compare")
@click.option("--searched", type=FILE, multiple=True, help="A run's folder or an architecture file; may be repeated.")
@click.option(
    "--random", "count", type=click.IntRange(0), default=0, show_default=True, help="Random networks of --space, dealt to the searched ones."
)
@click.option("--space", help="Space of the random networks.")
@click.option("--given", multiple=True, help="A reference network by name (fast-scnn) or an architecture file; may be repeated.")
@click.option("--table", type=FILE, help="Latency table of --space on this machine; random networks then have the searched ones' latency.")
@ALLOW
@scheduled
@click.option(
    "--within", type=click.FloatRange(0, 100, min_open=True), default=3.0, show_default=True, help="Percent of latency in which networks pair."
)
@click.option("--out", type=FILE, required=True, help="Folder of the comparison; an interrupted one continues from it.")
@SEED
@JSON
def compare(
    searched: tuple[Path, ...],
    count: int,
    space: str | None,
    given: tuple[str, ...],
    table: Path | None,
    allow: tuple[str, ...],
    asked: Asked,
    within: float,
    out: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Train searched, random and given networks alike, and compare their mIoU at equal measured latency.

    Example: segnas compare --searched runs/a --random 6 --space cas-fast --table t.json --given fast-scnn --data-root streets --out runs/compared
    """
    if not (searched or given or count):
        raise UsageError("nothing was given to compare; give --searched, --random or --given")
    if count and space is None:
        raise UsageError(f"--random {count} was given without --space; give the space whose networks are drawn")
    if table is not None and asked.size is not None:
        raise UsageError("--table and --size were both given; networks are measured at the table's size: leave --size out")
    from segnas import measuring
    from segnas.campaign import RandomDraws, campaign_table, given_candidate, searched_candidate
    from segnas.comparing import compare as compare_all
    from segnas.comparing import comparison_lines, write_comparison
    from segnas.files import plain
    from segnas.latency_tables.store import load_table
    from segnas.screen import RichScreen
    from segnas.search.spaces import space as named_space
    from segnas.trainings import Trainings

    prices = None if table is None else measuring.for_this_machine(load_table(table), allow)
    target = asked.target() if prices is None else prices.target
    schedule = asked.schedule(target)
    classes = len(schedule.train.labels.classes)
    candidates = [*map(searched_candidate, searched), *(given_candidate(text, classes) for text in given)]
    draws = RandomDraws(named_space(space, classes), count) if count and space is not None else None
    for candidate in candidates:
        schedule.require(candidate.architecture)
    if draws is not None and prices is not None:
        measuring.require_entries(draws.space, prices)
    trainings = Trainings(out, schedule)
    if prices is None:
        prices = campaign_table(target, out / "campaign.json", measuring.SERVICES.prepare)
    with RichScreen().step("comparing networks") as progress:
        comparison = compare_all(candidates, draws, prices, trainings, within=within / 100, seed=seed, services=measuring.SERVICES, progress=progress)
    write_comparison(comparison, out)
    emit(plain(comparison), as_json, [*comparison_lines(comparison), f"figures: {out / 'compare.json'}, {out / 'compare.png'}"])


@click.command("correlate")
@click.argument("space")
@click.option("--run", "runs", type=FILE, multiple=True, required=True, help="Folder that `segnas search` left; may be repeated for more seeds.")
@click.option("--networks", type=click.IntRange(4), default=50, show_default=True, help="Networks that are scored and trained.")
@click.option("--batches", type=click.IntRange(1), default=100, show_default=True, help="Training batches on which statistics are estimated anew.")
@click.option("--images", type=click.IntRange(1), help="Images that supernets are scored on.  [default: all of the split]")
@click.option("--compared", type=FILE, help="A compare.json, whose networks of SPACE are studied first, before others are drawn.")
@scheduled
@click.option("--out", type=FILE, required=True, help="Folder of the study; an interrupted one continues, and shares trainings with `compare`.")
@SEED
@JSON
def correlate(
    space: str,
    runs: tuple[Path, ...],
    networks: int,
    batches: int,
    images: int | None,
    compared: Path | None,
    asked: Asked,
    out: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Say how well the supernet of a search of SPACE ranks networks: its scores beside short trainings of each alone.

    Example: segnas correlate cas-fast --run runs/mine --data camvid --data-root "$SEGNAS_CAMVID" --steps 400 --out runs/correlated
    """
    from segnas.correlating import correlate as correlate_all
    from segnas.correlating import study_lines, write_study
    from segnas.files import plain
    from segnas.screen import RichScreen
    from segnas.search.spaces import space as named_space
    from segnas.supernet_scores import Scoring, compared_networks, searched_run
    from segnas.trainings import Trainings

    schedule = asked.schedule(asked.target())
    wanted = named_space(space, len(schedule.train.labels.classes))
    found, scoring = [searched_run(wanted, run) for run in runs], Scoring(batches, asked.read().search.batch, images)
    known = compared_networks(wanted, compared) if compared else ()
    with RichScreen().step("correlating scores with trainings") as progress:
        study = correlate_all(wanted, found, networks, Trainings(out, schedule), scoring, seed=seed, progress=progress, compared=known)
    write_study(study, out)
    emit(plain(study), as_json, [*study_lines(study), f"figures: {out / 'correlate.json'}, {out / 'correlate.png'}"])

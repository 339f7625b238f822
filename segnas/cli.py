"""The command line: each command is a thin shell over a function, imported inside its body so that `--help` loads nothing heavy.

Results go to stdout, progress to stderr.
"""

import json
from pathlib import Path
from typing import Any

import click

from segnas import __version__
from segnas.cli_bench import bench, report
from segnas.cli_build import build, verify
from segnas.cli_compare import compare, correlate, reference, references
from segnas.cli_data import data
from segnas.cli_eval import evaluate, predict
from segnas.cli_export import export
from segnas.cli_new_tables import tables
from segnas.cli_options import ALLOW, CLASSES, DATASET, DEVICE, FILE, JSON, ROOT, SEED, SIZE, THREADS, emit, require_suffix
from segnas.cli_sampling import sample
from segnas.errors import UsageError
from segnas.target import CPU_BACKENDS, GPU_BACKENDS

HALF_PRECISION = ("torch", "aotinductor-cuda", "tensorrt", "tensorrt-rtx")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def segnas() -> None:
    """Search, derive, train, export and measure real-time semantic-segmentation networks under a latency budget.

    The whole path at once: segnas run --recipe quickstart
    """


@segnas.command()
@click.option("--recipe", default="quickstart", show_default=True, help="Name of a recipe (see `segnas recipes`) or path of a .toml file.")
@click.option("--space", help="Search space, in place of the recipe's.")
@click.option("--method", help="How to search, in place of the recipe's (see `segnas methods`).")
@click.option("--data", "name", help="Dataset, in place of the recipe's: cityscapes or camvid.")
@click.option("--data-root", type=FILE, help="Folder of the dataset.")
@click.option("--target", "runtime", help="Runtime to deploy on, in place of the recipe's.")
@click.option("--budget-ms", metavar="MS", help="Latency budget in milliseconds; several with commas share one search: 10,15,25.")
@click.option("--fps", metavar="FPS", help="Frame rate to reach, instead of --budget-ms; several with commas.")
@click.option("--out", type=FILE, help="Folder of the run.  [default: runs/RECIPE]")
@click.option("--resume", is_flag=True, help="Continue the run that lies in the folder.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed, in place of the recipe's.")
@click.option("--table", type=FILE, help="A latency table of this target, instead of profiling.")
@ALLOW
@click.option("--pretrained", type=FILE, help="Starting weights (safetensors): segnas, or MobileNet-v2 of torchvision or timm.")
@DEVICE
@JSON
def run(
    recipe: str,
    space: str | None,
    method: str | None,
    name: str | None,
    data_root: Path | None,
    runtime: str | None,
    budget_ms: str | None,
    fps: str | None,
    out: Path | None,
    resume: bool,
    seed: int | None,
    table: Path | None,
    allow: tuple[str, ...],
    pretrained: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Profile, search, derive, train, export, measure and report, in a row.

    Example: segnas run --recipe camvid-cpu --data camvid --data-root "$SEGNAS_CAMVID" --budget-ms 8
    """
    if budget_ms is not None and fps is not None:
        raise UsageError("--budget-ms and --fps were both given; give one of them")
    from dataclasses import replace

    from segnas.page import text_summary
    from segnas.recipe import read_recipe
    from segnas.run import run_several
    from segnas.run_context import Run, SilentScreen
    from segnas.screen import RichScreen
    from segnas.search.settings import by_method

    wanted = read_recipe(recipe)
    data = wanted.data
    if (name is not None and name != data.name) or data_root is not None:
        data = replace(data, name=name or data.name, root=str(data_root or ""), streets=replace(data.streets, train=0, val=0))
    budget = _with_unit(budget_ms, "ms") or _with_unit(fps, "fps") or wanted.budget
    wanted = replace(wanted, data=data, budget=budget, space=space or wanted.space, seed=wanted.seed if seed is None else seed)
    wanted = replace(wanted, target=replace(wanted.target, runtime=runtime or wanted.target.runtime))
    if method is not None:
        wanted = replace(wanted, search=by_method(wanted.search, method))
    if not data.root and not data.streets.train:
        raise UsageError(f"recipe {wanted.name} needs images: give their folder with --data-root")
    folder = out or Path("runs") / wanted.name
    screen = SilentScreen() if as_json else RichScreen()
    work = Run(wanted, folder, screen, table_file=table, allow=allow, pretrained=pretrained, device=device)
    reports = run_several(work, resume=resume)
    folders = [folder] if len(reports) == 1 else [folder / report.budget.asked for report in reports]
    if as_json:
        found = [json.loads((each / "report.json").read_text(encoding="utf-8")) for each in folders]
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=1))
        return
    for made, each in zip(reports, folders, strict=True):
        click.echo(f"{text_summary(made)}\n\nreport: {each / 'report.html'}")


def _with_unit(numbers: str | None, unit: str) -> str | None:
    """`10,15` as `10ms,15ms`."""
    return None if numbers is None else ",".join(f"{part.strip()}{unit}" for part in numbers.split(","))


@segnas.command()
@JSON
def doctor(as_json: bool) -> None:
    """Say what this machine can do: devices, runtimes, packages, room."""
    from segnas.doctor import examine

    checks = examine()
    if as_json:
        click.echo(json.dumps([{"name": c.name, "found": c.found, "ok": c.ok, "advice": c.advice} for c in checks], indent=1))
        return
    for check in checks:
        click.echo(f"{'ok ' if check.ok else '-- '} {check.name:<22} {check.found}{f'  ({check.advice})' if check.advice else ''}")


@segnas.command()
@JSON
def recipes(as_json: bool) -> None:
    """List the recipes that come with segnas."""
    from segnas.recipe import read_recipe, recipe_names

    rows = [(n, read_recipe(n)) for n in recipe_names()]
    emit(
        {n: {"space": r.space, "budget": r.budget, "data": r.data.name, "size": f"{r.target.height}x{r.target.width}"} for n, r in rows},
        as_json,
        [f"{n:<18} {r.space:<18} {r.data.name:<11} {r.target.height}x{r.target.width:<4}  budget {r.budget}" for n, r in rows],
    )


@segnas.command()
@JSON
def methods(as_json: bool) -> None:
    """List the ways of searching, and in which settings each differs from the defaults."""
    from segnas.search.settings import METHODS

    found = {name: {"summary": method.summary, "settings": dict(method.settings)} for name, method in METHODS.items()}
    lines = [line for name, m in METHODS.items() for line in (f"{name:<12} {m.summary}", *(f"{'':<12} {k} = {v!r}" for k, v in m.settings.items()))]
    emit(found, as_json, lines)


@segnas.command()
@CLASSES
@JSON
def spaces(classes: int, as_json: bool) -> None:
    """List the search spaces: the system that each is of, what that searches, how many decisions and networks there are."""
    from segnas.search.spaces import SPACES
    from segnas.search.systems import system_of
    from segnas.search.trellis import networks

    found, lines = dict[str, Any](), list[str]()
    for name, make in SPACES.items():
        space, system = make(classes), system_of(name)
        count, about = networks(space), "" if system is None else f"; {system.name}: {system.searched}"
        found[name] = {"networks": str(count), "decisions": len(space.decisions), "system": system and system.name}
        lines.append(f"{name:<18} {len(space.decisions):>4} decisions, {count:>9.3g} networks{about}")
    emit(found, as_json, lines)


@segnas.command()
@click.argument("space")
@SIZE
@THREADS
@CLASSES
@click.option("--networks", type=click.IntRange(0), default=10, show_default=True, help="Whole random networks that calibrate the sum.")
@click.option("--out", type=FILE, required=True, help="The table, a .json file; an interrupted profile continues from its journal.")
@click.option(
    "--runtime",
    type=click.Choice([*CPU_BACKENDS, *GPU_BACKENDS]),
    default="onnxruntime",
    show_default=True,
    help="What runs the networks: on this CPU (onnxruntime, aotinductor), or on a CUDA GPU.",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="fp16 on a CUDA GPU only, not by onnxruntime-cuda."
)
@click.option("--strict", is_flag=True, help="Refuse to measure on a machine that is not quiet.")
@SEED
@JSON
def profile(
    space: str,
    size: str,
    threads: int,
    classes: int,
    networks: int,
    out: Path,
    runtime: str,
    precision: str,
    strict: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Measure a latency table of SPACE on this machine.

    Example: segnas profile cas-fast --size 360x480 --classes 11 --out cas-fast.json
    """
    from segnas.measuring import SERVICES, gpu_target, make_table, processor_target
    from segnas.screen import RichScreen
    from segnas.search.spaces import space as named_space
    from segnas.target import parse_size

    require_suffix(out, ".json")
    if runtime not in HALF_PRECISION and precision != "fp32":
        raise UsageError(f"--precision {precision} was given; a table of {runtime} is fp32: add --runtime torch on a machine with a GPU")
    wanted, (height, width) = named_space(space, classes), parse_size(size)
    on_gpu = runtime in GPU_BACKENDS
    target = gpu_target(runtime, height, width, precision=precision) if on_gpu else processor_target(runtime, height, width, threads)
    with RichScreen().step(f"measuring the operations of {space}") as progress:
        journal = out.with_suffix(".jsonl")
        table = make_table(
            wanted, target, journal=journal, out=out, networks=networks, seed=seed, services=SERVICES, progress=progress, strict=strict
        )
    found = {"table": str(out), "entries": len(table.entries), "scale": table.calibration.scale, "relative_sd": table.calibration.relative_sd}
    line = f"{out}: {len(table.entries)} entries, scale {table.calibration.scale:.3f}, residual {table.calibration.relative_sd:.1%}; {target}"
    emit(found, as_json, [line])


@segnas.command()
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


@segnas.command()
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


@segnas.command()
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


@segnas.command()
@click.argument("file", type=FILE)
@click.option("--picture", type=FILE, help="Also draw the network, as a .svg or .png file: of an architecture or of a search.")
@click.option("--classes", type=click.IntRange(2, 256), help="Classes of a search's dataset, where nothing beside it tells them.")
@click.option("--layers", is_flag=True, help="Also every layer of an engine: type, output, parameters, multiply-accumulates.")
@JSON
def show(file: Path, picture: Path | None, classes: int | None, layers: bool, as_json: bool) -> None:
    """Show a file of segnas: an architecture, a table, an engine, a report, a search; or a run's folder: its search, finished or not.

    Example: segnas show runs/mine --picture now.svg
    """
    from segnas.files import write_bytes
    from segnas.show import shown

    if picture is not None:
        require_suffix(picture, ".svg", ".png", option="--picture")
    found = shown(file, classes, layers=layers)
    if picture is not None:
        if found.draw is None:
            raise UsageError(f"--picture was given; {file} is neither an architecture nor a search, which alone are drawn")
        write_bytes(picture, found.draw(picture.suffix.removeprefix(".")))
    emit(found.values, as_json, found.lines)


for command in (export, build, verify, bench, report, evaluate, predict, tables, data, sample, reference, references, compare, correlate):
    segnas.add_command(command)

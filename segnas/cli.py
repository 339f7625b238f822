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
from segnas.cli_options import ALLOW, CLASSES, DEVICE, FILE, JSON, SEED, SIZE, THREADS, emit, require_suffix
from segnas.cli_sampling import sample
from segnas.cli_search import derive, search, train
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

    from segnas.measuring import services_for
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
    work = Run(
        wanted,
        folder,
        screen,
        table_file=table,
        allow=allow,
        pretrained=pretrained,
        device=device,
        services=services_for(wanted.measure.sure, wanted.measure.drift),
    )
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
    """List the search spaces, with their decisions and networks, and the systems that they are of: how each searches, its cost, what is whose."""
    from segnas.search.spaces import SPACES
    from segnas.search.systems import SYSTEMS, system_of
    from segnas.search.trellis import networks

    found, lines = dict[str, Any](), list[str]()
    for name, make in SPACES.items():
        space, system = make(classes), system_of(name)
        count, about = networks(space), "" if system is None else f"; {system.name}: {system.searched}"
        found[name] = {"networks": str(count), "decisions": len(space.decisions), "system": system and system.name}
        if system is not None:
            found[name] |= {"method": system.method, "how": system.how, "search_cost": system.search_cost, "evidence": system.evidence}
        lines.append(f"{name:<18} {len(space.decisions):>4} decisions, {count:>9.3g} networks{about}")
    for system in SYSTEMS:
        lines += ["", f"{system.name} ({system.paper})"]
        lines += [f"  how: {system.how}; --method {system.method}", f"  search: {system.search_cost}", f"  evidence: {system.evidence}"]
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
    from segnas.latency_tables.monotone import table_inversions
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
    inverted, scale, relative_sd = len(table_inversions(table)), table.calibration.scale, table.calibration.relative_sd
    found = {"table": str(out), "entries": len(table.entries), "scale": scale, "relative_sd": relative_sd, "inverted": inverted}
    lines = [f"{out}: {len(table.entries)} entries, scale {scale:.3f}, residual {relative_sd:.1%}; {target}"]
    lines += [f"{inverted} are priced above the same operation on larger features: `segnas tables check {out}`"] * bool(inverted)
    emit(found, as_json, lines)


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


for command in (
    search,
    derive,
    train,
    export,
    build,
    verify,
    bench,
    report,
    evaluate,
    predict,
    tables,
    data,
    sample,
    reference,
    references,
    compare,
    correlate,
):
    segnas.add_command(command)

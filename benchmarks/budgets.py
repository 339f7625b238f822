"""Budgets that are met when measured: one search a space, several budgets, and a fresh measurement of each network afterwards.

    python benchmarks/budgets.py OUT SPACE:METHOD:STEPS... [--data-root FOLDER] [--budgets p10,p35,p65,p90]

Tables are those of this machine in a folder, the committed ones at first. Every step is resumed where OUT has it already. The fresh figure is the
sentinel-normalised mean of five new processes, which were not asked while trimming, and of up to fifteen until it is known to 0.7 %; the raw mean
stands beside it. `--again` takes the fresh figures once more, and keeps the former.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import click

from segnas.arch import Architecture
from segnas.data import open_dataset
from segnas.files import read_json, read_noun, write_text
from segnas.latency_tables.store import load_table
from segnas.measuring import SERVICES, measure_network
from segnas.recipe import read_recipe
from segnas.runtime.processor import device_name
from segnas.search.budget import budget_ms
from segnas.search.settings import by_method, shortened
from segnas.search.spaces import space as named_space
from segnas.steps import derive_network, search_space

TABLES = Path(__file__).parents[1] / "latency_tables" / "tables"
MOST, SURE = 15, 0.007


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("cases", nargs=-1, required=True)
@click.option("--data-root", type=click.Path(path_type=Path), required=True)
@click.option("--budgets", default="p10,p35,p65,p90", show_default=True)
@click.option("--table-suffix", default="256x512-t1.json", show_default=True)
@click.option("--tables", type=click.Path(path_type=Path), default=TABLES, help="Folder of tables of this machine.  [default: the committed ones]")
@click.option("--again", is_flag=True, help="Take the fresh figures once more.")
@click.option("--searched/--all", default=False, help="Only search; time nothing.")
def main(out: Path, cases: tuple[str, ...], data_root: Path, budgets: str, table_suffix: str, tables: Path, again: bool, searched: bool) -> None:
    """Search each SPACE:METHOD:STEPS, derive it for every budget, measure afresh, print the table."""
    rows = []
    for case in cases:
        name, method, steps = case.split(":")
        of_space = [load_table(path) for path in tables.glob(f"{name}-*{table_suffix}")]
        (table,) = [table for table in of_space if table.space == name and table.target.device == device_name()]
        classes = next(e.operation.output.channels for e in table.entries if e.operation.op == "classifier")
        made, folder = named_space(name, classes), out / name
        settings = shortened(by_method(read_recipe("camvid-cpu").search, method), int(steps))
        values = {text: budget_ms(text, made, table, 0) for text in budgets.split(",")}
        if not (folder / "search.json").is_file():
            middle = sorted(values.values())[len(values) // 2]
            dataset = open_dataset("camvid", data_root, "train")

            def tell(done: int, total: int, text: str, name: str = name) -> None:
                if not done % 50:
                    print(f"{name}: {done}/{total} {text}", file=sys.stderr)

            search_space(made, table, dataset, settings, budget=middle, out=folder / "search.json", device="cpu", seed=0, progress=tell)
        if searched:
            continue
        for text, budget in values.items():
            at = folder / text
            if not (at / "arch.json").is_file():
                at.mkdir(parents=True, exist_ok=True)
                derive_network(made, folder / "search.json", table, budget, out=at / "arch.json", seed=0, services=SERVICES, progress=lambda *_: None)
            if again and (at / "fresh.json").is_file():
                (at / "fresh.json").rename(at / f"fresh-{len(list(at.glob('fresh-*.json')))}.json")
            if not (at / "fresh.json").is_file():
                ms, sd, raw = measure_network(read_noun(at / "arch.json", Architecture), table, sure=SURE, most=MOST)
                write_text(at / "fresh.json", json.dumps({"ms": ms, "relative_sd": sd, "raw_ms": raw}))
            found, derived = read_json(at / "fresh.json"), read_json(at / "derive.json")
            rows.append(
                (name, text, budget, derived["measured_ms"], len(derived["measurements"]), found["ms"], found["relative_sd"], found["raw_ms"])
            )
            print(
                f"{name:<12} {text:<4} budget {budget:7.3f} ms, derived at {rows[-1][3]:7.3f} in {rows[-1][4]} measurements, "
                f"fresh {found['ms']:7.3f} ms ({100 * (found['ms'] / budget - 1):+.2f} %, sd {100 * found['relative_sd']:.2f} %), "
                f"raw {found['raw_ms']:.3f} ms",
                flush=True,
            )
    if rows:
        over = [100 * (row[5] / row[2] - 1) for row in rows]
        print(f"mean |deviation| {fmean(map(abs, over)):.2f} %, most over {max(over):+.2f} %")


if __name__ == "__main__":
    main()

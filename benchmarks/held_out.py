"""The table of docs/results.md: every committed table's figures on networks that were never used for fitting.

python benchmarks/held_out.py
"""

from pathlib import Path

from segnas.files import read_json

TABLES = Path(__file__).parents[1] / "latency_tables" / "tables"
SHOWN = {(0, "sum"): "0, none", (10, "scale"): "1, 10 networks", (40, "entries"): "2, 40 networks"}


def main() -> None:
    """Print the rows, the corners and the pooled coverage."""
    covered: dict[str, list[float]] = {}
    corners: list[str] = []
    print("| space | held-out networks | level, fitted on | MAPE % | RMSPE % | hit5 | hit10 | tau | tau in +-10 % | in the 90 % interval |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in sorted(TABLES.glob("*.judged.json")):
        found = read_json(path)
        noise, spread = dict(found["label_noise"]), dict(found["spread"])
        for row in found["rows"]:
            shown, f = SHOWN.get((row["fitted_on"], row["level"])), row["figures"]
            if row["networks"] == "corners" or shown is None:
                continue
            band = "-" if f["band_tau"] is None else f"{f['band_tau']:.2f}"
            if row["fitted_on"]:
                covered.setdefault(shown, []).append(f["covered"])
            print(
                f"| `{found['space']}` | {row['networks']} ({spread[row['networks']]:.0f} %, {noise[row['networks']]:.2f} %) | {shown} "
                f"| {f['mape']:.2f} | {f['rmspe']:.2f} | {f['hit5']:.0f} | {f['hit10']:.0f} | {f['tau']:.3f} | {band} | {f['covered']:.0f} |"
            )
        worst = sorted(found["corners"], key=lambda item: -abs(item[1]))[:3]
        corners.append(f"`{found['space']}`: " + ", ".join(f"{error:+.1f} ({name.removeprefix('all ')})" for name, error in worst))
    print("\nCorners, level 2, the worst three: " + "; ".join(corners) + ".")
    for level, values in covered.items():
        print(f"In the 90 % interval, pooled, {level}: {sum(values) / len(values):.1f} %")


if __name__ == "__main__":
    main()

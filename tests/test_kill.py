"""A run that is killed at any moment and resumed ends in the same network and the same weights."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from random import Random

import pytest

from segnas.files import read_json

SCRIPT = """
    import sys
    from pathlib import Path
    import torch
    import segnas.run
    import segnas.run_steps
    from segnas.latency import Calibration, Entry, LatencyTable
    from segnas.latency_tables.store import save_table
    from segnas.recipe import recipe_from_toml
    from segnas.run_context import Run, SilentScreen
    from segnas.runtime.onnxruntime_session import cpu_target
    from segnas.search.spaces import space as named_space
    from segnas.measuring import Services
    from segnas.benching import bench_engine
    from segnas.timing import Measured

    torch.set_num_threads(1)
    folder, table = Path(sys.argv[1]), Path(sys.argv[2])
    recipe = recipe_from_toml('''
        name = "tiny"
        space = "cas-tiny"
        budget = "p50"
        seed = 3
        data.streets = { height = 64, width = 128, train = 8, val = 4 }
        target = { height = 64, width = 128, threads = 1 }
        search = { steps = 24, warmup = 4, batch = 2, crop = [64, 64], checkpoint_s = 0.0 }
        train = { steps = 40, batch = 2, crop = [64, 128], warmup = 2, checkpoint_s = 0.0 }
    ''', "tiny")

    def measure(architecture, table):
        with folder.with_suffix(".measured").open("a") as stream:
            stream.write(architecture.digest + "\\n")
        return Measured(1.1 * table.estimate(architecture).total_ms * (1 + 0.01 * int(architecture.digest, 16) / 16**12), 0.004)

    if not table.is_file():
        space, target = named_space("cas-tiny", 19), cpu_target(64, 128, threads=1)
        prices = [(o, 0.05 + 2 * int(o.digest, 16) / 16**12) for o in space.all_operations(target) if not o.is_free]
        entries = tuple(Entry(o, "block", ms, 0.0, 1, "made up", "") for o, ms in prices)
        save_table(table, LatencyTable(space.name, target, entries, 0.3, Calibration(0.9)))
    services = Services(None, measure, lambda path, architecture, table, budget: Measured(table.estimate(architecture).total_ms, 0.004))
    segnas.run_steps.bench_engine = lambda path, *, seconds, progress: bench_engine(path, seconds=0.05, progress=progress)
    (folder.parent / "started").touch()
    segnas.run.run(Run(recipe, folder, SilentScreen(), services=services, table_file=table), resume=(folder / "recipe.json").is_file())
"""
KILLS = 10


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    script, table = tmp_path / "tiny.py", tmp_path / "table.json"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def started(folder: Path) -> subprocess.Popen[str]:
        """The run in a process of its own, once its imports are done."""
        (tmp_path / "started").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, str(script), str(folder), str(table)], env=environment, stderr=subprocess.PIPE, text=True)
        while not (tmp_path / "started").is_file() and process.poll() is None:
            time.sleep(0.01)
        return process

    def finish(folder: Path) -> None:
        process = started(folder)
        message = process.communicate(timeout=300)[1]
        assert process.returncode == 0, message

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = started(whole)
    imported = time.monotonic()
    message = process.communicate(timeout=300)[1]
    assert process.returncode == 0, message
    took = time.monotonic() - imported

    rng, kills, last = Random(20), 0, list[str]()
    while kills < KILLS:
        process = started(killed)
        try:
            # each stretch is about a KILLS-th of the run, so that the moments spread over all of it
            message = process.communicate(timeout=rng.uniform(0.3, 1.9) * took / (KILLS + 1))[1]
            assert process.returncode == 0, message
            break
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            last.append(max((p for p in killed.iterdir()), key=lambda p: p.stat().st_mtime_ns).name if killed.is_dir() else "nothing")
            if killed.is_dir():
                (killed / ".weights.safetensors.zzz.partial").write_bytes(b"torn")
    finish(killed)

    assert kills >= KILLS - 2, f"the run ended after {kills} kills, at {last}"
    for name in ("arch.json", "weights.safetensors", "weights.json", "search.json", "budget.json", "derive.json", "model.onnx"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    reports = [read_json(folder / "report.json") for folder in (killed, whole)]
    for part in ("architecture_digest", "budget", "engine", "accuracy", "floors", "curves"):
        assert reports[0][part] == reports[1][part], part
    assert not [path for path in killed.rglob("*") if path.suffix == ".partial"]
    digests = [json.loads(line)["digest"] for line in (killed / "measurements.jsonl").read_text().splitlines()]
    assert len(digests) == len(set(digests))
    assert digests == (whole.with_suffix(".measured")).read_text().split()
    again = (killed.with_suffix(".measured")).read_text().split()
    assert sorted(set(again)) == sorted(digests)
    assert len(again) <= len(digests) + KILLS  # only what a kill interrupted

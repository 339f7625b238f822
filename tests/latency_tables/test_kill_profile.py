"""A profile that is killed at any moment and started again ends in the journal and the table of one that was left alone."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from segnas.latency_tables.profile import GROUP
from segnas.latency_tables.store import load_table

SCRIPT = """
import math, os, random, sys, time
from pathlib import Path
from segnas.latency_tables.probes import designs
from segnas.latency_tables.profile import profile
from segnas.latency_tables.sentinel import sentinel_architecture
from segnas.latency_tables.store import save_table
from segnas.search.spaces import space
from segnas.target import Target

folder, count = Path(sys.argv[1]), int(sys.argv[2])
target = Target("made up", "onnxruntime", "1.0", "fp32", 64, 128, threads=2)
operations = space("cas-tiny", 19).all_operations(target)[:count]
plan = designs(operations, target)
last = {(d.rungs[-1].architecture, d.rungs[-1].target(target)): d.operation for d in plan}
assert len(last) == len(plan)  # so the last probe of each operation is its own
opened = os.open(folder / "opened", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def price(operation):
    return 0.0 if operation.is_free else 0.2 + 3 * int(operation.digest, 16) / 16**12


class Timed:
    # The n-th sample is the same whenever the network is opened, so the records do not depend on what was measured before.
    def __init__(self, architecture, target):
        if (architecture, target) in last:
            os.write(opened, f"{last[architecture, target].digest}\\n".encode())
        self.ms = 0.02 + math.fsum(map(price, architecture.operations(target.height, target.width)))
        self.dice = random.Random(architecture.digest)
        even = architecture == sentinel_architecture() or self.dice.random() < 0.6
        self.noise = 0.0 if even else 0.5  # half of what is measured stays unsure, and is measured again

    def sample(self, runs):
        time.sleep(0.0003)
        return tuple(self.ms * math.exp(self.dice.gauss(0, self.noise)) for _ in range(runs))

    def close(self):
        pass


print("ready", flush=True)
table = profile(
    "cas-tiny", operations, target,
    prepare=Timed, graph_sha256=lambda operation: operation.digest, journal=folder / "t.jsonl", provenance={},
)
save_table(folder / "t.json", table)
"""


@dataclass
class Profile:
    """A profile in a folder of its own, a process at a time."""

    folder: Path
    count: int
    journal: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.journal = self.folder / "t.jsonl"

    def started(self) -> "subprocess.Popen[bytes]":
        """The process, its imports done."""
        words = [sys.executable, "-c", SCRIPT, str(self.folder), str(self.count)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()
        return process

    def lines(self) -> list[bytes]:
        """The journal's whole lines."""
        content = self.journal.read_bytes() if self.journal.is_file() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def records(self) -> int:
        return max(len(self.lines()) - 1, 0)

    def opened(self) -> list[str]:
        """The digest of each operation each time that it was opened."""
        path = self.folder / "opened"
        return path.read_text().split() if path.is_file() else []

    def finish(self) -> float:
        """Let it end; the seconds that it took."""
        process, begun = self.started(), time.monotonic()
        message = process.communicate(timeout=120)[1].decode()
        assert process.returncode == 0, message
        return time.monotonic() - begun

    def kill(self, records: int, delay_s: float) -> None:
        """Start it, and kill it so long after that many records are on the disk."""
        process = self.started()
        while self.records() < records:
            assert process.poll() is None, "the profile ended before it was killed"
            time.sleep(0.003)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the profile ended before it was killed"


@pytest.mark.parametrize(("kills", "count"), [(3, 14), pytest.param(20, 48, marks=pytest.mark.slow)])
def test_kills_leave_no_trace(tmp_path: Path, kills: int, count: int) -> None:
    whole, killed = Profile(tmp_path / "whole", count), Profile(tmp_path / "killed", count)
    took, rng = whole.finish(), Random(kills)
    assert sorted(whole.opened()) == sorted(_digests(whole.lines()))  # so `opened` counts what is measured
    assert any(b'"attempt":1' in line for line in whole.lines())
    group_s = took * GROUP / whole.records()

    lost = 0
    for kill in range(kills):
        before, opened = killed.lines(), len(killed.opened())
        killed.kill(whole.records() * kill // (kills + 4), rng.uniform(0, 0.6) * group_s)
        kept = killed.lines()
        assert kept[: len(before)] == before  # every line that was on the disk is there, as it was
        repeated = Counter(killed.opened()[opened:]) - Counter(_digests(kept[len(before) :]))
        assert repeated.total() <= GROUP
        lost += repeated.total()
        assert not (killed.folder / "t.json").exists()
        if kept and rng.random() < 0.5:  # the kernel had taken half of a line
            line = rng.choice(kept)
            killed.journal.write_bytes(b"".join(kept) + line[: rng.randrange(1, len(line))])
    before, opened = killed.lines(), len(killed.opened())
    killed.finish()
    assert killed.lines()[: len(before)] == before
    assert Counter(killed.opened()[opened:]) == Counter(_digests(killed.lines()[len(before) :]))  # nothing that was recorded is measured again
    assert lost > 0, "no kill came while an operation was measured"

    assert killed.lines()[0] == whole.lines()[0]
    assert sorted(killed.lines()) == sorted(whole.lines())  # the same samples, each once, in another order
    assert (killed.folder / "t.json").read_bytes() == (whole.folder / "t.json").read_bytes()
    table = load_table(killed.folder / "t.json")
    assert len(table.entries) == count


def _digests(lines: list[bytes]) -> list[str]:
    """The operation of each record, as its graph's hash, which is its digest here."""
    records = [json.loads(line) for line in lines]
    return [record["graph_sha256"] for record in records if "graph_sha256" in record]

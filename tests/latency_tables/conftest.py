"""A clock whose true costs are known: each operation has a price, a network takes the sum, and the machine drifts, jitters and stalls."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from segnas.arch import Architecture, Node, Operation
from segnas.kinds import kind
from segnas.target import Target


def true_ms(operation: Operation) -> float:
    """A made-up price: from 4 microseconds to some milliseconds, a function of the operation alone."""
    if operation.is_free:
        return 0.0
    jitter = int(operation.digest, 16) / 16**12
    output = operation.output.channels * operation.output.height * operation.output.width
    weight = {"add": 0.2, "argmax": 2.0, "concat": 0.3, "max_pool": 0.3, "classifier": 0.4, "resize": 0.5}.get(operation.op, 2.0)
    if operation.op == "conv" and operation.kind.integer("kernel") == 1:
        weight = 0.02 * operation.inputs[0].channels
    return 0.004 + weight * (0.5 + jitter) * output / 2e5


@dataclass
class FakeMachine:
    """Counts what is opened and closed, and fails at the sample it is told to."""

    noise: float = 0.0
    drift: float = 0.0
    stalls: float = 0.0
    overhead_ms: float = 0.02
    seed: int = 0
    fail_at: int | None = None
    price: Callable[[Operation], float] = true_ms
    now_ms: float = 0.0
    calls: int = 0
    last: "FakeTimed | None" = None
    opened: int = 0
    closed: int = 0
    given: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def true_ms(self, architecture: Architecture, target: Target) -> float:
        operations = architecture.operations(target.height, target.width)
        total = self.overhead_ms + math.fsum(self.price(o) for o in operations if not o.is_free)
        if target.output_contract == "labels":
            logits = operations[-1].output
            total += self.price(Operation(kind("argmax"), 1, (logits,), logits._replace(channels=1)))
        return total

    def prepare(self, architecture: Architecture, target: Target) -> "FakeTimed":
        self.opened += 1
        return FakeTimed(self, self.true_ms(architecture, target))


@dataclass
class FakeTimed:
    machine: FakeMachine
    cost_ms: float
    is_open: bool = True

    def sample(self, runs: int) -> tuple[float, ...]:
        assert self.is_open
        machine = self.machine
        machine.calls += 1
        if machine.fail_at is not None and machine.calls >= machine.fail_at:
            raise KeyboardInterrupt
        found: list[float] = []
        for _ in range(runs):
            cold = 1.0 if machine.last is self else 1.15
            machine.last = self
            speed = 1 + machine.drift * math.sin(machine.now_ms / 700)
            ms = self.cost_ms * cold * speed * math.exp(machine.dice.gauss(0, machine.noise))
            ms += 5 * self.cost_ms if machine.dice.random() < machine.stalls else 0.0
            machine.now_ms += ms
            found.append(ms)
        machine.given.extend(found)
        return tuple(found)

    def close(self) -> None:
        assert self.is_open
        self.is_open = False
        self.machine.closed += 1


@pytest.fixture(autouse=True)
def no_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine does meanwhile is no part of a test."""
    monkeypatch.setattr("segnas.latency_tables.sentinel.clocks_ms", lambda: (0.0, 0.0))


@pytest.fixture
def target() -> Target:
    return Target("test cpu", "onnxruntime", "1.0", "fp32", 128, 256)


@pytest.fixture
def small_network() -> Callable[..., Architecture]:
    """A network with a search choice at 1/4: stem, two blocks, addition, head."""

    def made(*ops: str, width: int = 32) -> Architecture:
        nodes = [Node(kind("image"), (), 3), Node(kind("stem", width=16), (0,), width, 4)]
        for op in ops:
            nodes.append(Node(kind(op), (len(nodes) - 1,), width))
        nodes.append(Node(kind("add"), (len(nodes) - 1, 1), width))
        nodes.append(Node(kind("conv"), (len(nodes) - 1,), 2 * width, 2))
        nodes.append(Node(kind("resize"), (len(nodes) - 1,), 2 * width, 1, 2))
        nodes.append(Node(kind("concat"), (len(nodes) - 1, len(nodes) - 3), 3 * width))
        nodes.append(Node(kind("classifier"), (len(nodes) - 1,), 19))
        nodes.append(Node(kind("resize"), (len(nodes) - 1,), 19, 1, 4))
        return Architecture(tuple(nodes))

    return made


@pytest.fixture
def machine() -> FakeMachine:
    """A quiet machine."""
    return FakeMachine()


@pytest.fixture
def make_machine() -> type[FakeMachine]:
    return FakeMachine


@pytest.fixture
def gpu_target(target: Target) -> Target:
    return replace(target, runtime="tensorrt", scope="gpu", device="test gpu")

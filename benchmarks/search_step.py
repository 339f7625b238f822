"""A search step's time and memory, space by space: the executor beside a plain loop over the same layers, and what pricing adds.

python -m benchmarks.search_step [SPACE...]     (one line a space; each space in a process of its own)
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from segnas.arch import size_at
from segnas.cost import macs
from segnas.search.expected import ExpectedPrice
from segnas.search.relaxation import Relaxation
from segnas.search.sampling import Sample
from segnas.search.settings import METHODS, SearchSettings
from segnas.search.slots import Link
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.search.supernet import Supernet

BATCH, HEIGHT, WIDTH, CLASSES = 2, 128, 256, 19
ROUNDS = 15
CASES = {
    "cas": "cas",
    "cas-fast": "cas",
    "cas-tiny": "cas",
    "gas": "gas",
    "gas-fast": "gas",
    "dcnas-small": "dcnas",
    "dcnas": "dcnas",
}
"""Each space with the method that it is searched by."""


def plain(supernet: Supernet, sample: Sample, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The same computation as a list of layers that a loop walks through: no presence, no conditions, nothing looked up."""
    made = supernet.space
    live = made.live(sample.active)
    program: list[tuple[int, list[tuple[int, Tensor | None]], list[tuple[torch.nn.Module, Tensor | None]], tuple[int, int]]] = []
    for index, slot in enumerate(made.slots):
        if not index or not live[index]:
            continue
        sources: list[tuple[int, Tensor | None]] = []
        for entry in made.readings(index, sample.active, live):
            gate = sample.weights[entry.decision][entry.option] if isinstance(entry, Link) and entry.decision else None
            sources.append((entry.source if isinstance(entry, Link) else entry, gate))
        layers: list[tuple[torch.nn.Module, Tensor | None]] = []
        if not slot.join:
            for option in sample.active[slot.decision] if slot.decision else (0,):
                if slot.kinds[option].op != "none":
                    weight = sample.weights[slot.decision][option] if slot.decision else None
                    layers.append((supernet.module(index, slot.kinds[option]), weight))
        program.append((index, sources, layers, size_at(made.levels[index], *size)))

    def forward(image: Tensor) -> Tensor:
        features: dict[int, Tensor] = {0: image}
        for index, sources, layers, target in program:
            inputs = [features[s] if gate is None else features[s] * gate for s, gate in sources]
            if not layers:
                total = inputs[0]
                for other in inputs[1:]:
                    total = total + other
            else:
                outputs = [layer(inputs, target) if weight is None else layer(inputs, target) * weight for layer, weight in layers]
                total = outputs[0]
                for other in outputs[1:]:
                    total = total + other
            features[index] = total
        return features[len(made.slots) - 1]

    return forward


def seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def measure(name: str) -> dict[str, float | int | str]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made: Space = named_space(name, CLASSES)
    method = CASES[name]
    settings = SearchSettings(**{**METHODS[method].settings, "method": method, "parts": 1})
    supernet, relaxation = Supernet(made).train(), Relaxation(made, settings, 0)
    image = torch.randn(BATCH, 3, HEIGHT, WIDTH)
    price = ExpectedPrice(made, 256, 512, lambda operation: macs(operation) / 1e6)
    step, loop, pricing = list[float](), list[float](), list[float]()
    for turn in range(ROUNDS + 2):
        logits = relaxation.logits()
        sample = relaxation.sample(logits, 0)
        walked = plain(supernet, sample, (HEIGHT, WIDTH))
        both = [
            lambda sample=sample: supernet(image, sample).pow(2).mean().backward(retain_graph=True),
            lambda walked=walked: walked(image).pow(2).mean().backward(retain_graph=True),
        ]
        times = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which] = seconds(both[which])
        priced = seconds(lambda logits=logits: price(relaxation.probabilities(logits)).backward())
        if turn >= 2:
            step.append(times[0])
            loop.append(times[1])
            pricing.append(priced)
    own = SearchSettings(**{**METHODS[method].settings, "method": method})
    if own.parts > 1:
        partial, again = Supernet(made, parts=own.parts).train(), Relaxation(made, own, 0)
        whole = [seconds(lambda: partial(image, again.sample(again.logits(), 0)).pow(2).mean().backward()) for _ in range(ROUNDS)]
    else:
        whole = step
    return {
        "space": name,
        "method": method,
        "step_ms": 1e3 * median(step),
        "loop_ms": 1e3 * median(loop),
        "overhead": median(s / p for s, p in zip(step, loop, strict=True)) - 1,
        "pricing_ms": 1e3 * median(pricing),
        "price_every": own.price_every,
        "partial_step_ms": 1e3 * median(whole),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        sys.stdout.write(json.dumps(measure(sys.argv[2])) + "\n")
        return
    rows = []
    for name in sys.argv[1:] or CASES:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        r = rows[-1]
        print(
            f"{r['space']:<12} {r['method']:<6} step {r['step_ms']:7.1f} ms, plain loop {r['loop_ms']:7.1f} ms ({100 * r['overhead']:+.1f} %), "
            f"as searched {r['partial_step_ms']:7.1f} ms; pricing {r['pricing_ms']:6.1f} ms in one of {r['price_every']} steps "
            f"({100 * r['pricing_ms'] / r['price_every'] / r['partial_step_ms']:.0f} % of their time), peak {r['peak_mib']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()

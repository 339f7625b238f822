"""Settings of a search and of a training, and the methods of the papers as presets of a search's."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from segnas.errors import UsageError
from segnas.search.controlled_settings import ControllerSettings, StagedSettings

SAMPLERS = ("softmax", "gumbel", "hard", "paths", "clamp", "widths")
OPTIMISERS = ("sgd", "adamw")
DISTILLATIONS = ("none", "kl", "mse")
TERMS = ("lagrangian", "cas", "gas", "fbnet", "mnasnet", "mnasnet-hard", "proxyless", "tunas", "hinge", "fasterseg", "none")
"""The names of `segnas.search.terms`, here so that a recipe can be read without torch."""

CHOICES: dict[str, tuple[object, ...]] = {
    "sampler": SAMPLERS,
    "levels": ("bilevel", "single"),
    "order": (1, 2),
    "guidance": ("none", "adjacent", "chained"),
    "term": TERMS,
    "priced": ("probabilities", "sample", "decoupled"),
    "ranking": ("odds", "strength", "pruned", "expected"),
    "gate": ("softmax", "sigmoid"),
    "estimator": ("share", "ht"),
    "phases": (1, 2),
    "decision_optimiser": ("adam", "sgd"),
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A limit beside the budget: on `time` in ms by another table (a path), on `multiply_accumulates` or on `parameters`, at the deployed size."""

    quantity: Literal["time", "multiply_accumulates", "parameters"]
    limit: float
    table: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.limit < float("inf"):
            raise UsageError(f"a constraint on {self.quantity} was given the limit {self.limit}; a finite number above 0 is needed")
        if (self.quantity == "time") != bool(self.table):
            raise UsageError(f"a constraint on {self.quantity} was given the table {self.table!r}; time needs one, the other quantities take none")


@dataclass(frozen=True, slots=True)
class SampledSettings:
    """A search of the family "sampled": `trials` networks are proposed by `strategy`, and scored; all counts are our choice.

    Where the space has a backbone it is frozen, and its features of `crops` crops are computed once; without pretrained weights it is trained first,
    for `backbone_steps` steps. The best `rerank` networks are then trained whole for `rerank_steps` steps, and ordered by what they reach.
    """

    strategy: str = "local"
    trials: int = 100
    crops: int = 512
    backbone_steps: int = 0
    rerank: int = 10
    rerank_steps: int = 400

    def __post_init__(self) -> None:
        if min(self.trials, self.crops) < 1 or min(self.backbone_steps, self.rerank, self.rerank_steps) < 0:
            raise UsageError(
                f"search.sampled.trials {self.trials}, crops {self.crops}, backbone_steps {self.backbone_steps}, rerank {self.rerank} and "
                f"rerank_steps {self.rerank_steps} were given; the first two are 1 or more, the others 0 or more"
            )


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """One search. A step is one update of the weights and, after `warmup` steps, one of the decisions.

    `levels` bilevel updates them in turn, each on its half of the images (DARTS, algorithm 1), with the gradient of first
    or second `order`; single updates both in one backward pass over all images (GAS). Rates, moments and decay of both
    optimisers are DARTS's (its released code), the decisions' rate is ours: a search here has hundreds of steps, not
    thousands. `crop` is (HEIGHT, WIDTH) and says nothing about latency, which is always the table's, at the size that is
    deployed. `term_weight` 0 takes the term's own. `priced` sample prices what was drawn, probabilities the softmax given
    the rules; every `price_every`-th step, with as many times the strength. `paths` links of each cell are drawn, `parts`
    is how many parts the channels fall into (DCNAS). `regularise` weighs DCNAS's three regularisers; they are off for the
    first third and then rise; so is `sparsity`, the weight of SparseMask's. With 2 `phases` the multi-scale cell is
    searched after the rest is decided (CAS). `decision_optimiser` sgd has the weights' momentum. In the family "sampled"
    `steps`, `batch`, `crop`, `scale` and the weights' optimiser are those of one network's score, and `sampled` is the rest.

    `sampler` widths draws widths and mixes all else; `priced` decoupled is the mean of three prices, in each of which one family of decisions is
    learned, by the `shares` of operations, ways and widths; `sandwich` also trains the weights at the widest and the narrowest, and in the warm-up at
    two random widths; `teacher` searches a second, widest network beside, at no price (all FasterSeg).
    """

    method: str = "cas"
    steps: int = 400
    warmup: int = 100
    batch: int = 8
    crop: tuple[int, int] = (180, 240)
    scale: tuple[float, float] = (0.5, 1.0)
    levels: str = "bilevel"
    order: int = 1
    phases: int = 1
    sampler: str = "softmax"
    guidance: str = "none"
    term: str = "lagrangian"
    term_weight: float = 0.0
    rho: float = 1.0
    multiplier_rate: float = 0.2
    priced: str = "probabilities"
    price_every: int = 1
    shares: tuple[float, float, float] = (0.002, 0.994, 0.004)
    sandwich: bool = False
    teacher: bool = False
    constraints: tuple[Constraint, ...] = ()
    ranking: str = "odds"
    paths: int = 4
    parts: int = 1
    gate: str = "sigmoid"
    estimator: str = "share"
    regularise: tuple[float, float, float] = (0.0, 0.0, 0.0)
    learning_rate: float = 0.05
    final_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    decision_rate: float = 0.01
    decision_decay: float = 1e-3
    decision_optimiser: str = "adam"
    sparsity: float = 0.01
    initial_sd: float = 1e-3
    temperature: float = 1.0
    final_temperature: float = 0.1
    checkpoint_s: float = 30.0
    sampled: SampledSettings = SampledSettings()
    controller: ControllerSettings = field(default_factory=ControllerSettings)
    staged: StagedSettings = field(default_factory=StagedSettings)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"search.method was given {self.method!r}; allowed: {', '.join(METHODS)}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"search.{name} was given {getattr(self, name)!r}; allowed: {', '.join(map(str, allowed))}")
        if self.batch < 2 or not 0 <= self.warmup < self.steps:
            raise UsageError(
                f"search.steps {self.steps}, search.warmup {self.warmup} and search.batch {self.batch} were given; "
                "more steps than warm-up steps and at least 2 images a batch are needed"
            )
        if min(self.paths, self.parts, self.price_every) < 1 or min(*self.regularise, self.sparsity, self.term_weight) < 0:
            raise UsageError(
                f"search.paths {self.paths}, search.parts {self.parts}, search.price_every {self.price_every}, search.regularise {self.regularise}, "
                f"search.sparsity {self.sparsity} and search.term_weight {self.term_weight} were given; the first three are 1 or more, the others 0 "
                "or more"
            )
        if min(self.shares) < 0 or sum(self.shares) <= 0:
            raise UsageError(f"search.shares {self.shares} were given; three numbers of 0 or more are allowed, not all of them 0")
        if self.levels == "single" and (self.order == 2 or self.phases == 2):
            raise UsageError("search.levels single was given with search.order 2 or search.phases 2; both belong to bilevel")


@dataclass(frozen=True, slots=True)
class Method:
    """A paper's way of searching: what it is, and the settings in which it differs from the defaults.

    `warmup` is the share of the steps before the decisions begin to move, where the method has one of its own. `family` says whether decisions move
    along gradients in a supernet (`segnas.search.loop`), or networks are proposed and scored one by one (`segnas.sampled_methods`).
    """

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    warmup: float | None = None
    family: Literal["gradient", "sampled"] = "gradient"


GUMBEL: dict[str, Any] = {
    "levels": "single",
    "sampler": "gumbel",
    "term": "gas",
    "priced": "sample",
    "warmup": 0,
    "final_temperature": 0.03,
    "decision_rate": 1e-3,
    "decision_decay": 1e-4,
    "learning_rate": 0.025,
    "weight_decay": 1e-3,
}
"""GAS's settings but for its guidance (recalled, unverified: rates, temperatures)."""

METHODS: dict[str, Method] = {
    "cas": Method("softmax over all options, weights and decisions in turn (CAS, as reported; DARTS, first order)"),
    "darts": Method(
        "cas with the second-order gradient (DARTS, section 2.3), decoded by strength (section 2.4)", {"order": 2, "ranking": "strength"}
    ),
    "darts-first": Method("darts with the first-order gradient (DARTS, section 2.3, xi = 0)", {"ranking": "strength"}),
    "auto-deeplab": Method(
        "softmax over operations and over the ways on from each state, in turn, the decisions from half of the steps on; decoded by strength, the "
        "path by Viterbi (Auto-DeepLab, sections 3.3 and 4.1)",
        {"ranking": "strength", "decision_rate": 3e-3, "learning_rate": 0.025},
        warmup=0.5,
    ),
    "gas": Method(
        "Gumbel-softmax, guided cells, weights and decisions in one pass, log of the latency (GAS; recalled, unverified: rates, temperatures)",
        {**GUMBEL, "guidance": "adjacent"},
    ),
    "gumbel": Method("gas without its guidance, which needs two or more cells: for any space (ours)", GUMBEL),
    "dcnas": Method(
        "drawn links, partial channels, three regularisers (DCNAS; numbers are our choice, and so is a latency term: the paper has none)",
        {
            "sampler": "paths",
            "paths": 4,
            "parts": 4,
            "regularise": (0.01, 0.01, 0.1),
            "price_every": 8,
            "ranking": "expected",
            "decision_rate": 3e-3,
            "weight_decay": 5e-4,
        },
    ),
    "fasterseg": Method(
        "softmax over operations and incoming ways, drawn widths, in turn; latency a family at a time, at a strength that doubles and halves; a "
        "widest teacher beside (FasterSeg, sections 3.2 to 3.4 and released code)",
        {
            "sampler": "widths",
            "term": "fasterseg",
            "priced": "decoupled",
            "sandwich": True,
            "teacher": True,
            "ranking": "strength",
            "multiplier_rate": 0.1,
            "final_temperature": 1.0,
            "decision_rate": 3e-3,
            "decision_decay": 0.0,
            "learning_rate": 0.02,
            "weight_decay": 5e-4,
        },
        warmup=0.3,
    ),
    "hard": Method("one network that obeys the rules at each step, straight-through weights (ours)", {"sampler": "hard"}),
    "sparsemask": Method(
        "a gate in 0..2 a link, with noise, weights and gates in one pass, sparsity loss; links below 1e-3 are pruned (SparseMask, section 3.3; the "
        "latency term and the sparsity's rise are ours)",
        {
            "levels": "single",
            "sampler": "clamp",
            "ranking": "pruned",
            "warmup": 0,
            "decision_optimiser": "sgd",
            "decision_rate": 0.05,
            "decision_decay": 0.0,
            "learning_rate": 0.05,
            "weight_decay": 4e-5,
        },
    ),
    "dpc": Method(
        "random search, half of it near the best so far, on cached features of a frozen backbone; the best few are re-ranked by whole trainings "
        "(DPC, sections 3.3 and 4.1; the shares and counts are our choice)",
        {"warmup": 0},
        family="sampled",
    ),
    "fast-nas": Method(
        "an LSTM controller with PPO proposes decoders, each trained in two stages with early stopping, distillation, Polyak averages and auxiliary "
        "cells (Fast-NAS; its released code, mended)",
        {"warmup": 0},
        family="sampled",
    ),
}
"""Every method by name; any setting of a recipe goes before the method's."""


def by_method(settings: SearchSettings, name: str) -> SearchSettings:
    """The settings with those in which that method differs from the defaults. UsageError for an unknown one."""
    return replace(settings, **with_method({"method": name, "steps": settings.steps}))


def shortened(settings: SearchSettings, steps: int) -> SearchSettings:
    """The settings for so many steps, with the same share of them as warm-up."""
    return replace(settings, steps=steps, warmup=settings.warmup * steps // settings.steps)


def with_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a recipe gives them, over those of the method that they name. UsageError for an unknown one."""
    name = given.get("method", "cas")
    if name not in METHODS:
        raise UsageError(f"search.method was given {name!r}; allowed: {', '.join(METHODS)}")
    method = METHODS[name]
    settings = {**method.settings, **given}
    steps = settings.get("steps", SearchSettings().steps)
    if method.warmup is not None and "warmup" not in given and isinstance(steps, int):
        settings["warmup"] = int(method.warmup * steps)
    return settings


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training schedule. `crop` is (HEIGHT, WIDTH); steps are optimiser steps; `checkpoint_s` seconds lie between checkpoints.

    `optimiser` is sgd, with `momentum`, or adamw, which learns several times faster in the few epochs that a CPU has time for (docs/results.md).
    `ohem_threshold` 1 counts every pixel. `class_weights` c weighs classes by 1 / ln(c + share of the pixels) as ENet does (its c is 1.02,
    recalled); 0 weighs all alike. With `distil` kl or mse a teacher's logits are learned from too, with `distil_weight`; kl is taken at
    `distil_temperature`. `teacher` says whose, in `segnas run`: the one that the search found beside (`search`), or a reference's name.
    """

    steps: int = 2000
    batch: int = 8
    crop: tuple[int, int] = (360, 480)
    scale: tuple[float, float] = (0.5, 2.0)
    optimiser: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup: int = 50
    auxiliary: float = 0.4
    ohem_threshold: float = 0.7
    class_weights: float = 0.0
    distil: str = "none"
    distil_weight: float = 1.0
    distil_temperature: float = 1.0
    teacher: str = ""
    ema: float = 0.99
    colour: float = 0.4
    checkpoint_s: float = 30.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or self.learning_rate <= 0:
            raise UsageError(
                f"train.steps {self.steps}, train.batch {self.batch} and train.learning_rate {self.learning_rate} were given; "
                "at least 1 step, 2 images "
                "a batch (a normalisation cannot learn from one) and a rate above 0 are needed"
            )
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"train.optimiser {self.optimiser!r} was given; allowed: {', '.join(OPTIMISERS)}")
        if self.distil not in DISTILLATIONS or self.distil_weight < 0 or self.distil_temperature <= 0:
            raise UsageError(
                f"train.distil {self.distil!r}, train.distil_weight {self.distil_weight} and train.distil_temperature {self.distil_temperature} were "
                f"given; allowed: {', '.join(DISTILLATIONS)}, a weight of 0 or more and a temperature above 0"
            )
        if self.class_weights and self.class_weights <= 1:
            raise UsageError(f"train.class_weights {self.class_weights} was given; 0 (off) or a number above 1, such as 1.02, is allowed")

"""The systems of the literature that are rebuilt here: what each searches and how, which of our spaces, methods and networks are its own."""

from dataclasses import dataclass

from segnas.search.spaces import SPACES
from segnas.search.trellis import networks


@dataclass(frozen=True, slots=True)
class System:
    """One system: its name and paper, what it searches and how, and its names here. `evidence` says what is the paper's, its code's, or ours.

    `search_seconds` is what the search of the quick recipe took here, one run (docs/results.md, "The systems, quick"), `published_days` the GPU-days
    that its own search took as published: DARTS's second order by its own paper, the others as DCNAS (table 1) quotes them; None where nobody says.
    """

    name: str
    paper: str
    searched: str
    how: str
    spaces: tuple[str, ...]
    method: str
    published: tuple[str, ...]
    evidence: str
    page: str
    search_seconds: int
    published_days: float | None

    @property
    def recipe(self) -> str:
        """The recipe of its whole run at the paper's scale; with `-quick` behind it, that of minutes on a CPU."""
        return self.page.removesuffix(".md")

    @property
    def search_cost(self) -> str:
        """What a search takes: that of the quick recipe here, and the paper's as published."""
        published = "not published" if self.published_days is None else f"published {self.published_days:g} GPU-days"
        return f"here {self.search_seconds} s on 2 cores ({self.recipe}-quick); {published}"


SYSTEMS: tuple[System, ...] = (
    System(
        "CAS",
        "Zhang et al., CVPR 2019",
        "normal, reduction and multi-scale cells, shared by type",
        "softmax mixture, weights and decisions in turn, a cost in the loss",
        ("cas", "cas-fast", "cas-tiny"),
        "cas",
        (),
        "abstract read, details recalled; stems, widths, heads ours",
        "cas.md",
        40,
        None,
    ),
    System(
        "GAS",
        "Lin et al., CVPR 2020",
        "every cell on its own, guided by the one before",
        "Gumbel-softmax, one pass for weights and decisions, log of the latency",
        ("gas", "gas-fast", "gas-fast-shared"),
        "gas",
        (),
        "abstract and a caption read, details recalled; stems, widths, heads ours",
        "gas.md",
        31,
        6.7,
    ),
    System(
        "DCNAS",
        "Zhang et al., CVPR 2021",
        "links between all cells of a grid of four scales, and their operators",
        "drawn links, partial channels, regularisers",
        ("dcnas", "dcnas-small"),
        "dcnas",
        (),
        "abstract and a figure read, details reported or recalled; estimator, weights, end ours",
        "dcnas.md",
        38,
        5.6,
    ),
    System(
        "DARTS",
        "Liu, Simonyan and Yang, ICLR 2019",
        "a normal and a reduction cell, stacked",
        "softmax mixture, in turn, second order; two strongest edges a node",
        ("darts", "darts-tiny"),
        "darts",
        ("darts-v1", "darts-v2"),
        "paper and code read; segmentation network ours",
        "darts.md",
        154,
        4,
    ),
    System(
        "Auto-DeepLab",
        "Liu et al., CVPR 2019",
        "one cell, and a path through four scales",
        "softmax mixture at both, in turn, decisions from half of the steps on; Viterbi",
        ("auto-deeplab", "auto-deeplab-small"),
        "auto-deeplab",
        ("auto-deeplab-s", "auto-deeplab-m", "auto-deeplab-l"),
        "paper and the authors' network code read; the search's gates, stem and head ours",
        "auto-deeplab.md",
        61,
        3,
    ),
    System(
        "FasterSeg",
        "Chen et al., ICLR 2020",
        "operations and widths of cells, and two branches through three scales",
        "softmax mixture of operations and incoming ways, drawn widths, in turn; latency a family at a time; teacher beside student",
        ("fasterseg", "fasterseg-small"),
        "fasterseg",
        ("fasterseg-student",),
        "paper's figures and the authors' code read; merges, gates and one output ours",
        "fasterseg.md",
        38,
        2,
    ),
    System(
        "SparseMask",
        "Wu, Zhang and Huang, ICCV 2019",
        "which of 90 links of a dense decoder on MobileNet-v2 are there",
        "a noisy gate a link, one pass with the weights, sparsity loss, pruning",
        ("sparsemask", "sparsemask-small"),
        "sparsemask",
        ("sparsemask-released",),
        "paper and code read; order of activations, pruning under a budget ours",
        "sparsemask.md",
        14,
        4.2,
    ),
    System(
        "DPC",
        "Chen et al., NeurIPS 2018",
        "a recursive cell of five branches of 81 operations on a frozen backbone",
        "random and local proposals, scored on cached features; the best few re-ranked",
        ("dpc", "dpc-small"),
        "dpc",
        ("dpc-mobilenet",),
        "paper and the authors' cell code read; the search was not released: its shares and counts ours",
        "dpc.md",
        107,
        2600,
    ),
    System(
        "Fast-NAS",
        "Nekrasov et al., CVPR 2019",
        "connections and one cell of a decoder on MobileNet-v2",
        "LSTM controller with PPO; two-stage scores with early stopping, distillation, Polyak averages, auxiliary cells",
        ("fast-nas", "fast-nas-small"),
        "fast-nas",
        ("fast-nas-0", "fast-nas-1", "fast-nas-2"),
        "code read, paper's figures recalled; teacher, normalisation of the classifier, latency ours",
        "fast-nas.md",
        61,
        8,
    ),
)


def system_of(space: str) -> System | None:
    """The system that a space belongs to; None for one of the user's own."""
    return next((system for system in SYSTEMS if space in system.spaces), None)


def sizes(classes: int = 19) -> dict[str, int]:
    """Number of networks of every registered space."""
    return {name: networks(make(classes)) for name, make in SPACES.items()}


def table() -> list[str]:
    """The systems as the rows of a Markdown table, with the number of networks of each space."""
    counts = sizes()
    rows = ["| system | what is searched | how | spaces, networks | method | published networks | search cost | evidence |", "|" + "---|" * 8]
    for system in SYSTEMS:
        held = ", ".join(f"`{name}` {counts[name]:.3g}" for name in system.spaces)
        published = ", ".join(f"`{name}`" for name in system.published) or "none"
        title = f"[{system.name}]({system.page}) ({system.paper})"
        rows.append(
            f"| {title} | {system.searched} | {system.how} | {held} | `{system.method}` | {published} | {system.search_cost} | {system.evidence} |"
        )
    return rows

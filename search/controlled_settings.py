"""Settings of Fast-NAS's way of searching: its controller, and the two stages in which a candidate is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from segnas.errors import UsageError


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """The controller of Fast-NAS and its PPO (rates, sizes: the released code). `factor` multiplies rewards by a function of the latency.

    `conditioned` feeds the option that was drawn to the next decision, where the released controller feeds its own output.
    """

    hidden: int = 100
    layers: int = 2
    conditioned: bool = False
    learning_rate: float = 1e-4
    clip: float = 0.1
    baseline_decay: float = 0.95
    gradient_clip: float = 2.0
    buffer: int = 100
    epochs: int = 1
    factor: Literal["none", "mnasnet", "mnasnet-hard"] = "none"

    def __post_init__(self) -> None:
        require_least("search.controller", self, {"hidden": 1, "layers": 1, "buffer": 1, "epochs": 1})
        require_shares("search.controller", self, ("baseline_decay",))
        require_positive("search.controller", self, ("learning_rate", "clip", "gradient_clip"))


@dataclass(frozen=True, slots=True)
class StagedSettings:
    """Fast-NAS's two-stage training of one candidate (rates, weights, decays: the released code); `search.crop`, `scale` and `batch` are stage 0's.

    Stage 0 goes `epochs` times through `search.sampled.crops` cached crops; the backbone is frozen, a teacher's logits are matched with the weight
    `distil`, each block has an auxiliary cell of weight `auxiliary`. Where the reward passes the gate, all is trained for `steps` steps on crops of
    `crop`. `gate_decay` and `tolerance` are the gate's; `gate` off lets everything pass. At most `images` held-out images make a reward,
    and `statistics` batches estimate statistics anew (ours).
    """

    epochs: int = 5
    rate: float = 3e-3
    decay: float = 1e-5
    distil: float = 0.3
    polyak: float = 0.9
    auxiliary: float = 0.15
    clip: float = 3.0
    gate: bool = True
    gate_decay: float = 0.99
    tolerance: float = 0.9
    steps: int = 300
    batch: int = 32
    crop: tuple[int, int] = (350, 350)
    scale: tuple[float, float] = (0.7, 1.4)
    encoder_rate: float = 1e-3
    momentum: float = 0.9
    final_polyak: float = 0.99
    images: int = 500
    statistics: int = 20

    def __post_init__(self) -> None:
        require_least("search.staged", self, {"epochs": 1, "steps": 0, "batch": 2, "images": 1, "statistics": 1})
        require_least("search.staged", self, {"distil": 0, "auxiliary": 0, "decay": 0})
        require_shares("search.staged", self, ("polyak", "final_polyak", "gate_decay", "momentum"))
        require_positive("search.staged", self, ("rate", "encoder_rate", "clip"))
        if not 0 <= self.tolerance <= 1:
            raise UsageError(f"search.staged.tolerance {self.tolerance} was given; a share from 0 to 1 is needed")


def require_least(where: str, settings: object, least: Mapping[str, int]) -> None:
    """UsageError where a setting is less than it may be."""
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise UsageError(f"{where}.{name} {getattr(settings, name)} was given; at least {number} is needed")


def require_shares(where: str, settings: object, names: Sequence[str]) -> None:
    """UsageError where a setting is no number from 0 to below 1."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"{where}.{name} {getattr(settings, name)} was given; 0 or more and below 1 is needed")


def require_positive(where: str, settings: object, names: Sequence[str]) -> None:
    """UsageError where a setting is not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise UsageError(f"{where}.{name} {getattr(settings, name)} was given; more than 0 is needed")

"""Methods of the family "sampled" inside `segnas run`: each proposes networks, scores them one by one, and leaves them ranked in `search.json`."""

import math
from pathlib import Path

from segnas.data import Dataset
from segnas.errors import UsageError, VerificationError
from segnas.files import plain, require_writable
from segnas.latency import MISMATCH_KEY, LatencyTable
from segnas.measuring import require_budget, require_entries
from segnas.search.budget import USUAL_SD, bounds, budget_texts
from segnas.search.cached_search import cached_search, require_backbone
from segnas.search.controlled_search import controlled_search
from segnas.search.frozen import require_steps
from segnas.search.ranked import SampledMethod, Sought, Surroundings
from segnas.search.settings import SearchSettings, TrainSettings
from segnas.search.space import Space
from segnas.steps import require_device, write_curves

SAMPLED: dict[str, SampledMethod] = {"dpc": cached_search, "fast-nas": controlled_search}
"""Every method of the family "sampled" by name (`segnas.search.settings.METHODS` has the same names)."""


def require_sampled(settings: SearchSettings, budget: str, *, has_weights: bool) -> None:
    """UsageError for a recipe that a sampled search cannot follow: asked before anything is spent."""
    if len(budget_texts(budget)) > 1:
        raise UsageError(f"budgets {budget!r} were given; method {settings.method!r} proposes networks within one budget: start a run for each")
    if settings.constraints:
        raise UsageError(f"search.constraints was given; method {settings.method!r} knows the budget alone")
    if SAMPLED[settings.method] is cached_search:
        require_backbone(settings.sampled, has_weights=has_weights)
    elif not has_weights:
        require_steps(settings.sampled.backbone_steps)


def lowered(budget: float, drift: float, *, least: float) -> float:
    """The budget in ms that networks are proposed within, so that a measured one is far enough under `budget`: lower by twice the noise of a usual
    mean and of the machine's `drift`, but never below the `least` that a network takes. The budget itself without drift.
    """
    return max(bounds(math.hypot(USUAL_SD, drift))[1] * budget, least) if drift else budget


def search_by_sampling(
    space: Space,
    table: LatencyTable,
    dataset: Dataset,
    settings: SearchSettings,
    train: TrainSettings,
    *,
    budget: float,
    drift: float,
    out: Path,
    around: Surroundings,
) -> None:
    """Search under a budget in ms, on a machine of that `drift`, and write the candidates in their order, the best one's options as probabilities,
    curves and notes.

    VerificationError where no network could be scored.
    """
    require_device(around.device)
    require_entries(space, table)
    least, _ = require_budget(space, table, budget)
    require_writable(out)
    aimed = lowered(budget, drift, least=least)
    ranked = SAMPLED[settings.method](Sought(space, table, dataset, settings, train, aimed), around)
    if not ranked.candidates:
        raise VerificationError(f"method {settings.method!r} scored no network of {space.name!r} within {aimed:.3f} ms; give it more trials")
    best = ranked.candidates[0].genotype
    write_curves(
        out,
        ranked.curves,
        space=space.name,
        classes=space.classes,
        method=settings.method,
        ranking="odds",
        probabilities={name: [float(option == best[name]) for option in range(size)] for name, size in space.decisions.items()},
        candidates=[plain(candidate) for candidate in ranked.candidates],
        notes=list(ranked.notes),
        **ranked.found,
        **{MISMATCH_KEY: table.allowed_mismatch},
    )

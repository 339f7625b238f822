"""Each verb as a function from files and nouns to files and nouns: the place where the four parts are joined."""

import json
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from segnas.arch import Architecture, canonical_json
from segnas.data import Dataset
from segnas.errors import IncompatibleError, InputError, RequirementError, SegnasError, UsageError
from segnas.files import plain, read_json, require_writable, unplain, write_noun, write_text
from segnas.latency import MISMATCH_KEY, Estimate, LatencyTable
from segnas.latency_tables.store import load_table
from segnas.measurements import MeasurementJournal
from segnas.measuring import Progress, Services, require_budget, require_entries
from segnas.metrics import floors
from segnas.network import Network
from segnas.report import Curve, Floor, Report, Share
from segnas.search.budget import Measurement, Met, meet_budget
from segnas.search.checkpoint import load_tensors, save_tensors
from segnas.search.derive import PRUNED, Ranking, scores_of
from segnas.search.frozen import supernet_start
from segnas.search.gates import separation
from segnas.search.loop import search
from segnas.search.pretrained import pretrained_weights
from segnas.search.prices import prices
from segnas.search.ranked import Candidate, meet_ranked
from segnas.search.settings import CHOICES, METHODS, Constraint, SearchSettings, TrainSettings
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.search.teacher import teacher_genotype
from segnas.search.trace import TRACE_NAME, read_trace
from segnas.search.train import train
from segnas.timing import Measured

Bytes = NDArray[np.uint8]
TEACHER_NAME = "teacher.arch.json"
"""Beside a derived network: that of the teacher which was searched beside it."""


def search_space(
    space: Space,
    table: LatencyTable,
    dataset: Dataset,
    settings: SearchSettings,
    *,
    budget: float,
    out: Path,
    device: str,
    seed: int,
    progress: Progress,
    pretrained: Path | None = None,
) -> None:
    """Search under a budget in ms and write the probabilities of every decision and the curves; the checkpoint lies beside `out`.

    Where the space has a backbone, the supernet's begins with `pretrained`.
    """
    if METHODS[settings.method].family == "sampled":
        raise UsageError(f"method {settings.method!r} samples networks; give `segnas sample {space.name}`, or a recipe of it to `segnas run`")
    require_device(device)
    require_entries(space, table)
    require_budget(space, table, budget)
    require_writable(out)
    checkpoint = out.with_suffix(".checkpoint.safetensors")
    tables = constraint_tables(space, settings.constraints)
    found = search(
        space,
        table,
        dataset,
        settings,
        budget_ms=budget,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        tables=tables,
        trace=out.with_name(TRACE_NAME),
        start=None if pretrained is None else supernet_start(space, pretrained),
    )
    learned = {name: list(p) for name, p in found.probabilities.items()}
    kept = [plain(constraint) for constraint in settings.constraints]
    beside = {} if found.teacher is None else {"teacher": {name: list(p) for name, p in found.teacher.items()}}
    write_curves(
        out,
        found.curves,
        space=space.name,
        classes=space.classes,
        method=settings.method,
        ranking=settings.ranking,
        constraints=kept,
        probabilities=learned,
        notes=search_notes(space, settings, found.probabilities),
        **beside,
        **{MISMATCH_KEY: table.allowed_mismatch},
    )


def search_notes(space: Space, settings: SearchSettings, probabilities: Mapping[str, Sequence[float]]) -> list[str]:
    """What a search by gradients has to say of itself: where links are pruned, whether the gates fell apart."""
    apart = separation(space, probabilities, PRUNED) if settings.ranking == "pruned" else None
    return [f"gates {apart}"] if apart else []


def constraint_tables(space: Space, constraints: Iterable[Constraint]) -> dict[str, LatencyTable]:
    """The tables that constraints on time name, by path; each must price the whole space."""
    tables = {constraint.table: load_table(Path(constraint.table)) for constraint in constraints if constraint.table}
    for table in tables.values():
        require_entries(space, table)
    return tables


def derive_network(
    space: Space, searched: Path, table: LatencyTable, budget: float, *, out: Path, seed: int, services: Services, progress: Progress
) -> Met:
    """The network that meets the budget when measured, as `out`; what was measured lies beside it in `derive.json` and `measurements.jsonl`.

    Where `searched` ranks candidates, it is the first of them that does; else the most probable one. Where a teacher was searched beside, its network
    is written to `teacher.arch.json`, whatever it costs.
    """
    scores, constraints, ranked = read_scores(searched, space), read_constraints(searched), read_candidates(searched)
    require_entries(space, table)
    require_writable(out)
    journal = MeasurementJournal(out.with_name("measurements.jsonl"), table.prices_digest)

    def measure(architecture: Architecture) -> Measured:
        return journal.measure(architecture, lambda network: services.measure(network, table))

    def told(found: Measurement) -> None:
        progress(0, 0, f"{found.measured_ms:.3f} ms")

    if ranked:
        met = meet_ranked(space, ranked, table, budget, measure=measure, on_measured=told)
    else:
        limits = prices(space, table, budget, constraints, constraint_tables(space, constraints))
        met = meet_budget(space, scores, table, limits, measure=measure, seed=seed, on_measured=told)
    estimate = met.table.estimate(met.derived.architecture)
    taught = read_teacher(searched, space)
    if taught is not None:
        write_noun(out.with_name(TEACHER_NAME), space.decode(taught).architecture)
    found = {
        "genotype": met.genotype,
        "measured_ms": met.measured_ms,
        "calibration": plain(met.table.calibration),
        "predicted_ms": estimate.total_ms,
        "low_ms": estimate.low_ms,
        "high_ms": estimate.high_ms,
        "measurements": [plain(m) for m in met.measurements],
        MISMATCH_KEY: table.allowed_mismatch,
        **({} if taught is None else {"teacher": taught}),
    }
    write_text(out.with_name("derive.json"), json.dumps(found, indent=1) + "\n")
    write_noun(out, met.derived.architecture)
    return met


def read_scores(searched: Path, space: Space) -> dict[str, tuple[float, ...]]:
    """What each option is worth when a network is decoded: log-probabilities, ranked as the search ranked them."""
    ranking = read_json(searched).get("ranking", "odds")
    if ranking not in CHOICES["ranking"]:
        raise InputError(f"{searched}: ranking is {ranking!r}; allowed: {', '.join(map(str, CHOICES['ranking']))}")
    return scores_of(space, read_probabilities(searched, space), cast(Ranking, ranking))


def read_probabilities(searched: Path, space: Space) -> dict[str, tuple[float, ...]]:
    """Probabilities of every decision's options, as a search of that space left them."""
    return _probabilities(searched, space, "probabilities")


def read_teacher(searched: Path, space: Space) -> dict[str, int] | None:
    """The genotype of the teacher that was searched beside; None where none was."""
    if "teacher" not in read_json(searched):
        return None
    return teacher_genotype(space, _probabilities(searched, space, "teacher"))


def _probabilities(searched: Path, space: Space, key: str) -> dict[str, tuple[float, ...]]:
    content = read_json(searched)
    if content.get("space") != space.name:
        raise IncompatibleError(f"{searched} is a search of {content.get('space')!r}; {space.name!r} is asked for: give its --space")
    found = cast(dict[str, tuple[float, ...]], unplain(dict, content.get(key), f"{searched}: {key}"))
    found = {name: cast(tuple[float, ...], unplain(tuple[float, ...], p, f"{searched}: {key}.{name}")) for name, p in found.items()}
    if {name: len(p) for name, p in found.items()} != space.decisions:
        raise InputError(f"{searched} holds other decisions than those of {space.name!r}; run `segnas search {space.name}` again")
    return found


def read_constraints(searched: Path) -> tuple[Constraint, ...]:
    """The limits beside the budget that a search was held to."""
    return unplain(tuple[Constraint, ...], read_json(searched).get("constraints", []), f"{searched}: constraints")


def read_candidates(searched: Path) -> tuple[Candidate, ...]:
    """The networks that a sampled search scored, the best first; none of a search by gradients."""
    return unplain(tuple[Candidate, ...], read_json(searched).get("candidates", []), f"{searched}: candidates")


def read_notes(searched: Path) -> tuple[str, ...]:
    """What a search has to say of itself, one sentence each."""
    return unplain(tuple[str, ...], read_json(searched).get("notes", []), f"{searched}: notes") if searched.is_file() else ()


def require_device(device: str) -> None:
    """UsageError for a device that does not exist in segnas, RequirementError for one that this machine lacks."""
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdecimal())):
        raise UsageError(f"device {device!r} was given; allowed: cpu, cuda, cuda:INDEX")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise RequirementError(
            f"device {device!r} was given; {torch.cuda.device_count()} CUDA devices can be used here: give --device cpu, or see `segnas doctor`"
        )


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], architecture: Architecture, pretraining: str) -> None:
    """The weights with the digest of their architecture and what they were pretrained on."""
    save_tensors(path, weights, {"architecture": architecture.digest, "pretraining": pretraining})


def load_network(architecture: Architecture, path: Path) -> tuple[Network, str]:
    """The network with these weights, in evaluation mode, and what it was pretrained on; IncompatibleError for weights of another architecture."""
    tensors, state = load_tensors(path)
    if state.get("architecture") != architecture.digest:
        raise IncompatibleError(
            f"{path} holds weights of architecture {state.get('architecture')}; {architecture.digest} is asked for: train it with `segnas train`"
        )
    network = Network(architecture)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{path} does not hold the weights that it says it holds: {reason}; train them again with `segnas train`") from None
    return network.eval(), str(state.get("pretraining", "none"))


def train_network(
    architecture: Architecture,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    out: Path,
    pretrained: Path | None,
    device: str,
    seed: int,
    progress: Progress,
    teacher: Network | None = None,
) -> float:
    """Train and write `out`, with the checkpoint beside it; under torchrun the processes share each batch and the first one writes. The last loss.

    A trained `teacher` is learned from too, where the settings distil.
    """
    require_device(device)
    require_writable(out)
    start, pretraining = (None, "none") if pretrained is None else pretrained_weights(architecture, pretrained)
    checkpoint = out.with_suffix(".checkpoint.safetensors")
    with process_group() as rank:
        trained = train(
            architecture, dataset, settings, seed=seed, checkpoint=checkpoint, device=device, start=start, progress=progress, teacher=teacher
        )
    if rank == 0:
        write_curves(out.with_suffix(".json"), trained.curves)
        save_weights(out, trained.weights, architecture, pretraining)  # last: its presence says that both are there
    return trained.curves[0].values[-1]


@contextmanager
def process_group() -> Generator[int]:
    """Join the processes that torchrun started, if it did; the rank of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()


def dataset_floors(train: Dataset, evaluation: Dataset) -> tuple[Floor, ...]:
    """Mean IoU of the two predictors that never look at an image."""

    def truths(dataset: Dataset) -> Iterable[Bytes]:
        return (dataset.read(i)[1] for i in range(len(dataset)))

    result = floors(evaluation.labels, truths(train), truths(evaluation))
    return (Floor("majority class", result.majority.miou or 0.0), Floor("most common class at each position", result.position.miou or 0.0))


def shares(estimate: Estimate) -> tuple[Share, ...]:
    """Where the predicted milliseconds go: operations of the same kind together, the dearest first."""
    sums: dict[str, tuple[int, float]] = {}
    for operation, ms in estimate.per_operation:
        if ms > 0:
            name = f"{operation.kind}{f'/{operation.stride}' if operation.stride > 1 else ''} at {operation.output.height}x{operation.output.width}"
            count, total = sums.get(name, (0, 0.0))
            sums[name] = (count + 1, total + ms)
    return tuple(Share(name, count, total) for name, (count, total) in sorted(sums.items(), key=lambda item: -item[1][1]))


def write_curves(path: Path, curves: Sequence[Curve], **extra: object) -> None:
    """Curves and whatever else a step found, as JSON."""
    write_text(path, canonical_json({"curves": plain(tuple(curves)), **extra}) + "\n")


def read_curves(path: Path) -> tuple[Curve, ...]:
    """The curves that `write_curves` wrote."""
    return unplain(tuple[Curve, ...], read_json(path).get("curves"), "curves")


def write_report(report: Report, folder: Path, pictures: Sequence[tuple[str, bytes]], estimate: Estimate) -> None:
    """`report.json` and `report.html`; where the folder holds the search's trace, it is drawn, and where that is no good, the page says so."""
    from segnas.page import page

    drawings, notes = search_drawings(folder)
    notes = [*notes, *read_notes(folder / "search.json")]
    write_text(folder / "report.html", page(report, pictures=pictures, prices=dict(estimate.per_operation), notes=notes, search=drawings))
    write_noun(folder / "report.json", report)


def search_drawings(folder: Path) -> tuple[list[tuple[str, bytes]], list[str]]:
    """The search of a run, drawn from its trace as (description, SVG), and what to say where it cannot be drawn; nothing without a trace."""
    from segnas.search_figures import decisions_picture, option_names, progress_picture

    path = folder / TRACE_NAME
    if not path.is_file():
        return [], []
    try:
        history = read_trace(path)
        space = named_space(history.header.space, history.header.classes)
        history.header.require(space.decisions)
        found = cast(dict[str, object], unplain(dict, read_json(folder / "derive.json").get("genotype"), "derive.json: genotype"))
        genotype = {name: cast(int, unplain(int, option, f"derive.json: genotype.{name}")) for name, option in found.items()}
        space.check(genotype)
        decisions = decisions_picture(history, genotype, option_names(space))
    except SegnasError as error:
        return [], [f"The search is not drawn from its trace: {error}."]
    return [("how the search came to its decisions", decisions), ("losses and latency over the search", progress_picture(history))], []

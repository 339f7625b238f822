"""Fast-NAS's way of searching, for any space whose networks have its blocks: an LSTM controller with PPO, and two-stage scores."""

from collections.abc import Sequence
from dataclasses import replace

import optuna

from segnas.data import Dataset, halves
from segnas.errors import UsageError
from segnas.network import Network
from segnas.report import Curve
from segnas.search.checkpoint import load_tensors, plain_settings, require_identity, save_tensors
from segnas.search.controlled import ControlledProposer
from segnas.search.frozen import backbone_architecture, frozen_backbone, network_of_backbone
from segnas.search.pretrained import pretrained_weights
from segnas.search.ranked import Candidate, Ranked, Sought, Surroundings, in_order
from segnas.search.sampled import sample
from segnas.search.settings import SearchSettings, TrainSettings
from segnas.search.space import Space
from segnas.search.spaces.fastnas import fast_nas, fast_nas_proxy, order
from segnas.search.staged_score import TwoStageScore
from segnas.search.study import open_storage
from segnas.search.train import train
from segnas.search.trials import SampledTrial

CONTROLLER_NAME = "controller.safetensors"


def controlled_search(sought: Sought, around: Surroundings) -> Ranked:
    """The method "fast-nas": decoders that the controller writes, those over the budget refused, the others scored. Resumes from `study.db`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    score = two_stage_score(
        sought.space, sought.dataset, sought.search, sought.train, (sought.table.target.height, sought.table.target.width), around
    )
    proposer = controlled_proposer(sought.space, sought.search, sought.budget_ms, around)
    with open_storage(f"sqlite:///{around.folder / 'study.db'}") as storage:
        found = sample(
            sought.space,
            sought.table,
            proposer,
            score.scoring,
            budget_ms=sought.budget_ms,
            trials=sought.search.sampled.trials,
            storage=storage,
            name="search",
            seed=around.seed,
            progress=around.progress,
        )
    truncated = sum(trial.truncated for trial in found.trials)
    notes = [f"the backbone was frozen in stage 0: {score.backbone.origin}"]
    if score.settings.staged.gate:
        notes.append(f"{truncated} of {sum(t.score is not None for t in found.trials)} candidates were stopped after stage 0")
    return Ranked(candidates(found.trials), curves(found.trials), tuple(notes), {"trials": found.counts, "schedule": score.schedule})


def controlled_proposer(space: Space, settings: SearchSettings, budget_ms: float, around: Surroundings) -> ControlledProposer:
    """The controller for a space, its state in the folder; connections are written before the cell, as Fast-NAS does."""
    return ControlledProposer(
        space, settings.controller, order=order(space), budget_ms=budget_ms, seed=around.seed, file=around.folder / CONTROLLER_NAME
    )


def two_stage_score(
    space: Space, dataset: Dataset, settings: SearchSettings, train_settings: TrainSettings, size: tuple[int, int], around: Surroundings
) -> TwoStageScore:
    """The score of a space's genotypes: with the proxy networks of the paper in place of its final ones, which are twice as dear."""
    trained = proxy_of(space)
    learning = replace(dataset, samples=tuple(dataset.samples[index] for index in halves(len(dataset), around.seed)[0]))
    steps = settings.sampled.backbone_steps
    backbone = frozen_backbone(
        trained,
        learning,
        train_settings,
        steps=steps,
        pretrained=around.pretrained,
        folder=around.folder,
        seed=around.seed,
        device=around.device,
        progress=around.progress,
    )
    teacher = teacher_of(trained, learning, train_settings, steps, around) if settings.staged.distil else None
    return TwoStageScore(trained, backbone, teacher, dataset, settings, size, around.seed, around.device)


def teacher_of(space: Space, learning: Dataset, settings: TrainSettings, steps: int, around: Surroundings) -> Network:
    """The backbone with ASPP-lite, trained for so many steps from the pretrained weights if there are any: ours; the paper's is a RefineNet-152.

    Without pretrained weights it is the network in which the backbone was trained. UsageError for no step.
    """
    if steps < 1:
        raise UsageError(
            "search.staged.distil asks for a teacher, and search.sampled.backbone_steps is 0: give steps to train one, or search.staged.distil = 0"
        )
    if around.pretrained is None:
        return network_of_backbone(space, around.folder)
    architecture, file = backbone_architecture(space), around.folder / "teacher.safetensors"
    settings = replace(settings, steps=steps, warmup=min(settings.warmup, steps // 4))
    start, origin = pretrained_weights(architecture, around.pretrained)
    identity = {"architecture": architecture.digest, "seed": around.seed, "origin": origin, "settings": plain_settings(settings)}
    if not file.is_file():
        checkpoint = around.folder / "teacher.checkpoint.safetensors"
        made = train(
            architecture,
            learning,
            settings,
            seed=around.seed,
            checkpoint=checkpoint,
            device=around.device,
            start=start,
            progress=around.progress,
        )
        save_tensors(file, made.weights, {"identity": identity})
        checkpoint.unlink(missing_ok=True)
    require_identity(file, load_tensors(file)[1], identity, "teacher")
    network = Network(architecture)
    network.load_state_dict(load_tensors(file)[0])
    return network.eval()


def proxy_of(space: Space) -> Space:
    """The space whose networks are trained in a search of `space`: of the same decisions, narrower where the paper's are."""
    return fast_nas_proxy(space.classes) if space == fast_nas(space.classes) else space


def candidates(trials: Sequence[SampledTrial]) -> tuple[Candidate, ...]:
    """Each genotype once: those that ended stage 1 by its reward, then the truncated ones by that of stage 0."""
    found: dict[tuple[tuple[str, int], ...], Candidate] = {}
    for trial in trials:
        if trial.score is not None and trial.genotype is not None:
            key = tuple(sorted(trial.genotype.items()))
            first = trial.notes.get("stage0", trial.score)
            found.setdefault(key, Candidate(trial.genotype, trial.price_ms or 0.0, first, None if trial.truncated else trial.score))
    return in_order(list(found.values()))


def curves(trials: Sequence[SampledTrial]) -> tuple[Curve, ...]:
    """The rewards of both stages over the number of trials."""
    complete = [t for t in trials if t.score is not None]
    first = [(step, t.notes["stage0"]) for step, t in enumerate(complete, 1) if "stage0" in t.notes]
    last = [(step, t.score or 0.0) for step, t in enumerate(complete, 1) if not t.truncated]
    named = (("search/reward of stage 0", first), ("search/reward", last))
    return tuple(Curve(name, tuple(s for s, _ in points), tuple(round(v, 6) for _, v in points)) for name, points in named if points)

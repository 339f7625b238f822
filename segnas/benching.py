"""Benching: how fast and how right an engine on disk is, of the same bytes; where runtime, export and the tables' sentinel are joined."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.benchmark import NOT_STATED, Benchmark
from segnas.data import Dataset, engine_input, read_image
from segnas.errors import IncompatibleError, SegnasError
from segnas.evaluating import evaluate_engine
from segnas.export.manifest import read_engine, versions
from segnas.measuring import Progress
from segnas.network import weights_digest
from segnas.repeated import repeated
from segnas.report import Accuracy, Engine, Timing
from segnas.runtime.bench import Yardstick, bench
from segnas.runtime.evaluate import evaluate
from segnas.runtime.here import Difference, facts_here, target_here
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.processor import available_cores
from segnas.runtime.rigor import Rigor, rigor_named
from segnas.runtime.scopes import Decode, PipelineSession, require_scope, scopes_of
from segnas.runtime.session import Session, open_session
from segnas.runtime.trtexec import Query, computed
from segnas.runtime.versus import Versus, versus
from segnas.search.checkpoint import load_tensors
from segnas.streets import street
from segnas.target import CPU_BACKENDS, Target
from segnas.yardstick import Sentinel

Bytes = NDArray[np.uint8]

PICTURES = 16
"""How many pictures of a data set scope `pipeline` takes in turn; without one, `DRAWN` streets."""
DRAWN = 4
"""Streets that are drawn where no data set is given; as JPEG of quality 95, in memory."""
QUERIES = 100  # of a runtime that tells the parts of a query
RETARGETED = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt")
"""What an ONNX file can be timed on, whatever it was exported for."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be timed: how long, in which scopes (all that the target has, where none is given), on which runtime (the engine's own), which
    fields may differ from the machine that the engine was made for, whether the machine's own speed is measured beside it, and in how many processes
    scope `end_to_end` is, if it is.
    """

    rigor: str = "standard"
    seconds: float | None = None
    scopes: tuple[str, ...] = ()
    runtime: str = ""
    allowed: tuple[str, ...] = ()
    sentinel: bool = True
    processes: int = 1


def bench_engine(path: Path, *, seconds: float, progress: Progress | None = None) -> tuple[Engine, Timing]:
    """Time the engine as shipped, in the scope of its manifest's target; IncompatibleError, naming the fields, on another machine than that."""
    engine, artefact, target, _ = _engine_here(path, Wish())
    with closing(open_session(artefact, target, sha256=engine.sha256)) as session:
        return engine, bench(session, scope=target.scope, min_seconds=seconds, progress=_shares(progress, 0, 1, target.scope))


def bench_run(
    path: Path, wish: Wish, *, pictures: Dataset | None = None, queries: list[Query] | None = None, progress: Progress | None = None
) -> Benchmark:
    """Time the engine in every scope that is wanted, each in a session of its own.

    Scope `pipeline` takes pictures of that data set, or drawn ones. `queries` is given those of the first scope, one by one. IncompatibleError on
    another machine than the engine was made for, InputError for a scope that it does not have, RequirementError where this machine lacks the runtime.
    """
    engine, artefact, target, mismatches = _engine_here(path, wish)
    scopes = _scopes(target, wish)
    timings: list[Timing] = []
    with ExitStack() as stack:
        yardstick = stack.enter_context(closing(Sentinel(target))) if wish.sentinel and target.backend in CPU_BACKENDS else None
        for index, scope in enumerate(scopes):
            with closing(_opened(artefact, engine, replace(target, scope=scope), pictures)) as session:
                raw = list[tuple[float, float]]()
                told = _shares(progress, index, len(scopes), scope)
                timings.append(_timed(session, wish, None if yardstick is None else yardstick.yardstick(), raw, told))
                if wish.processes > 1 and yardstick is not None and scope == "end_to_end":
                    timings[-1] = repeated(timings[-1], _words(path, wish, scope), wish.processes, told)
                if queries is not None and not index:
                    tells: Callable[[int], Sequence[Query]] | None = getattr(session, "queries", None)
                    queries += computed(raw) if tells is None else tells(QUERIES)
    return Benchmark(
        name=_name(path, artefact),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=engine,
        target=replace(target, scope=scopes[0]),
        timings=tuple(timings),
        accuracy=None,
        pretraining=pretraining_of(engine, artefact),
        mismatches=mismatches,
        versions=versions(),
    )


def compare_engines(first: Path, second: Path, wish: Wish, *, pictures: Dataset | None = None, progress: Progress | None = None) -> Versus:
    """Both engines in turns within this process, in the first scope that is wanted; errors as of `bench_run`."""
    opens: list[Callable[[], Session]] = []
    rigor = rigor_named(wish.rigor, "")
    for path in (first, second):
        engine, artefact, target, _ = _engine_here(path, wish)
        scope = _scopes(target, wish)[0]
        opens.append(partial(_opened, artefact, engine, replace(target, scope=scope), pictures))
    told = _shares(progress, 0, 1, "in turns")
    return versus(opens[0], opens[1], pairs=rigor.pairs, openings=rigor.openings, block_ms=rigor.block_ms, progress=told)


def evaluate_run(path: Path, wish: Wish, dataset: Dataset, *, progress: Progress | None = None) -> Accuracy:
    """Mean IoU of the engine on every image of the data set, on the very target that `bench_run` times."""
    engine, artefact, target, _ = _engine_here(path, wish)
    if target == engine.target:
        return evaluate_engine(path, dataset, progress=progress)
    if engine.classes != tuple(label.name for label in dataset.labels.classes):
        raise IncompatibleError(f"{path} has classes {', '.join(engine.classes)}; those of {dataset.name} are others")
    with closing(open_session(artefact, target, sha256=engine.sha256)) as session:
        return evaluate(session, dataset, progress=None if progress is None else lambda done, total: progress(done, total, ""))


def pretraining_of(engine: Engine, artefact: Path) -> str:
    """What the weights beside the engine say of their pretraining, if they are those that it was made from."""
    path = artefact.with_name("weights.safetensors")
    if not path.is_file():
        return NOT_STATED
    try:
        tensors, state = load_tensors(path)
    except SegnasError:
        return NOT_STATED
    return str(state.get("pretraining", NOT_STATED)) if weights_digest(tensors) == engine.weights_sha256 else NOT_STATED


def _engine_here(path: Path, wish: Wish) -> tuple[Engine, Path, Target, tuple[Difference, ...]]:
    """The engine, its artefact, its target as it is here, and what differs from the machine that it was made for."""
    engine, artefact = read_engine(path)
    if wish.runtime and wish.runtime != engine.target.backend:
        return engine, artefact, _retargeted(engine, wish.runtime), ()
    target, mismatches = target_here(engine.target, facts_here(engine.target), wish.allowed)
    return engine, artefact, target, mismatches


def _retargeted(engine: Engine, runtime: str) -> Target:
    """This machine by another runtime of ONNX files; the engine's own size, precision and contracts stay."""
    if engine.kind != "onnx" or runtime not in RETARGETED:
        raise IncompatibleError(
            f"runtime {runtime!r} was asked for; an engine of kind {engine.kind!r} for {engine.target.backend!r} runs on "
            f"{', '.join(RETARGETED) if engine.kind == 'onnx' else 'that alone'}: export or build one for it"
        )
    old = engine.target
    if runtime == "onnxruntime":
        return cpu_target(
            old.height,
            old.width,
            min(old.threads, available_cores()),
            precision=old.precision,
            input_contract=old.input_contract,
            output_contract=old.output_contract,
            batch=old.batch,
        )
    from segnas.runtime.onnxruntime_cuda_target import CUDA, onnxruntime_cuda_target

    if runtime == "onnxruntime-tensorrt":
        from segnas.runtime.onnxruntime_tensorrt_session import TENSORRT as provider
    else:
        provider = CUDA
    return onnxruntime_cuda_target(
        old.height,
        old.width,
        precision=old.precision,
        input_contract=old.input_contract,
        output_contract=old.output_contract,
        batch=old.batch,
        provider=provider,
    )


def _scopes(target: Target, wish: Wish) -> tuple[str, ...]:
    """What is timed: as asked, or the target's own scope first and then the others that it has."""
    if wish.scopes:
        for scope in wish.scopes:
            require_scope(scope, target)
            rigor_named(wish.rigor, scope)
        return tuple(dict.fromkeys(wish.scopes))
    found = [target.scope, *(scope for scope in scopes_of(target) if scope != target.scope)]
    if wish.rigor == "mlperf":
        return ("end_to_end",)
    return tuple(scope for scope in found if scope != "pipeline" or target.batch == 1)


def _opened(artefact: Path, engine: Engine, target: Target, pictures: Dataset | None) -> Session:
    if target.scope != "pipeline":
        return open_session(artefact, target, sha256=engine.sha256)
    session = open_session(artefact, replace(target, scope="end_to_end"), sha256=engine.sha256)
    try:
        return PipelineSession(session, *_pictures(target, pictures))
    except BaseException:
        session.close()
        raise


def _pictures(target: Target, dataset: Dataset | None) -> tuple[Sequence[Decode], str]:
    """What decodes the pictures, and what they are."""
    if dataset is not None:
        chosen = [dataset.samples[round(i * (len(dataset) - 1) / max(1, PICTURES - 1))] for i in range(min(PICTURES, len(dataset)))]
        kind = chosen[0].image.suffix.removeprefix(".").upper()
        return [partial(read_image, sample.image) for sample in chosen], f"{kind} files of {dataset.name} {dataset.split}"
    height, width = min(max(target.height, 32), 2048), min(max(target.width, 64), 4096)
    drawn = [cv2.imencode(".jpg", street(seed, height, width)[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for seed in range(DRAWN)]
    return [partial(_decoded, picture) for picture in drawn], f"drawn streets of {height}x{width}, JPEG in memory"


def _decoded(picture: NDArray[np.uint8]) -> Bytes:
    decoded = cv2.imdecode(picture, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _timed(session: Session, wish: Wish, yardstick: Yardstick | None, raw: list[tuple[float, float]], told: Callable[[float], None] | None) -> Timing:
    rigor: Rigor = rigor_named(wish.rigor, session.target.scope)
    timing = bench(
        session,
        scope=session.target.scope,
        min_seconds=rigor.min_seconds if wish.seconds is None else wish.seconds,
        min_runs=rigor.min_runs,
        warmup_seconds=rigor.warmup_seconds,
        yardstick=yardstick,
        raw=raw,
        progress=told,
    )
    shown = rigor.name if wish.seconds is None else f"{rigor.name}, but {wish.seconds:g} s"
    conditions = dict(timing.conditions) | {"rigor": shown} | ({} if yardstick else {"sentinel": _no_sentinel(session.target, wish)})
    return replace(timing, conditions=tuple(sorted(conditions.items())))


def _words(path: Path, wish: Wish, scope: str) -> list[str]:
    """What `segnas bench` is told, to time that scope in the same way."""
    words = [str(path), "--scope", scope, "--rigor", wish.rigor, *(word for field in wish.allowed for word in ("--allow-mismatch", field))]
    words += [] if wish.seconds is None else ["--seconds", f"{wish.seconds}"]
    return [*words, "--runtime", wish.runtime] if wish.runtime else words


def _no_sentinel(target: Target, wish: Wish) -> str:
    return "none: not wanted" if target.backend in CPU_BACKENDS and not wish.sentinel else "none: on a GPU the clocks are watched instead"


def _shares(progress: Progress | None, index: int, count: int, what: str) -> Callable[[float], None] | None:
    """`progress` in per cent, where `index` of `count` parts are over."""
    return None if progress is None else lambda share: progress(round(100 * (index + share) / count), 100, what)


def _name(path: Path, artefact: Path) -> str:
    folder = artefact.resolve().parent.name
    return f"{folder}/{artefact.name}" if folder else path.name


def examples(session: Session, dataset: Dataset, count: int) -> list[tuple[str, Bytes, Bytes, Bytes]]:
    """Some images with their names, and ground truth and prediction in colours: (name, image, truth, prediction), spread over the dataset."""
    chosen = [round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(min(count, len(dataset)))]
    results: list[tuple[str, Bytes, Bytes, Bytes]] = []
    for index in chosen:
        image, ids = dataset.read(index)
        target = session.target
        labels = session.run(engine_input(image, target.input_contract, target.height, target.width))[0].astype(np.uint8)
        enlarged = np.asarray(cv2.resize(labels, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST), np.uint8)
        truth = dataset.labels.colours(dataset.labels.train_ids(ids))
        results.append((dataset.samples[index].name, image, truth, dataset.labels.colours(enlarged)))
    return results

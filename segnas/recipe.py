"""Recipes: a whole run as a TOML file, perhaps over another one, read into dataclasses; an unknown key is an error that lists the known ones."""

import dataclasses
import math
import operator
import tomllib
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from segnas.apart import SURE
from segnas.errors import InputError, SegnasError, UsageError
from segnas.files import plain, unplain
from segnas.latency_tables.profile import REPEATS, ROUNDS
from segnas.search.settings import SearchSettings, TrainSettings, with_method

T = TypeVar("T")

LEAST: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("seed", "data.streets.seed", "data.streets.train", "data.streets.val", "profile.networks", "profile.repeats", "train.warmup")),
    (1, ("search.crop", "train.crop", "profile.rounds")),
)
"""The least value of whole numbers that the settings do not check themselves."""

ABOVE_ZERO = ("search.scale", "search.learning_rate", "measure.sure", "search.temperature", "search.final_temperature", "train.scale")

MOST_DRIFT = 0.1
MOST_RETRAIN = 3
"""Our choice: networks are then aimed at 80 % of the budget and less."""


@dataclass(frozen=True, slots=True)
class StreetSettings:
    """Synthetic streets to be made before the run, in the genuine Cityscapes layout; sizes in pixels, counts in images."""

    height: int = 128
    width: int = 256
    train: int = 0
    val: int = 0
    seed: int = 0
    variety: Literal["full", "core"] = "full"


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the images are. `root` may be empty where `streets` are made: they then lie in the run's folder."""

    name: str = "cityscapes"
    root: str = ""
    train_split: str = "train"
    eval_split: str = "val"
    streets: StreetSettings = StreetSettings()


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What the network is deployed on; `height` and `width` are the engine's input."""

    runtime: str = "onnxruntime"
    height: int = 512
    width: int = 1024
    threads: int = 2


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How the latency table is measured: each entry in at most so many `rounds`, and up to `repeats` times again where it stayed unsure; `networks`
    whole random networks calibrate it.
    """

    networks: int = 10
    rounds: int = ROUNDS
    repeats: int = REPEATS


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How whole networks are measured while the budget is met, and the engine at the end: until the relative standard deviation of the mean is
    `sure`, or ten processes were asked; at the end up to twenty, until the mean is two of its standard deviations from the budget.

    `drift` is a relative standard deviation by which such means differ from one moment of the machine to another, which no reading of one moment
    knows: networks are aimed twice as far below the budget, so that it is less often missed when the engine is measured after its training.

    `retrain` is how often a run whose engine misses its budget all the same derives and trains another network, aimed lower (`segnas.missed`).
    """

    sure: float = SURE
    drift: float = 0.0
    retrain: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.retrain <= MOST_RETRAIN:
            raise UsageError(f"measure.retrain is {self.retrain}; allowed are 0 to {MOST_RETRAIN}: choose a higher budget")
        if not 0 <= self.drift <= MOST_DRIFT:
            raise UsageError(f"measure.drift is {self.drift}; allowed are 0 to {MOST_DRIFT}: a machine that drifts by more meets no budget")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a run depends on."""

    name: str
    space: str
    budget: str
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with segnas, without those that only others extend (their names begin with `_`)."""
    return tuple(name for name in _packaged() if not name.startswith("_"))


def read_recipe(name: str) -> Recipe:
    """A recipe that comes with segnas, by name, or one of the user's, by path (it ends in .toml)."""
    return recipe_from_toml(_text(name), name)


def recipe_from_toml(text: str, name: str) -> Recipe:
    """The recipe that the text holds, over the one that its `extends` names: a recipe that comes with segnas, or a path from the folder of `name`.

    `name` is what error messages call it. Tables are merged key by key, anything else is replaced; what is inherited counts as given, also before
    the settings of `search.method`.
    """
    table = _extended(text, name, ())
    if isinstance(table.get("search"), dict):
        table["search"] = plain(with_method(table["search"]))
    recipe = _filled(Recipe, table, f"recipe {name}", "")
    _require_ranges(recipe, f"recipe {name}")
    return recipe


def flattened(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Every setting as (dotted name, value), in order: the recipe as a report shows it."""

    def walk(value: object, prefix: str) -> typing.Iterator[tuple[str, str]]:
        for item in dataclasses.fields(cast(Any, value)):
            inner = getattr(value, item.name)
            if dataclasses.is_dataclass(inner):
                yield from walk(inner, f"{prefix}{item.name}.")
            else:
                yield f"{prefix}{item.name}", "x".join(map(str, cast(tuple[object, ...], inner))) if isinstance(inner, tuple) else str(inner)

    return tuple(walk(recipe, ""))


def _packaged() -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in resources.files("segnas").joinpath("recipes").iterdir() if p.name.endswith(".toml"))


def _text(name: str) -> str:
    if name.endswith(".toml"):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {name} cannot be read: {error}") from None
    if name not in _packaged():
        raise UsageError(f"recipe {name!r} was given; known recipes: {', '.join(recipe_names())}, or the path of a .toml file")
    return resources.files("segnas").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")


def _extended(text: str, name: str, above: tuple[str, ...]) -> dict[str, Any]:
    """The table that a recipe holds, over that of the recipe which it extends; `above` are those that extend this one."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name} is no TOML: {error}") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise UsageError(f"recipe {name} extends {base!r}; the name of a recipe or the path of a .toml file is needed")
    found = str((Path(name).parent / base).resolve()) if base.endswith(".toml") else base
    if found in (*above, name):
        raise UsageError(f"recipe {name} extends {base!r}, which extends {name} itself; take `extends` out of one of them")
    try:
        under = _text(found)
    except SegnasError as error:
        raise type(error)(f"recipe {name} extends {base!r}: {error}") from None
    return _merged(_extended(under, found, (*above, name)), table)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on `under`, table by table."""
    both = {key: _merged(under[key], value) for key, value in over.items() if isinstance(value, dict) and isinstance(under.get(key), dict)}
    return {**under, **over, **both}


def _require_ranges(recipe: Recipe, where: str) -> None:
    for key, text in flattened(recipe):
        value = operator.attrgetter(key)(recipe)
        numbers = [n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int | float)]
        if not all(map(math.isfinite, numbers)):
            raise UsageError(f"{where}: {key} is {text}; a finite number is needed")
        least = next((least for least, keys in LEAST if key in keys), None)
        if least is not None and min(numbers) < least:
            raise UsageError(f"{where}: {key} is {text}; at least {least} is needed")
        if key in ABOVE_ZERO and min(numbers) <= 0:
            raise UsageError(f"{where}: {key} is {text}; more than 0 is needed")


def _filled(type_: type[T], given: dict[str, Any], where: str, prefix: str) -> T:
    fields = {f.name: f for f in dataclasses.fields(cast(Any, type_))}
    hints = typing.get_type_hints(type_)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise UsageError(f"{where} has an unknown option {prefix}{key!s}; known here: {', '.join(prefix + known for known in fields)}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values[key] = _filled(cast(type[Any], hints[key]), cast(dict[str, Any], value), where, f"{prefix}{key}.")
        else:
            values[key] = _value(hints[key], value, f"{where}: {prefix}{key}")
    required = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    absent = [name for name in required if name not in values]
    if absent:
        raise UsageError(f"{where} lacks {', '.join(prefix + name for name in absent)}")
    return type_(**values)


def _value(hint: Any, value: object, where: str) -> Any:
    try:
        return unplain(hint, value, where)
    except InputError as error:
        raise UsageError(str(error)) from None

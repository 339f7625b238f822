"""Recipes: those that come with segnas, what is refused and in which words, and that a report shows every setting."""

import dataclasses
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.data import LAYOUTS
from segnas.errors import InputError, UsageError
from segnas.recipe import Recipe, flattened, read_recipe, recipe_from_toml, recipe_names
from segnas.search.settings import METHODS
from segnas.target import RUNTIMES

LEAST = 'name = "n"\nspace = "cas-tiny"\nbudget = "8ms"\n'


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting that is not itself a group, by dotted name."""
    if not dataclasses.is_dataclass(value):
        return {prefix[:-1]: value}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        found |= leaves(getattr(value, field.name), f"{prefix}{field.name}.")
    return found


def given_in(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= (
            given_in(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": tuple(value) if isinstance(value, list) else value}
        )
    return found


def test_there_are_recipes() -> None:
    assert {"quickstart", "cityscapes", "camvid-cpu"} <= set(recipe_names())
    assert list(recipe_names()) == sorted(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_along_is_read_as_it_is_written(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    text = resources.files("segnas").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")
    settings, written = leaves(recipe), given_in({key: value for key, value in tomllib.loads(text).items() if key != "extends"})
    assert {key: settings[key] for key in written} == written
    assert recipe.data.name in LAYOUTS
    assert recipe.target.runtime in RUNTIMES
    assert min(recipe.target.height, recipe.target.width, *recipe.search.crop, *recipe.train.crop) >= 2**5
    assert recipe.search.warmup < recipe.search.steps
    assert recipe.train.warmup < recipe.train.steps


def test_a_recipe_by_path(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LEAST)
    assert read_recipe(str(path)) == Recipe("n", "cas-tiny", "8ms")
    with pytest.raises(InputError, match=r"other\.toml cannot be read: .*No such file"):
        read_recipe(str(tmp_path / "other.toml"))
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match=r"mine\.toml cannot be read: "):
        read_recipe(str(path))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe("quikstart")
    assert str(caught.value) == f"recipe 'quikstart' was given; known recipes: {', '.join(recipe_names())}, or the path of a .toml file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            LEAST + "sed = 1",
            "recipe r has an unknown option sed; known here: name, space, budget, seed, data, target, profile, measure,",
        ),
        (
            LEAST + "[target]\nsize = 1",
            "recipe r has an unknown option target.size; known here: target.runtime, target.height, target.width, target.threads",
        ),
        (LEAST + "[data.streets]\nwith = 1", "unknown option data.streets.with; known here: data.streets.height, data.streets.width"),
        (LEAST + "[datta]\nname = 'x'", "unknown option datta; known here: name, "),
        (LEAST + "seed = '1'", "recipe r: seed is '1'; int is needed"),
        (LEAST + "seed = 1.5", "recipe r: seed is 1.5; int is needed"),
        (LEAST + "seed = true", "recipe r: seed is True; int is needed"),
        (LEAST + "data = 3", "recipe r: data is int; an object is needed"),
        (LEAST + "[train]\ncrop = [1]", "recipe r: train.crop has 1 items; 2 are needed"),
        (LEAST + "[train]\ncrop = 360", "recipe r: train.crop is 360; a list is needed"),
        (LEAST + "[train]\ncrop = [1, 'a']", "recipe r: train.crop[1] is 'a'; int is needed"),
        (LEAST + "[train]\nlearning_rate = 'fast'", "recipe r: train.learning_rate is 'fast'; float is needed"),
        (LEAST + "[target]\nruntime = 3", "recipe r: target.runtime is 3; str is needed"),
        ("space = 's'", "recipe r lacks name, budget"),
        ("", "recipe r lacks name, space, budget"),
    ],
)
def test_what_is_no_recipe_is_a_usage_error(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from_toml(text, "r")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_is_no_toml_is_refused_with_the_place() -> None:
    with pytest.raises(InputError, match=r"recipe r is no TOML: .*line 2"):
        recipe_from_toml("name = 'n'\nspace 'x'\n", "r")


def test_whole_numbers_serve_where_fractions_are_allowed() -> None:
    recipe = recipe_from_toml(LEAST + "[train]\nlearning_rate = 1\nscale = [1, 2]", "r")
    assert (recipe.train.learning_rate, recipe.train.scale) == (1.0, (1.0, 2.0))
    assert type(recipe.train.learning_rate) is float


def test_a_group_that_is_given_in_part_keeps_its_other_defaults() -> None:
    recipe = recipe_from_toml(LEAST + "[data.streets]\ntrain = 5", "r")
    default = Recipe("n", "cas-tiny", "8ms")
    assert recipe == dataclasses.replace(default, data=dataclasses.replace(default.data, streets=dataclasses.replace(default.data.streets, train=5)))


@pytest.mark.parametrize("name", recipe_names())
def test_a_report_shows_every_setting(name: str) -> None:
    recipe = read_recipe(name)
    expected = {key: "x".join(map(str, value)) if isinstance(value, tuple) else str(value) for key, value in leaves(recipe).items()}
    assert dict(flattened(recipe)) == expected
    assert [key for key, _ in flattened(recipe)] == list(expected)
    assert {"seed", "data.streets.train", "target.height", "profile.networks", "search.warmup", "train.crop"} <= set(expected)


@pytest.mark.parametrize("drift", ["-0.01", "0.11", "nan", "inf"])
def test_a_drift_that_would_meet_no_budget_is_refused(drift: str) -> None:
    with pytest.raises(UsageError, match=r"measure.drift is .*; allowed are 0 to 0.1"):
        recipe_from_toml(LEAST + f"[measure]\ndrift = {drift}", "r")


@pytest.mark.parametrize("retrain", [-1, 4])
def test_training_again_without_end_is_refused(retrain: int) -> None:
    with pytest.raises(UsageError, match=f"measure.retrain is {retrain}; allowed are 0 to 3"):
        recipe_from_toml(LEAST + f"[measure]\nretrain = {retrain}", "r")


# ---- recipes that extend others

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 9),
    "data.root": st.sampled_from(["", "here", "there"]),
    "data.streets.train": st.integers(0, 9),
    "data.streets.variety": st.sampled_from(["full", "core"]),
    "profile.networks": st.integers(0, 9),
    "profile.rounds": st.integers(1, 40),
    "profile.repeats": st.integers(0, 3),
    "measure.sure": st.floats(0.001, 0.1),
    "measure.drift": st.floats(0.0, 0.1),
    "measure.retrain": st.integers(0, 3),
    "search.method": st.sampled_from(sorted(METHODS)),
    "search.steps": st.integers(300, 500),
    "search.warmup": st.integers(0, 100),
    "search.crop": st.tuples(st.integers(32, 64), st.integers(32, 64)).map(list),
    "search.decision_rate": st.floats(1e-4, 1.0),
    "train.ema": st.floats(0.0, 1.0),
}
WRITTEN = st.fixed_dictionaries({}, optional=SETTINGS)


def toml(settings: dict[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


@given(settings=WRITTEN)
def test_extending_by_nothing_and_extending_nothing_change_nothing(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "whole.toml").write_text(LEAST + toml(settings))
    (folder / "by-nothing.toml").write_text('extends = "whole.toml"\n')
    (folder / "nothing.toml").write_text("")
    (folder / "on-nothing.toml").write_text('extends = "nothing.toml"\n' + LEAST + toml(settings))
    whole = recipe_from_toml(LEAST + toml(settings), "r")
    assert {read_recipe(str(folder / f"{name}.toml")) for name in ("whole", "by-nothing", "on-nothing")} == {whole}


@given(under=WRITTEN, over=WRITTEN)
def test_each_setting_is_the_last_one_that_was_given(under: dict[str, Any], over: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also a method's own, which wait for those of both recipes."""
    base = tmp_path_factory.getbasetemp() / "base.toml"
    base.write_text(LEAST + toml(under))
    extended = recipe_from_toml(f"extends = {json.dumps(str(base))}\n{toml(over)}", "r")
    assert extended == recipe_from_toml(LEAST + toml({**under, **over}), "r")


def test_a_path_is_one_from_the_folder_of_the_recipe_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared" / "deep").mkdir(parents=True)
    (tmp_path / "mine.toml").write_text('extends = "shared/middle.toml"\nname = "mine"\n[train]\ncrop = [64, 96]\n')
    (tmp_path / "shared" / "middle.toml").write_text('extends = "deep/base.toml"\nname = "middle"\nbudget = "9ms"\n')
    (tmp_path / "shared" / "deep" / "base.toml").write_text(LEAST + "[train]\nsteps = 7\nwarmup = 0\n")
    mine = read_recipe(str(tmp_path / "mine.toml"))
    assert (mine.name, mine.space, mine.budget, mine.train.crop, mine.train.steps) == ("mine", "cas-tiny", "9ms", (64, 96), 7)
    monkeypatch.chdir(tmp_path / "shared")
    assert read_recipe("../mine.toml") == mine


def test_one_that_comes_along_is_extended_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "darts-quick"\nname = "mine"\n[search]\nsteps = 50\n')
    quick = read_recipe("darts-quick")
    assert read_recipe(str(path)) == dataclasses.replace(quick, name="mine", search=dataclasses.replace(quick.search, steps=50))


@pytest.mark.parametrize("chain", [("a",), ("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("way", ["", "../here/"])
def test_a_recipe_that_extends_itself_is_refused(chain: tuple[str, ...], way: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name, base in zip(chain, (*chain[1:], chain[0]), strict=True):
        (folder / f"{name}.toml").write_text(f'extends = "{way}{base}.toml"\n' + LEAST)
    with pytest.raises(UsageError, match=r"extends '.*a\.toml', which extends .*\.toml itself"):
        read_recipe(str(folder / "a.toml"))


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ("'dart-quick'", UsageError, "recipe r extends 'dart-quick': recipe 'dart-quick' was given; known recipes: auto-deeplab, "),
        ("'nowhere.toml'", InputError, r"recipe r extends 'nowhere\.toml': recipe .*nowhere\.toml cannot be read: .*No such file"),
        ("3", UsageError, r"recipe r extends 3; the name of a recipe or the path of a \.toml file is needed"),
        ("['cas-quick']", UsageError, r"recipe r extends \['cas-quick'\]; the name of a recipe"),
    ],
)
def test_a_base_that_is_no_recipe_is_refused(base: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recipe_from_toml(f"extends = {base}\n" + LEAST, "r")


def test_what_is_wrong_in_a_base_is_said_of_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("name 'x'")
    with pytest.raises(InputError, match=r"recipe .*base\.toml is no TOML: .*line 1"):
        recipe_from_toml(f"extends = {json.dumps(str(tmp_path / 'base.toml'))}\n" + LEAST, "r")

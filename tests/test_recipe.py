"""Recipes: those that come with segnas, what is refused and in which words, and that a report shows every setting."""

import dataclasses
import tomllib
from importlib import resources
from typing import Any

import pytest

from segnas.data import LAYOUTS
from segnas.errors import InputError, UsageError
from segnas.recipe import Recipe, flattened, read_recipe, recipe_from_toml, recipe_names
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
    settings, written = leaves(recipe), given_in(tomllib.loads(text))
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
        (LEAST + "sed = 1", "recipe r has an unknown option sed; known here: name, space, budget, seed, data, target, profile, search, train"),
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
